"""The comparison of two runs as text and as data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from defend.errors import count_of
from defend.records import Measured
from defend.results.run_diff import CellDiff, RunDiff
from defend.results.table_text import format_difference
from defend.stats import LEVEL

LISTED = 20  # cells of one run alone that are named


def format_diff(diff: RunDiff) -> str:
    """Return the lines of the comparison; the last one is the verdict."""
    return "\n".join(_lines(diff)) + "\n"


def summarise_diff(diff: RunDiff) -> str:
    """Return the verdict: "no significant difference", or how many cells differ.

    Cells that could not be compared are part of it.
    """
    verdict = "no significant difference"
    if diff.significant:
        cells = count_of(len(diff.cells), "cell")
        verdict = f"{len(diff.significant)} of {cells} differ significantly"
    if diff.not_compared:
        verdict += f"; {count_of(len(diff.not_compared), 'cell')} not compared"
    return verdict


def diff_to_dict(diff: RunDiff) -> dict[str, Any]:
    """Return the comparison as data for JSON."""
    cells = []
    for cell in diff.cells:
        old, new = cell.old.model_dump(), cell.new.model_dump()
        cells.append(asdict(cell) | {"old": old, "new": new, "significant": cell.significant})
    return {**asdict(diff), "cells": cells, "verdict": summarise_diff(diff)}


def _lines(diff: RunDiff) -> Iterator[str]:
    if diff.changes:
        yield "What differs beside the outcomes (old -> new):"
        yield from (f"  {line}" for line in diff.changes)
    if diff.same:
        yield f"{count_of(diff.same, 'cell')} of the same units: nothing to compare."
    if diff.cells:
        yield (
            f"{count_of(len(diff.cells), 'cell')} compared over the same images (new - old,"
            f" {100 * LEVEL:.0f} % intervals, p-values by Holm over {len(diff.cells)}):"
        )
        changed = [cell for cell in diff.cells if cell.changed]
        yield from (f"  {_format_cell(cell)}" for cell in changed)
        if len(changed) < len(diff.cells):
            unchanged = count_of(len(diff.cells) - len(changed), "cell")
            yield f"  {unchanged}: no image changed (p = 1)"
    yield from _block("Not compared:", diff.not_compared)
    yield from _block("In the old run alone:", diff.only_old)
    yield from _block("In the new run alone:", diff.only_new)
    yield from _block(
        "Not confirmed by the units of the run; see `defend verify`:", diff.unconfirmed
    )
    yield summarise_diff(diff)


def _block(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield title
        yield from (f"  {line}" for line in lines[:LISTED])
    if len(lines) > LISTED:
        yield f"  and {len(lines) - LISTED} more"


def _format_cell(cell: CellDiff) -> str:
    """Return: convnet, median, pgd, adaptive BPDA, eps 0.1: 50.0 -> 43.8, -6.2 points (...)."""
    scale = 100 if cell.unit == "share" else 1
    return (
        f"{cell.cell}: {_value(cell.old, scale)} -> {_value(cell.new, scale)},"
        f" {format_difference(cell, cell.p)}, {cell.test},"
        f" {cell.changed} of {count_of(cell.images, 'image')} changed"
    )


def _value(measured: Measured, scale: float) -> str:
    return f"{scale * measured.value:.1f}"
