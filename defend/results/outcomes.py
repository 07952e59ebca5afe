"""Outcomes of a cell for each image and each draw, read from its units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defend.records import Record
from defend.unit_files import DETAIL, Unit, find_unit

Bits = NDArray[Any]  # uint8 where a score is 0 or 1, float32 where it is in decibels


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Right (1) or wrong (0) for each image and each draw, or another score of the task.

    Worst cases are chosen on the `select` draws, and read off on the `score` draws.
    """

    score: Bits  # (n, K)
    clean_score: Bits  # (n, K)
    select: Bits | None = None  # (n, 10); None for a deterministic purifier
    clean_select: Bits | None = None
    details: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # of the task: (n, K, ...)
    x_adv: tuple[str, ...] = ()  # sha256 of the adversarial images of each unit


def read_outcomes(record: Record, run_dirs: Sequence[Path]) -> Outcomes | None:
    """Return the outcomes of all n images.

    Return None if the cell failed, or if one of its units is in none of the folders.
    """
    if record.failed:
        return None
    units = []
    for key in record.units:
        unit = find_unit(key, run_dirs)
        if unit is None:
            return None
        units.append(unit)
    return _join(units) if units else None


def _join(units: Iterable[Unit]) -> Outcomes:
    """Return the outcomes of the units in the order of their images."""
    ordered = sorted(units, key=lambda unit: int(unit.header["start"]))

    def joined(name: str) -> Bits:
        return np.concatenate([unit.tensors[name].numpy() for unit in ordered])

    is_stochastic = "select" in ordered[0].tensors
    return Outcomes(
        score=joined("score"),
        clean_score=joined("clean_score"),
        select=joined("select") if is_stochastic else None,
        clean_select=joined("clean_select") if is_stochastic else None,
        details={
            name.removeprefix(DETAIL): joined(name)
            for name in ordered[0].tensors
            if name.startswith(DETAIL)
        },
        x_adv=tuple(str(unit.header["x_adv_sha256"]) for unit in ordered),
    )


def clusters_of(records: Iterable[Record]) -> NDArray[np.int64] | None:
    """Return which of their n images show the same thing (n,), for records of the same images.

    None if none repeats, and where all records are of older versions, which do not say it.
    """
    return next((r.clusters for r in records if r.sample is not None), None)


class OutcomeReader:
    """Read outcomes, each cell once: one table needs the same cell many times."""

    def __init__(self, run_dirs: Sequence[Path]) -> None:
        self.run_dirs = run_dirs
        self._cache: dict[tuple[str, ...], Outcomes | None] = {}

    def read_one(self, record: Record) -> Outcomes | None:
        """Return the outcomes of a cell, None if they are not at hand."""
        if record.failed or not record.units:
            return None
        if record.units not in self._cache:
            self._cache[record.units] = read_outcomes(record, self.run_dirs)
        return self._cache[record.units]

    def read_matching(self, records: Iterable[Record]) -> list[Outcomes] | None:
        """Return the outcomes of every record if they can be compared image by image.

        Return None if the units of a record are not at hand, or if the records differ in the number
        of images or of draws. In both cases no pairing exists, so callers need not tell them apart.
        """
        matching: list[Outcomes] = []
        for record in records:
            outcomes = self.read_one(record)
            if outcomes is None:
                return None
            if matching and outcomes.score.shape != matching[0].score.shape:
                return None
            matching.append(outcomes)
        return matching
