"""What one cell says against itself, in a line each; and how the table reads such a line again. Findings that compare cells belong to tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from defend.benchmarks.cell import Cell
from defend.benchmarks.components import Components
from defend.benchmarks.controls import is_control

UNCONVERGED = "unconverged"
NOTHING_DRAWN = "nothing drawn: the card says stochastic=True, and no draw changed a pixel"
_USELESS = re.compile(r"(?:zero|undefined) gradient: (\d+) of (\d+) images")


def flags(
    cell: Cell, components: Components, costs: Sequence[Mapping[str, Any]], fell: float
) -> list[str]:
    """costs: of the cell's units. fell: by how much accuracy fell in the last fifth of the queries, in [0, 1]."""
    seen = [] if is_control(cell.bare_attack) else _of_costs(costs, cell)
    stochastic = components.defense(cell.defense).card.stochastic
    idle = stochastic and not any(c.get("drew", True) for c in costs)
    return [
        *seen,
        *([unconverged(fell)] if fell else []),
        *([NOTHING_DRAWN] if idle else []),
        *_of_settings(cell, components),
    ]


def _of_costs(costs: Sequence[Mapping[str, Any]], cell: Cell) -> list[str]:
    found = []
    if dead := sum(c.get("zero_gradients", 0) for c in costs):
        found.append(zero_gradient(dead, cell.n))
    if wild := sum(c.get("undefined_gradients", 0) for c in costs):
        found.append(undefined_gradient(wild, cell.n))
    if cell.eps.value and sum(c.get("unchanged", 0) for c in costs) == cell.n:
        found.append("nothing changed: the attack gave every image back as it was")
    if sum(c["loss_after"] for c in costs) < sum(c["loss_before"] for c in costs):
        found.append("loss fell: the attack lowered the loss it should raise")
    return found


def _of_settings(cell: Cell, components: Components) -> list[str]:
    if (
        cell.eot > 1
        or is_control(cell.bare_attack)
        or not components.defense(cell.defense).card.stochastic
    ):
        return []
    ways = {
        ("adaptive", "gradient"): "attacked through the gradient of one draw",
        ("query", "scores"): "searched by the scores of single draws",
    }
    way = ways.get((cell.knowledge, components.attack(cell.bare_attack).card.access))
    return [f"no EOT: a stochastic defense, {way}"] if way else []


def unconverged(fell: float) -> str:
    return f"{UNCONVERGED}: accuracy still fell by {100 * fell:.1f} points in the last fifth of the queries"


def is_unconverged(flags: Iterable[str]) -> bool:
    return any(flag.startswith(UNCONVERGED) for flag in flags)


def zero_gradient(dead: int, n: int) -> str:
    return f"zero gradient: {dead} of {n} images"


def undefined_gradient(wild: int, n: int) -> str:
    return f"undefined gradient: {wild} of {n} images"


def share_without_gradient(flags: Iterable[str]) -> float:
    """Zero or undefined, in [0, 1]; 0 where no flag says so."""
    return min(1.0, sum(int(m[1]) / int(m[2]) for flag in flags if (m := _USELESS.match(flag))))
