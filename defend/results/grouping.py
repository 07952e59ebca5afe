"""Which records belong together: keys of sections, series, pipelines and claims.

A component is known by its settings and weights (`record.pipeline`), whatever it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from defend.records import Record

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class SectionKey:
    """The fields that all rows of a section share."""

    task: str
    dataset: str
    classifier: str
    norm: str
    n: int
    split: str
    seed: int
    precision: str
    layout: str
    classifier_hash: str


@dataclass(frozen=True, kw_only=True)
class SeriesKey:
    """One defense of a section, scored on so many draws."""

    defense: str
    defense_hash: str
    draws: int


@dataclass(frozen=True, kw_only=True)
class PipelineKey:
    """One defense before one classifier in one norm, from any seed and however it was computed."""

    task: str
    dataset: str
    classifier: str
    defense: str
    classifier_hash: str
    defense_hash: str
    norm: str


@dataclass(frozen=True, kw_only=True)
class ClaimKey:
    """What one claim is about: one pipeline in one norm, from one seed, computed in one way."""

    pipeline: PipelineKey
    seed: int
    precision: str
    layout: str

    def in_any_norm(self) -> ClaimKey:
        """Return the key that the same pipeline has in every norm."""
        return replace(self, pipeline=replace(self.pipeline, norm=""))

    def has_same_names(self, other: ClaimKey) -> bool:
        """Return True if the data set, classifier, defense and norm are the same."""
        a, b = self.pipeline, other.pipeline
        return (a.task, a.dataset, a.classifier, a.defense, a.norm) == (
            b.task,
            b.dataset,
            b.classifier,
            b.defense,
            b.norm,
        )

    def facts(self) -> dict[str, str]:
        """Return what may differ between pipelines of the same names."""
        return {
            "seed": str(self.seed),
            "precision": self.precision,
            "layout": self.layout,
            "classifier": self.pipeline.classifier_hash,
            "purifier": self.pipeline.defense_hash,
        }


def section_key(record: Record) -> SectionKey:
    """Return which section of a table the record stands in."""
    return SectionKey(
        task=record.task,
        dataset=record.dataset,
        classifier=record.classifier_label,
        norm=record.norm,
        n=record.n,
        split=record.split,
        seed=record.seed,
        precision=record.precision,
        layout=record.layout,
        classifier_hash=record.pipeline.classifier,
    )


def series_key(record: Record) -> SeriesKey:
    """Return which series of a section the record belongs to."""
    return SeriesKey(
        defense=record.defense_label, defense_hash=record.pipeline.defense, draws=record.draws
    )


def pipeline_key(record: Record) -> PipelineKey:
    """Return which pipeline the record is of, and in which norm."""
    return PipelineKey(
        task=record.task,
        dataset=record.dataset,
        classifier=record.classifier_label,
        defense=record.defense_label,
        classifier_hash=record.pipeline.classifier,
        defense_hash=record.pipeline.defense,
        norm=record.norm,
    )


def claim_key(record: Record) -> ClaimKey:
    """Return which claim the record counts for."""
    return ClaimKey(
        pipeline=pipeline_key(record),
        seed=record.seed,
        precision=record.precision,
        layout=record.layout,
    )


def group_by(records: Iterable[Record], key: Callable[[Record], Key]) -> dict[Key, list[Record]]:
    """Return the records of each key, in the order in which they come."""
    groups: dict[Key, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def unify_spellings(records: Sequence[Record]) -> list[Record]:
    """Return the records with one spelling for each classifier and each defense.

    Components of the same settings and weights take the spelling that comes first. Records without
    hashes stay as they are.
    """
    classifiers: dict[str, str] = {}
    defenses: dict[str, str] = {}
    unified = []
    for record in records:
        changes = {}
        if record.pipeline.classifier:
            changes["classifier"] = classifiers.setdefault(
                record.pipeline.classifier, record.classifier
            )
        if record.pipeline.defense:
            changes["defense"] = defenses.setdefault(record.pipeline.defense, record.defense)
        unified.append(record.replace(**changes))
    return unified
