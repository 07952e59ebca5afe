"""Pairs of cells that accuse each other: an attack that should be weaker leaves less.

Every function takes records of cells that did not fail. Findings are computed from records, and
never written into them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from defend.records import Record
from defend.results.diagnostics import Finding, FindingCode, describe_cell
from defend.results.grouping import group_by
from defend.results.searches import fell_to_random_search
from defend.results.significance import (
    IsStronger,
    stronger_by_intervals,
    strongest,
    value_of,
)
from defend.threat_models import gradient_kind

Compare = Callable[[Sequence[Record], IsStronger], Iterator[Finding]]
_IMAGES = (
    *("task", "dataset", "classifier_label", "defense_label"),
    *("norm", "n", "split", "seed"),
)


def find_accusations(
    records: Sequence[Record], is_stronger: IsStronger = stronger_by_intervals
) -> list[Finding]:
    """Return one finding for each pair that accuses a cell; failed cells are in none."""
    successful = [r for r in records if not r.failed]
    accusations: list[Finding] = []
    for compare in COMPARISONS:
        accusations += compare(successful, is_stronger)
    return accusations


def compare_cells(
    records: Sequence[Record], is_stronger: IsStronger = stronger_by_intervals
) -> list[Finding]:
    """Return one finding for each pair of series, as they are listed below a table."""
    successful = [r for r in records if not r.failed]
    accusations = find_accusations(successful, is_stronger)
    return [*_one_for_each_series(accusations), *find_growth(successful, is_stronger)]


def findings_against(record: Record, findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings that accuse this very record."""
    return [finding for finding in findings if finding.stronger is record]


def compare_black_box(records: Sequence[Record], is_stronger: IsStronger) -> Iterator[Finding]:
    """Compare query and transfer attacks with the best adaptive cell at the same eps.

    A search whose images fell to its own random search says nothing of a gradient.
    """
    for group in _groups(records, (*_IMAGES, "eps")):
        white_box = [r for r in gradient_cells(group) if not fell_to_random_search(r)]
        if not white_box:
            continue
        for record in group:
            is_black_box = record.knowledge in ("query", "transfer")
            if is_black_box and is_stronger(record, white_box):
                yield Finding(
                    code=FindingCode.BLACK_BOX_BEATS_WHITE_BOX,
                    weaker=record,
                    stronger=strongest(white_box),
                )


def compare_oblivious(records: Sequence[Record], is_stronger: IsStronger) -> Iterator[Finding]:
    """Compare the best oblivious with the best adaptive cell: knowing the purifier cannot hurt.

    Attacks without a gradient are no part of it, because nothing can be masked from them.
    """
    for group in _groups(records, (*_IMAGES, "eps")):
        adaptive = gradient_cells(group)
        oblivious = [r for r in group if r.knowledge == "oblivious"]
        if adaptive and oblivious and is_stronger(strongest(oblivious), adaptive):
            yield Finding(
                code=FindingCode.OBLIVIOUS_BEATS_ADAPTIVE,
                weaker=strongest(oblivious),
                stronger=strongest(adaptive),
            )


def compare_gradients(records: Sequence[Record], is_stronger: IsStronger) -> Iterator[Finding]:
    """Compare the declared gradient with the same attack through the identity or the network.

    If another gradient is better, the card's word is worth less than a guess.
    """
    for group in _groups(gradient_cells(records), (*_IMAGES, "attack", "eps", "eot")):
        other_gradients = [r for r in group if r.gradient != "declared"]
        for declared in group:
            if declared.gradient != "declared":
                continue
            for other in other_gradients:
                if is_stronger(other, [declared]):
                    yield Finding(
                        code=FindingCode.ANOTHER_GRADIENT_BEATS_DECLARED,
                        weaker=other,
                        stronger=declared,
                    )


