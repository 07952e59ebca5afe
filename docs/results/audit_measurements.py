"""The measurements of audit_thresholds.py, and the page that is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from defend.auditing.thresholds import THRESHOLDS
from defend.stats import wilson

GAP = 0.05  # from which on a masked purifier must be called unreliable
MIN_ACCURACY = THRESHOLDS.gap.value / 100  # below it no attack can break enough to matter
HALVES = ("sets", "judges")  # thresholds
COLUMNS = 100  # of a line of prose
UNKNOWN = "unknown"  # of a row that does not say it
TERMS = (
    "Masked purifiers mislead an evaluation on purpose; honest purifiers do not. The gap of a"
    " purifier is the accuracy under the best attack through the declared gradient minus the"
    " accuracy under the best known attack. A miss is a masked purifier with a gap of"
    f" {100 * GAP:g} points or more that was not called unreliable. A false alarm is an honest"
    " purifier that was called unreliable. One half of the families set the thresholds of the"
    " audit, and the other half judges them."
)


@dataclass(frozen=True)
class CheckValue:
    """What a check measured, and whether it made the evaluation unreliable."""

    name: str
    value: float | None
    turns: bool


@dataclass(frozen=True)
class Verdict:
    """The part of an audit's report that the page needs."""

    verdict: str
    n: int
    eps: float
    reasons: list[str]
    checks: list[CheckValue]

    @classmethod
    def from_dict(cls, report: dict[str, Any]) -> Verdict:
        checks = [CheckValue(c["name"], c["value"], c["turns"]) for c in report["checks"]]
        return cls(report["verdict"], report["n"], report["eps"], report.get("reasons", []), checks)


@dataclass(frozen=True)
class Measurement:
    """One audit beside the best known attack. It is a row of the table's JSON file."""

    name: str
    family: str
    half: int
    honest: bool
    declared: float | None  # accuracy under the declared gradient; None if it could not run
    best_known: float  # accuracy under the best known attack
    gap: float | None
    cpu_seconds: float
    report: Verdict
    budget: str = UNKNOWN
    classifier: str = UNKNOWN  # of the whole table; robust cases have their own
    n: int | None = None  # images that were asked for; None: the budget's

    @property
    def made_with(self) -> str:
        """Return the options that all rows of a table share."""
        images = "the budget's images" if self.n is None else f"{self.n} images"
        return f"budget {self.budget}, {self.classifier}, {images}"

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Measurement:
        return cls(**{**row, "report": Verdict.from_dict(row["report"])})

    @property
    def is_unreliable(self) -> bool:
        return self.report.verdict == "unreliable"

    @property
    def is_judged(self) -> bool:
        return self.report.verdict != "not judged"

    @property
    def should_be_unreliable(self) -> bool | None:
        """Return the right verdict; None if a masked purifier hides little, so that both are right.

        If the declared gradient gives no accuracy, it hides everything.
        """
        if self.honest:
            return False
        return True if self.gap is None or self.gap >= GAP else None

    @property
    def is_wrong(self) -> bool:
        expected = self.should_be_unreliable
        return expected is not None and self.is_judged and self.is_unreliable != expected

    @property
    def decisive_checks(self) -> str:
        return ", ".join(check.name for check in self.report.checks if check.turns)


def format_percent(accuracy: float | None, missing: str = "") -> str:
    return missing if accuracy is None else f"{100 * accuracy:.1f}"


def format_progress(row: Measurement) -> str:
    return (
        f"{row.name}: declared {format_percent(row.declared, 'none')},"
        f" best known {format_percent(row.best_known)}: {row.report.verdict}"
        f" ({row.decisive_checks}){' WRONG' if row.is_wrong else ''}"
    )


def format_page(rows: Sequence[Measurement], dataset: str) -> str:
    """Return the page in Markdown, of rows that were made with the same options."""
    budget, classifier = rows[0].budget, rows[0].classifier
    reports = [row.report for row in rows]
    images = " or ".join(map(str, sorted({report.n for report in reports})))
    paragraphs = [
        f"# Misses and false alarms of the audit: {dataset}",
        fill(
            f"`docs/results/audit_thresholds.py` writes this page. It shows audits on {images}"
            f" images of {dataset} val, at eps {reports[0].eps:.6g} unless another eps is named,"
            f" with budget {budget} and {classifier}.",
            COLUMNS,
        ),
        fill(TERMS, COLUMNS),
        format_rates(rows),
        format_families(rows),
        format_table(rows),
        "## Values of each check that would separate honest from masked purifiers",
        fill(
            "The table shows the range of each value in the half that sets thresholds, with the"
            " number of purifiers. If the ranges do not overlap, the last column is the value half"
            " way between them.",
            COLUMNS,
        ),
        format_suggestions(rows),
    ]
    return "\n\n".join(paragraphs) + "\n"


