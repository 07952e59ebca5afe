"""Pairs of defenses, compared by a measure beside the score, such as the vulnerability index.

Two defenses are compared within one level of knowledge and under one attack. Each stands with the
gradient that is worst for it, of those by which both were attacked: a defense that was attacked in
more ways has no handicap. Holm's adjustment is over all pairs.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from defend.records import Record
from defend.results.diagnostics import describe_attack, format_measured
from defend.results.grouping import group_by, section_key, series_key
from defend.results.outcomes import OutcomeReader, clusters_of
from defend.stats import Comparison, compare_means, holm, per_cluster
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
    for group in group_by(records, _threat_key).values():
        for name in load_task(group[0].task).compared:
            pairs += _list_pairs(name, group, reader)
    adjusted = holm([pair.comparison.p for pair in pairs])
    return tuple(_format(pair, p) for pair, p in zip(pairs, adjusted, strict=True))


def _threat_key(record: Record) -> Hashable:
    """Return what two compared cells share beside their gradient."""
    return section_key(record), record.knowledge, record.surrogate, record.bare_attack, record.eps


def _list_pairs(name: str, group: Sequence[Record], reader: OutcomeReader) -> Iterator[_Pair]:
    """Yield the pairs of a group of cells that share their threat."""
    for cells in combinations(group_by(group, series_key).values(), 2):
        shared = set.intersection(*({r.gradient for r in side} for side in cells))
        sides = []
        for side in cells:
            worst = _worst_side(name, [r for r in side if r.gradient in shared], reader)
            sides += [worst] if worst else []
        if len(sides) == 2:
            a, b = sides
            yield _Pair(name, a, b, _compare(a, b))


def _compare(a: _Side, b: _Side) -> Comparison:
    clusters = clusters_of([a.record, b.record])
    of_a, of_b = per_cluster(a.values, clusters), per_cluster(b.values, clusters)
    return compare_means(of_a, of_b, a.record.seed)


def _worst_side(name: str, cells: Sequence[Record], reader: OutcomeReader) -> _Side | None:
    """Return the cell of the mean that is worst for the defense, None without cells."""
    sides = []
    for record in cells:
        outcomes = reader.read_one(record)
        values = None if outcomes is None else load_task(record.task).values(name, outcomes.details)
        if values is not None:
            sides.append(_Side(record, values))
    if not sides:
        return None
    higher_is_better = load_task(cells[0].task).measured[name].higher_is_better
    choose = min if higher_is_better else max
    return choose(sides, key=lambda side: side.values.mean())


def _format(pair: _Pair, p: float) -> str:
    """Return: vulnerability index, jpeg (...) against median (...), eps 16/255: +3.1 dB (...)."""
    a, b, comparison = pair.a.record, pair.b.record, pair.comparison
    measure = load_task(a.task).measured[pair.name]
    sides = (f"{record.defense_label} ({describe_attack(record)})" for record in (a, b))
    scale, unit = (100, "points") if measure.unit == "share" else (1, measure.unit)
    ends = (comparison.difference, comparison.low, comparison.high)
    difference, low, high = (f"{scale * value:+.1f}" for value in ends)
    verdict = f"p = {p:.2g}" if p < 0.05 else f"no significant difference (p = {p:.2g})"
    return (
        f"{measure.heading}, {' against '.join(sides)}, eps {a.eps_text}: {difference}"
        f" {unit} ({low} to {high}), {verdict}, {comparison.test}{_tell_attack(a, b)}"
    )


def _tell_attack(a: Record, b: Record) -> str:
    """Return "; PSNR in 40.0 dB and 39.2 dB": attacks of other strength compare badly."""
    task = load_task(a.task)
    name = task.told_of_pairs
    if not (name in a.measures and name in b.measures):
        return ""
    measure = task.measured[name]
    texts = (format_measured(record.measures[name].value, measure.unit) for record in (a, b))
    return f"; {measure.heading} {' and '.join(texts)}"
