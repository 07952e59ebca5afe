"""The audit as one HTML page that works offline; every text of a plugin is escaped."""

from __future__ import annotations

from pathlib import Path

from defend.audit.verdict import AuditReport
from defend.errors import BadParameter
from defend.files import write_file
from defend.results.html import templates

MEANING = {
    "attack": "another attack: it turns the verdict where it breaks significantly more than the declared gradient's best",
    "required": "it turns the verdict where it fails or could not run",
    "sign": "it is said, and turns nothing",
}


def summary(report: AuditReport) -> str:
    """What was audited, and its numbers, in one line."""
    a = report.about
    numbers = "the declared gradient's attack could not run"
    if a["declared"] is not None:
        numbers = f"clean {100 * a['clean_accuracy']:.1f} %, declared gradient {a['declared']}, lowest seen {100 * a['lowest_accuracy']:.1f} %"
    return f"{a['defense']} before {a['classifier']}, {a['n']} images of {a['dataset']} {a['split']}, {a['norm']} eps {a['eps']:.6g}: {numbers}"


def write_page(report: AuditReport, path: Path) -> None:
    """Raises BadParameter where it cannot be written."""
    text = (
        templates()
        .get_template("audit.html")
        .render(report=report, summary=summary(report), meaning=MEANING)
    )
    try:
        write_file(path, text)
    except OSError as e:
        raise BadParameter(
            f"--out {path}: cannot be written: {e.strerror}. Give another file with --out."
        ) from None
