"""The audit's report as one HTML page that works offline; texts of plugins are escaped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from defend.auditing.verdict import COULD_NOT_RUN, WEIGHT_MEANINGS, AuditReport, CheckRow
from defend.errors import BadParameter
from defend.files import write_file
from defend.results.html import make_environment
from defend.results.training_knowledge import format_trained_on


def summarise(report: AuditReport) -> str:
    """Return what was audited and its accuracies, in one line."""
    subject = report.subject
    return (
        f"{subject.defense} before {subject.classifier}, {subject.n} images of"
        f" {subject.dataset} {subject.split}, {subject.norm} eps {subject.eps:.6g}:"
        f" {_format_accuracies(report)}"
    )


def _format_accuracies(report: AuditReport) -> str:
    clean = report.accuracies.clean_accuracy
    lowest = report.accuracies.lowest_accuracy
    if clean is None or lowest is None:
        return "the attacks through the declared gradient could not run"
    return (
        f"clean {100 * clean:.1f} %, declared gradient {report.accuracies.declared},"
        f" lowest under any attack {100 * lowest:.1f} %"
    )


def rows_to_print(report: AuditReport) -> list[CheckRow]:
    """Return the checks, with each error once: one fault of a plugin stops many of them."""
    printed: set[str] = set()
    for reason in report.reasons:
        printed.update(row.measured for row in report.checks if reason.endswith(row.measured))
    rows = []
    for row in report.checks:
        is_repeated = row.measured.startswith(COULD_NOT_RUN) and row.measured in printed
        printed.add(row.measured)
        rows.append(replace(row, measured=f"{COULD_NOT_RUN}: see above") if is_repeated else row)
    return rows


def _describe(report: AuditReport) -> dict[str, Any]:
    """Return what was audited, with what each training knew in words."""
    subject = report.subject
    return {
        **report.about,
        "trained_on": format_trained_on(subject.trained_on) or "nothing",
        "classifier_trained_on": format_trained_on(subject.classifier_trained_on) or "nothing",
    }


def write_page(report: AuditReport, path: Path) -> None:
    """Write the page. Raises BadParameter if the file cannot be written."""
    template = make_environment().get_template("audit.html")
    text = template.render(
        report=report,
        rows=rows_to_print(report),
        about=_describe(report),
        summary=summarise(report),
        weight_meanings=WEIGHT_MEANINGS,
    )
    try:
        write_file(path, text)
    except OSError as e:
        raise BadParameter(
            f"--out {path}: cannot be written: {e.strerror}. Give another file with --out."
        ) from None