def format_rates(rows: Sequence[Measurement]) -> str:
    """Return the misses and false alarms of both halves as a list."""
    lines = []
    for half, title in ((1, "the half that judges"), (0, "the half that set the thresholds")):
        members = [row for row in rows if row.half == half]
        masked_rows = [row for row in members if row.should_be_unreliable is True]
        honest_rows = [row for row in members if row.should_be_unreliable is False]
        breakable = [
            row for row in honest_rows if row.declared is not None and row.declared >= MIN_ACCURACY
        ]
        lines += [
            f"- {title}: {count_wrong(masked_rows)} misses",
            f"- {title}: {count_wrong(honest_rows)} false alarms",
            "  - with something to gain (the declared gradient leaves"
            f" {100 * MIN_ACCURACY:g} % or more): {count_wrong(breakable)}",
        ]
    return "\n".join(lines)


def count_wrong(rows: Sequence[Measurement]) -> str:
    """Return how many verdicts are wrong of those that were given, with their Wilson interval, and
    how many were not given.
    """
    judged = [row for row in rows if row.is_judged]
    wrong = sum(row.is_wrong for row in judged)
    low, high = wilson(wrong, len(judged)) if judged else (0.0, 1.0)
    rate = f"{wrong} of {len(judged)} (95 %: {100 * low:.0f} to {100 * high:.0f} %)"
    open_count = len(rows) - len(judged)
    return f"{rate}, {open_count} not judged," if open_count else rate


def format_families(rows: Sequence[Measurement]) -> str:
    """Return the misses of each family: its members are similar, so that few of them are enough."""
    lines = [
        "| family | half | masked purifiers with a gap of 5 points or more | missed |",
        "|---|---|---|---|",
    ]
    for family in dict.fromkeys(row.family for row in rows if not row.honest):
        members = [row for row in rows if row.family == family]
        masked_rows = [row for row in members if row.should_be_unreliable]
        missed = sum(row.is_wrong for row in masked_rows)
        half = HALVES[members[0].half]
        lines.append(f"| {family} | {half} | {len(masked_rows)} | {missed} |")
    return "\n".join(lines)


def format_table(rows: Sequence[Measurement]) -> str:
    lines = [
        "| purifier | half | n | declared gradient, % | best known attack, % | gap, points"
        " | verdict | decisive checks | CPU time, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (
            f"{row.name} (honest)" if row.honest else row.name,
            HALVES[row.half],
            str(row.report.n),
            format_percent(row.declared),
            format_percent(row.best_known),
            format_percent(row.gap),
            row.report.verdict,
            row.decisive_checks,
            f"{row.cpu_seconds:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def format_suggestions(rows: Sequence[Measurement]) -> str:
    """Return for each check with a number its ranges, and the middle if they do not overlap."""
    lines = [
        "| check | honest | masked, gap of 5 points or more | half way between |",
        "|---|---|---|---|",
    ]
    setting = [row for row in rows if row.half == 0]
    for name in [check.name for check in rows[0].report.checks]:
        honest = values_of(name, [row for row in setting if row.should_be_unreliable is False])
        hidden = values_of(name, [row for row in setting if row.should_be_unreliable is True])
        if honest and hidden:
            cells = (name, format_range(honest), format_range(hidden), middle(honest, hidden))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def values_of(name: str, rows: Sequence[Measurement]) -> list[float]:
    """Return the numbers that a check measured."""
    values = []
    for row in rows:
        for check in row.report.checks:
            if check.name == name and check.value is not None:
                values.append(check.value)
    return values


def format_range(values: Sequence[float]) -> str:
    return f"{min(values):.3g} to {max(values):.3g} ({len(values)})"


def middle(honest: Sequence[float], hidden: Sequence[float]) -> str:
    """Return the value half way between two ranges, if they do not overlap."""
    if max(honest) < min(hidden):
        return f"{(max(honest) + min(hidden)) / 2:.3g}"
    if max(hidden) < min(honest):
        return f"{(max(hidden) + min(honest)) / 2:.3g}"
    return "they overlap"
