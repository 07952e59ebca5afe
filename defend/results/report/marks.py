"""What the mark "!" beside a number stands for."""

from __future__ import annotations

from defend.results.diagnostics import format_accusation, format_flag
from defend.results.model import Number


def format_marks(number: Number) -> list[str]:
    """Return the flags of the number's cells and the findings that accuse them, each once."""
    sentences = [format_flag(flag, number.n) for flag in number.flags]
    sentences += [format_accusation(finding) for finding in number.findings]
    return list(dict.fromkeys(sentences))