def compare_steps(records: Sequence[Record], is_stronger: IsStronger) -> Iterator[Finding]:
    """Compare an adaptive attack with itself at twice as many steps or more."""
    for group in _groups(gradient_cells(records), (*_IMAGES, "gradient", "eps", "eot")):
        for short in group:
            for long in group:
                if _is_shorter(short, long) and is_stronger(short, [long]):
                    yield Finding(
                        code=FindingCode.FEWER_STEPS_BEAT_MORE, weaker=short, stronger=long
                    )


COMPARISONS: tuple[Compare, ...] = (
    compare_black_box,
    compare_oblivious,
    compare_gradients,
    compare_steps,
)


def find_growth(records: Sequence[Record], is_stronger: IsStronger) -> Iterator[Finding]:
    """Yield attacks whose accuracy grows with eps, each once.

    A larger ball holds the smaller one, so that accuracy cannot honestly grow.
    """
    fields = (*_IMAGES, "bare_attack", "knowledge", "gradient", "surrogate", "eot")
    for series in _groups(records, fields):
        by_eps = sorted(series, key=lambda r: r.eps)
        growths = [
            (small, large) for small, large in pairwise(by_eps) if is_stronger(small, [large])
        ]
        if growths:
            small, large = growths[0]
            yield Finding(
                code=FindingCode.ACCURACY_GROWS_WITH_EPS,
                weaker=small,
                stronger=large,
                more=len(growths) - 1,
            )


def gradient_cells(records: Iterable[Record]) -> list[Record]:
    """Return the cells of adaptive attacks that use a gradient."""
    return [r for r in records if r.knowledge == "adaptive" and r.access == "gradient"]


@dataclass(frozen=True)
class _Climb:
    """An attack by its settings: what was measured is shorter where images were dropped."""

    attack: str
    steps: int  # 0 if the attack has none
    other_settings: dict[str, Any]

    @classmethod
    def of(cls, record: Record) -> _Climb:
        """Return the attack of a record."""
        settings = dict(record.settings.attack)
        return cls(record.attack_name, settings.pop("steps", 0), settings)


def _is_shorter(short: Record, long: Record) -> bool:
    """Return True if the attacks differ in that one has at most half of the steps."""
    a, b = _Climb.of(short), _Climb.of(long)
    if a.attack == "fgsm":  # one step of PGD: arXiv:1802.00420, section 3.1
        return b.attack == "pgd" and b.steps > 1 and b.other_settings.get("step") is None
    same_attack = (a.attack, a.other_settings) == (b.attack, b.other_settings)
    return same_attack and 0 < 2 * a.steps <= b.steps


def _one_for_each_series(accusations: Iterable[Finding]) -> list[Finding]:
    """Return for each pair of series the eps with the widest gap, and how many more there are."""
    series: dict[tuple[str, ...], list[Finding]] = {}
    for finding in accusations:
        images = (str(getattr(finding.weaker, field)) for field in _IMAGES)
        cell = _describe_at_any_temperature(finding.weaker)
        key = (finding.code, *images, cell, finding.stronger.attack)
        series.setdefault(key, []).append(finding)
    return [
        replace(max(findings, key=_gap), more=len({f.weaker.eps for f in findings}) - 1)
        for findings in series.values()
    ]


def _describe_at_any_temperature(record: Record) -> str:
    """Return the series of a cell, the same for all temperatures of a relaxed gradient."""
    if not record.gradient:
        return describe_cell(record)
    return describe_cell(record.replace(gradient=gradient_kind(record.gradient)))


def _gap(finding: Finding) -> float:
    return value_of(finding.stronger) - value_of(finding.weaker)


def _groups(records: Iterable[Record], fields: Sequence[str]) -> list[list[Record]]:
    """Return the records of each pipeline that agree in these fields, in the order of these."""

    def key(record: Record) -> tuple[Any, ...]:
        return (
            *(getattr(record, field) for field in fields),
            record.precision,
            record.layout,
            record.pipeline.classifier,
            record.pipeline.defense,
        )

    groups = group_by(records, key)
    return [groups[k] for k in sorted(groups, key=repr)]
