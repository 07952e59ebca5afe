"""What one cell says against itself, from its units and its settings.

Findings that compare cells belong to tables: see defend/results/.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from defend.record_parts import SearchRounds
from defend.records import Flag, FlagCode
from defend.tasks.task import Objective, Task
from defend.threat_models import THREAT_MODELS
from defend.unit_files import Unit

FEW_IMPOSTORS = 10  # of fewer, chance moves the FAR of a threshold by a third and more
AT_FAR = {
    "far_1": FlagCode.FEW_IMPOSTORS_AT_FAR_1,
    "far_01": FlagCode.FEW_IMPOSTORS_AT_FAR_01,
}
ROUNDING = 1e-6  # a relative change of a loss that means nothing


@dataclass(frozen=True, kw_only=True)
class FlaggedCell:
    """What flags need to know of a cell beside its units."""

    task: Task
    n: int
    eps: float
    eot: int
    knowledge: str
    access: str  # of the attack
    is_control: bool
    is_stochastic: bool
    objective: Objective | None  # of the attack; None where only its card would tell


def make_flags(
    cell: FlaggedCell,
    units: Sequence[Unit],
    accuracy_lost_late: float,
    rounds: SearchRounds | None = None,
) -> list[Flag]:
    """Return the flags of a cell; without its objective not those that depend on it.

    accuracy_lost_late: how far accuracy fell in the last fifth of the queries, in [0, 1].
    rounds: of a search in rounds.
    """
    flags: list[Flag] = []
    is_on_scored = THREAT_MODELS[cell.knowledge].may_drop
    still_fell = rounds.lost_last if rounds and is_on_scored else None
    if not cell.is_control:
        flags += _of_costs(cell, units)
        if cell.objective == "label" and not cell.task.label_is_goal:
            flags.append(Flag(code=FlagCode.LABEL_IS_NOT_THE_GOAL))
    flags += _of_thresholds(units)
    if accuracy_lost_late:
        flags.append(Flag(code=FlagCode.UNCONVERGED, value=accuracy_lost_late))
    elif still_fell is not None:
        flags.append(Flag(code=FlagCode.UNCONVERGED, value=still_fell))
    if cell.is_stochastic:
        if not any(unit.header["costs"]["draws_differ"] for unit in units):
            flags.append(Flag(code=FlagCode.NO_DRAW_CHANGES_A_PIXEL))
        flags += _of_eot(cell)
    return flags


def _of_costs(cell: FlaggedCell, units: Sequence[Unit]) -> Iterator[Flag]:
    def total(name: str) -> Any:
        return sum(unit.header["costs"][name] for unit in units)

    if zero := total("zero_gradients"):
        yield Flag(code=FlagCode.ZERO_GRADIENT, value=zero)
    if undefined := total("undefined_gradients"):
        yield Flag(code=FlagCode.UNDEFINED_GRADIENT, value=undefined)
    if not cell.eps:
        return
    if total("unchanged") == cell.n:
        yield Flag(code=FlagCode.UNCHANGED_IMAGES)
    if cell.objective in ("distortion", None):  # it does not climb the loss of the task
        return
    before, after = total("loss_before"), total("loss_after")
    if after < before - ROUNDING * abs(before):
        yield Flag(code=FlagCode.LOSS_FELL)


def _of_thresholds(units: Sequence[Unit]) -> Iterator[Flag]:
    """A threshold is as uncertain as the few impostors that it accepts on `val`."""
    for name, count in units[0].header.get("accepted", {}).items():
        if count < FEW_IMPOSTORS:
            yield Flag(code=AT_FAR[name], value=count)


def _of_eot(cell: FlaggedCell) -> Iterator[Flag]:
    """A stochastic defense must be attacked through an average over draws."""
    if cell.eot > 1 or cell.is_control:
        return
    if (cell.knowledge, cell.access) == ("adaptive", "gradient"):
        yield Flag(code=FlagCode.GRADIENT_OF_ONE_DRAW)
    if (cell.knowledge, cell.access) == ("query", "scores"):
        yield Flag(code=FlagCode.SCORES_OF_ONE_DRAW)
