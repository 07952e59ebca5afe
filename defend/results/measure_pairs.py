"""Defenses compared in pairs by what a task measures beside its score, as the vulnerability index.

Each defense stands with the gradient that is worst for it, attack by attack. Holm's adjustment is
over all pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from defend.records import Record
from defend.results.diagnostics import describe_attack
from defend.results.grouping import group_by, section_key, series_key
from defend.results.outcomes import OutcomeReader
from defend.stats import Comparison, compare_means, holm
from defend.tasks.registry import load_task


@dataclass(frozen=True)
class _Side:
    record: Record
    values: NDArray[np.float64]  # (n, draws)


@dataclass(frozen=True)
class _Pair:
    name: str  # of the measure
    a: _Side
    b: _Side
    comparison: Comparison


def list_measure_pairs(records: Sequence[Record], reader: OutcomeReader) -> tuple[str, ...]:
    """Return a line for each pair of defenses under one attack at one eps, for each measure.

    Only where the units of both are at hand.
    """
    pairs: list[_Pair] = []
    for group in group_by(records, lambda r: (section_key(r), r.bare_attack, r.eps)).values():
        for name in load_task(group[0].task).compared:
            pairs += _pairs_of(name, group, reader)
    adjusted = holm([pair.comparison.p for pair in pairs])
    return tuple(_format(pair, p) for pair, p in zip(pairs, adjusted, strict=True))


def _pairs_of(name: str, group: Sequence[Record], reader: OutcomeReader) -> Iterator[_Pair]:
    sides = []
    for cells in group_by(group, series_key).values():
        side = _worst_side(name, cells, reader)
        if side is not None:
            sides.append(side)
    for a, b in combinations(sides, 2):
        yield _Pair(name, a, b, compare_means(a.values, b.values, a.record.seed))


def _worst_side(name: str, cells: Sequence[Record], reader: OutcomeReader) -> _Side | None:
    """Return the cell of the mean that is worst for the defense."""
    task = load_task(cells[0].task)
    sign = 1 if task.measured[name].higher_is_better else -1
    sides = []
    for record in cells:
        outcomes = reader.read_one(record)
        values = None if outcomes is None else task.values(name, outcomes.details)
        if values is not None:
            sides.append(_Side(record, values))
    return min(sides, key=lambda side: sign * side.values.mean(), default=None)


def _format(pair: _Pair, p: float) -> str:
    """Return: vulnerability index, jpeg (...) against median (...), eps 16/255: +3.1 dB (...)."""
    a, b, comparison = pair.a.record, pair.b.record, pair.comparison
    measure = load_task(a.task).measured[pair.name]
    sides = (f"{record.defense} ({describe_attack(record)})" for record in (a, b))
    scale, unit = (100, "points") if measure.unit == "share" else (1, measure.unit)
    ends = (comparison.difference, comparison.low, comparison.high)
    difference, low, high = (f"{scale * value:+.1f}" for value in ends)
    verdict = f"p = {p:.2g}" if p < 0.05 else f"no significant difference (p = {p:.2g})"
    return (
        f"{measure.heading}, {' against '.join(sides)}, eps {a.eps_text}: {difference}"
        f" {unit} ({low} to {high}), {verdict}, {comparison.test}"
    )
