"""The harmless control: as many null attacks as there were attacks, treated alike. A minimum of noisy estimates falls by itself: by so much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from defend.benchmarks.cell import Cell
from defend.benchmarks.components import Components
from defend.benchmarks.suite import Eps, Suite, take_eps
from defend.spec import Spec, parse_single

CONTROL = "control"


def is_control(attack: str) -> bool:
    return parse_single(attack, "attack").name == CONTROL


def left_open(suite: Suite) -> list[str]:
    """Controls without a number of their own, which are as many as there are candidates; none where a control is all there is."""
    found = [
        a
        for a in suite.attacks
        if is_control(a) and "draw" not in dict(parse_single(a, "attack").params)
    ]
    return found if len(found) < len(suite.attacks) or suite.protocol else []


def with_controls(cells: Sequence[Cell], suite: Suite, components: Components) -> list[Cell]:
    """The cells of one classifier behind one defense, and behind them the controls: by a protocol, of stochastic defenses alone."""
    asked = left_open(suite)
    stochastic = bool(cells) and components.defense(cells[0].defense).card.stochastic
    by_protocol = [
        c for c in cells if c.protocol and c.eps.value == components.data.card.claim.get(c.norm)
    ]
    if not asked and stochastic:
        norms = dict.fromkeys(c.norm for c in by_protocol)
        return [
            *cells,
            *(
                c
                for norm in norms
                for c in _controls(
                    f"{CONTROL}:norm={norm}", cells, by_protocol, components, suite.protocol
                )
            ),
        ]
    return [*cells, *(c for text in asked for c in _controls(text, cells, cells, components, None))]


def _controls(
    text: str,
    cells: Sequence[Cell],
    where: Sequence[Cell],
    components: Components,
    protocol: str | None,
) -> list[Cell]:
    """One for each candidate in the control's norm at each eps of `where`; one alone where the defense is deterministic."""
    spec, own = take_eps(text)
    norm = components.attack(str(spec)).norm
    epsilons: Mapping[float, Eps] = (
        {own.value: own} if own else {c.eps.value: c.eps for c in where if c.norm == norm}
    )
    made = []
    for eps in epsilons.values():
        rivals = {
            _kind(c, components)
            for c in cells
            if (c.norm, c.eps.value) == (norm, eps.value) and not is_control(c.attack)
        }
        count = max(1, len(rivals)) if components.defense(cells[0].defense).card.stochastic else 1
        for draw in range(count):
            bare = str(Spec(spec.name, tuple(sorted((*spec.params, ("draw", draw))))))
            made.append(
                replace(
                    cells[0],
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
            )
    return made


def _kind(c: Cell, components: Components) -> tuple[str | None, ...]:
    """Two of one kind give the same images."""
    same = (
        c.gradient == "declared"
        and components.defense(c.attacked.defense).card.gradient == "identity"
    )
    return c.bare_attack, c.knowledge, "identity" if same else c.gradient, c.surrogate
