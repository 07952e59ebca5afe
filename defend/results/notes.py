"""The titled blocks of lines below a table, the same on a terminal and on a page."""

from __future__ import annotations

from collections.abc import Sequence

from defend.errors import count_of
from defend.results.diagnostics import format_finding
from defend.results.model import Table, Worst, letter_of
from defend.results.table_text import (
    format_count,
    format_defense,
    format_number,
    format_pair,
    format_pairs_heading,
    format_percent,
    format_value,
)

MEASURE_PAIRS = (
    "Pairs by what is measured beside it, each with its worst of shared gradients (Holm):"
)
UNCONFIRMED = "Not confirmed by the units of the run (marked !); see `defend verify`:"
Block = tuple[str, Sequence[str]]  # title, lines


def make_notes(model: Table) -> list[Block]:
    """Return the blocks below a table on a terminal, without the empty ones."""
    claims = [f"[{letter_of(i)}] {line}" for i, line in enumerate(model.claim_lines)]
    blocks: list[Block] = [("", claims), ("Transfer attacks were made on:", model.surrogates)]
    for section in model.sections:
        title = f"Worst case of each image over everything that was run, {section.title}:"
        blocks.append((title, [format_worst(model, worst) for worst in section.worst]))
    blocks += [
        ("Other measures of these cells:", model.measures),
        (MEASURE_PAIRS, model.measure_pairs),
        (format_pairs_heading(model.comparisons), [format_pair(p) for p in model.comparisons]),
        ("Accuracy after so many queries:", model.queries),
        ("Share of images not broken before the search and after each round:", model.rounds),
        ("Why there is no claim:", model.signs),
        ("What comparing cells shows:", [format_finding(f) for f in model.findings]),
        (UNCONFIRMED, model.unconfirmed),
        ("What the training knew (marked !):", model.training),
        ("Flags (marked !):", model.flags),
        ("Failed:", model.failures),
        ("How to read this:", model.footnotes),
    ]
    return [(title, lines) for title, lines in blocks if lines]


def format_worst(model: Table, worst: Worst) -> str:
    """Return: median: 25.0 (19.5-31.4) of 93.5 clean at eps 0.2; 3 attacks, 60+60 passes; [a]."""
    clean = format_value(worst.clean)
    parts = [
        f"{format_defense(worst)}: {format_number(worst.number)} of {clean} clean"
        f" at eps {worst.eps_text}"
    ]
    if worst.all_draws is not None:
        parts.append(
            f"right in all {count_of(worst.draws, 'draw')} {format_percent(worst.all_draws)},"
            f" in most {format_percent(worst.majority)} (a {worst.draws} times dearer defense)"
        )
    if worst.control is not None:
        null_attacks = count_of(worst.controls, "null attack")
        parts.append(
            f"harmless control {format_number(worst.control)}"
            f" ({null_attacks} for {worst.candidates})"
        )
    forward, backward = map(format_count, worst.passes)
    parts.append(f"{count_of(worst.candidates, 'attack')}, {forward}+{backward} passes")
    if worst.purify_ms is not None:
        parts.append(f"purifying costs {worst.purify_ms:.2g} ms per image")
    parts.append(f"[{model.letter(worst.claim)}]")
    return "; ".join(parts)
