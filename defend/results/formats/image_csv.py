"""Outcomes of each image as CSV: a line for each image of each cell whose units are at hand."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from defend.files import user_path
from defend.records import Record
from defend.results.outcomes import read_outcomes
from defend.results.run_folders import collect_records

_CELL = (
    *("run", "task", "dataset", "split", "classifier", "defense", "attack", "knowledge"),
    *("gradient", "surrogate", "norm", "eps", "seed", "draws"),
)


def format_images(run_dirs: Sequence[Path | str]) -> str:
    """Return the scores of each image, clean and under attack, as the mean over its draws.

    "image" is its place in the split, from 0. Raises BadParameter if a folder has no records.
    """
    folders = [user_path(folder) for folder in run_dirs]
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*_CELL, "image", "clean", "score"])
    for record in collect_records(folders)[0]:
        writer.writerows(_rows(record, folders))
    return out.getvalue()


def _rows(record: Record, folders: Sequence[Path]) -> list[list[object]]:
    outcomes = read_outcomes(record, folders)
    if outcomes is None:
        return []
    cell = [getattr(record, name) for name in _CELL]
    scores = zip(outcomes.clean_score.mean(1), outcomes.score.mean(1), strict=True)
    return [[*cell, i, float(clean), float(score)] for i, (clean, score) in enumerate(scores)]
