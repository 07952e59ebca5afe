"""Numbers of a table as text, the same on a terminal and on a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from defend.results.model import Compared, LevelRow, Number, Row, Worst
from defend.stats import LEVEL

if TYPE_CHECKING:
    from defend.results.run_diff import CellDiff


def format_percent(value: float | None) -> str:
    """Return 25.0 for 0.25, nothing for None."""
    return "" if value is None else f"{100 * value:.1f}"


def format_value(number: Number) -> str:
    """Return 25.0 for an accuracy of 0.25, and 31.4 for 31.4 dB; nothing for None."""
    return "" if number.value is None else f"{number.scale * number.value:.1f}"


def format_bound(number: Number) -> str:
    """Return the sign before a number that is an upper bound."""
    return "<= " if number.at_most else ""


def format_number(number: Number) -> str:
    """Return the number with its interval.

    25.0 (19.5-31.4); <= 25.0 (19.5-31.4) if units were not at hand; <= 25.0 (19.5-31.4,
    unconverged) if an attack was still winning.
    """
    if number.value is None:
        return "failed"
    text = f"{format_bound(number)}{format_value(number)}"
    if number.low is None or number.high is None:
        return text
    note = ", unconverged" if number.unconverged else ""
    low, high = number.scale * number.low, number.scale * number.high
    return f"{text} ({low:.1f}-{high:.1f}{note})"


def describe_worst(worst: Worst) -> str:
    """Return the worst case as one sentence: "jpeg: of 95.5 % without an attack, ..." """
    unit = "%" if worst.number.unit == "share" else worst.number.unit
    clean = f"{format_value(worst.clean)} {unit}"
    if worst.number.value is None:
        return f"{worst.defense}: {clean} without an attack; every attack at this eps failed."
    left = f"{format_bound(worst.number)}{format_value(worst.number)} {unit}"
    low, high = worst.number.low, worst.number.high
    if low is not None and high is not None:
        left += f" ({worst.number.scale * low:.1f} to {worst.number.scale * high:.1f})"
    attacks = "one attack" if worst.candidates == 1 else f"the worst of {worst.candidates} attacks"
    return (
        f"{worst.defense}: {clean} without an attack, {left} under {attacks} on each image at eps"
        f" {worst.eps_text}."
    )


def format_defense(row: Row | LevelRow | Worst) -> str:
    """Return the defense, with "!" before it if a training knew of the other half."""
    return f"!{row.defense}" if row.training_marks else row.defense


def format_passes(row: Row) -> str:
    """Return forward + backward passes of the pipeline for each image: 20+20, 1.2k+1.2k."""
    if row.forwards is None or row.backwards is None:
        return ""
    return f"{format_count(row.forwards)}+{format_count(row.backwards)}"


def format_count(count: float) -> str:
    """Return a count in three digits: 20, 1.2k, 12k."""
    if count >= 9999.5:
        return f"{count / 1000:.0f}k"
    if count >= 999.95:
        return f"{count / 1000:.1f}k"
    return f"{count:.3g}"


def format_difference(paired: Compared | CellDiff, p: float) -> str:
    """Return: +3.0 points (+1.2 to +4.8), p = 0.004. p: adjusted by Holm."""
    scale, unit = (100, "points") if paired.unit == "share" else (1, paired.unit)
    values = (paired.difference, paired.low, paired.high)
    difference, low, high = (f"{scale * value:+.1f}" for value in values)
    verdict = f"p = {p:.2g}"
    if not paired.significant:
        verdict = f"no significant difference ({verdict})"
    return f"{difference} {unit} ({low} to {high}), {verdict}"


def format_pair(pair: Compared) -> str:
    """Return: jpeg against median, eps 8/255: +3.0 points (+1.2 to +4.8), p = 0.004, ..."""
    line = (
        f"{pair.a} against {pair.b}, eps {pair.eps_text}: {format_difference(pair, pair.p_holm)},"
        f" {pair.test}"
    )
    return line if pair.same_attacks else f"{line}; not under the same attacks"


def format_pairs_heading(pairs: Sequence[Compared]) -> str:
    """Return the heading of the list of pairs, which says how they were adjusted."""
    return (
        f"Pairs, worst case against worst case (p-values by Holm over {len(pairs)},"
        f" differences with {100 * LEVEL:.0f} % intervals, each by itself):"
    )
