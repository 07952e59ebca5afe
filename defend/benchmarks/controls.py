"""The harmless control: null attacks that are treated as attacks are.

A minimum of noisy estimates falls by itself; as many null attacks as there are candidates show by
how much.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from defend.benchmarks.cell import Cell
from defend.benchmarks.components import Components
from defend.benchmarks.suite import Suite
from defend.eps import Eps, take_eps
from defend.records import CONTROL
from defend.spec import Spec, parse_single


def is_control(attack: str) -> bool:
    """Return True for the spec of a null attack."""
    return parse_single(attack, "attack").name == CONTROL


def open_controls(suite: Suite) -> list[str]:
    """Return the suite's controls without a number: they become as many as the candidates.

    None where a control is all that is run.
    """
    controls = [a for a in suite.attacks if is_control(a) and not _has_number(a)]
    is_all = len(controls) == len(suite.attacks) and suite.protocol is None
    return [] if is_all else controls


def _has_number(attack: str) -> bool:
    return "draw" in dict(parse_single(attack, "attack").params)


def with_controls(cells: Sequence[Cell], suite: Suite, components: Components) -> list[Cell]:
    """Return the cells of one classifier behind one defense, and behind them the controls.

    A protocol has controls for stochastic defenses alone.
    """
    if not cells:
        return []
    requested = open_controls(suite)
    controls: list[Cell] = []
    for attack in requested:
        controls += _controls(attack, cells, cells, components, None)
    if not requested and components.defense(cells[0].defense).card.stochastic:
        of_protocol = [c for c in cells if c.protocol and _is_at_claim(c, components)]
        for norm in dict.fromkeys(c.norm for c in of_protocol):
            attack = f"{CONTROL}:norm={norm}"
            controls += _controls(attack, cells, of_protocol, components, suite.protocol)
    return [*cells, *controls]


def _is_at_claim(cell: Cell, components: Components) -> bool:
    return cell.eps.value == components.data.card.claim.get(cell.norm)


def _controls(
    attack: str,
    candidates: Sequence[Cell],
    places: Iterable[Cell],
    components: Components,
    protocol: str | None,
) -> list[Cell]:
    """Return one control for each candidate in its norm at each eps of `places`.

    One alone where the defense is deterministic.
    """
    spec, own_eps = take_eps(attack)
    norm = components.attack(str(spec)).norm
    epsilons: Mapping[float, Eps] = {c.eps.value: c.eps for c in places if c.norm == norm}
    if own_eps is not None:
        epsilons = {own_eps.value: own_eps}
    controls = []
    for eps in epsilons.values():
        count = 1
        if components.defense(candidates[0].defense).card.stochastic:
            count = max(1, _count_kinds(candidates, norm, eps, components))
        for draw in range(count):
            bare = str(Spec(spec.name, tuple(sorted((*spec.params, ("draw", draw))))))
            control = replace(
                candidates[0],
                attack=bare,
                bare_attack=bare,
                knowledge="query",
                gradient=None,
                surrogate=None,
                norm=norm,
                eps=eps,
                eot=1,
                protocol=protocol,
            )
            controls.append(control)
    return controls


def _count_kinds(cells: Iterable[Cell], norm: str, eps: Eps, components: Components) -> int:
    """Count the attacks in this norm at this eps that make different images."""
    kinds = set()
    for cell in cells:
        if (cell.norm, cell.eps.value) == (norm, eps.value) and not is_control(cell.attack):
            kinds.add(
                (cell.bare_attack, cell.knowledge, _gradient(cell, components), cell.surrogate)
            )
    return len(kinds)


def _gradient(cell: Cell, components: Components) -> str | None:
    """Declared is the identity behind a purifier that declares it."""
    declared = components.defense(cell.attacked.defense).card.gradient
    if cell.gradient == "declared" and declared == "identity":
        return "identity"
    return cell.gradient
