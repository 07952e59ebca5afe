"""Defenses compared in pairs: worst case against worst case on the same images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from defend.protocols.evidence import is_undefended
from defend.records import Record
from defend.results.model import Compared, Section, Worst
from defend.results.numbers import worst_number
from defend.results.outcomes import Bits, OutcomeReader, clusters_of
from defend.stats import holm
from defend.threat_models import gradient_kind

_Attack = tuple[str, str, str | None]  # attack, level, gradient; whatever the surrogate


def compare_defenses(sections: Sequence[Section], reader: OutcomeReader) -> tuple[Compared, ...]:
    """Return all pairs of defenses of each section whose units are at hand.

    Holm's adjustment is over all of them.
    """
    pairs: list[Compared] = []
    for section in sections:
        pairs += _compare_section(section, reader)
    adjusted = holm([pair.p for pair in pairs])
    return tuple(replace(pair, p_holm=p) for pair, p in zip(pairs, adjusted, strict=True))


@dataclass(frozen=True)
class _Side:
    worst: Worst
    score: Bits
    attacks: set[_Attack]


def _compare_section(section: Section, reader: OutcomeReader) -> Iterator[Compared]:
    sides = []
    for worst in section.worst:
        _, score = worst_number(worst.cells, reader)
        if score is not None:
            sides.append(_Side(worst, score, _attacks(worst.cells)))
    for a, b in combinations(sides, 2):
        yield _compare(section, a, b)


def _compare(section: Section, a: _Side, b: _Side) -> Compared:
    clusters = clusters_of([*a.worst.cells, *b.worst.cells])
    comparison = section.task.compare(a.score, b.score, section.key.seed, clusters)
    return Compared(
        title=section.title,
        a=a.worst.defense,
        b=b.worst.defense,
        eps_text=a.worst.eps_text,
        difference=comparison.difference,
        low=comparison.low,
        high=comparison.high,
        p=comparison.p,
        p_holm=comparison.p,
        test=comparison.test,
        same_attacks=_have_same_attacks(a, b),
        unit=section.task.unit,
    )


def _attacks(cells: Iterable[Record]) -> set[_Attack]:
    return {(r.bare_attack, r.knowledge, r.gradient) for r in cells}


def _have_same_attacks(a: _Side, b: _Side) -> bool:
    """Return True if both were attacked alike, as far as both have the gradients.

    Without a purifier no gradient is learned, without a step to relax none is relaxed, and where
    the declared gradient is that of autograd, autograd does not attack again.
    """
    attacks_a, attacks_b = a.attacks, b.attacks
    if any(is_undefended(side.worst.cells[0].defense) for side in (a, b)):
        attacks_a, attacks_b = _without("learned", attacks_a), _without("learned", attacks_b)
    if not all(_has_step_to_relax(side) for side in (a, b)):
        attacks_a, attacks_b = _without("relaxed", attacks_a), _without("relaxed", attacks_b)
    if any(_declares_autograd(side) for side in (a, b)):
        attacks_a, attacks_b = _without("autograd", attacks_a), _without("autograd", attacks_b)
    return attacks_a == attacks_b


def _has_step_to_relax(side: _Side) -> bool:
    return any(r.relaxation is not None for r in side.worst.cells)


def _declares_autograd(side: _Side) -> bool:
    return any(r.declared_gradient in ("exact", "approximate") for r in side.worst.cells)


def _without(kind: str, attacks: set[_Attack]) -> set[_Attack]:
    return {attack for attack in attacks if gradient_kind(attack[-1] or "") != kind}
