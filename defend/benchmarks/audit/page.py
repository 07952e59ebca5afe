"""The audit as one HTML page that works offline; every text of a plugin is escaped."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from defend.benchmarks.audit.model import Report
from defend.errors import BadParameter

MEANING = {
    "attack": "another attack: it turns the verdict where it breaks significantly more than the declared gradient's best",
    "required": "it turns the verdict where it fails or could not run",
    "sign": "it is said, and turns nothing",
}


def summary(report: Report) -> str:
    """What was audited, and its numbers, in one line."""
    a = report.about
    numbers = "the declared gradient's attack could not run"
    if a["declared"] is not None:
        numbers = f"clean {100 * a['clean_accuracy']:.1f} %, declared gradient {a['declared']}, lowest seen {100 * a['lowest_accuracy']:.1f} %"
    return f"{a['defense']} before {a['classifier']}, {a['n']} images of {a['dataset']} {a['split']}, {a['norm']} eps {a['eps']:.6g}: {numbers}"


def check_writable(path: Path) -> None:
    """Raises BadParameter before any work is done for nothing."""
    _write(path, "")


def write_page(report: Report, path: Path) -> None:
    """Raises BadParameter where it cannot be written."""
    env = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = files("defend.benchmarks").joinpath("audit.html").read_text(encoding="utf-8")
    _write(path, env.from_string(template).render(report=report, summary=summary(report), meaning=MEANING))


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8", newline="")
        if text:
            part.replace(path)
        else:
            part.unlink()
    except OSError as e:
        raise BadParameter(f"--out {path}: cannot be written: {e.strerror}. Give another file with --out.") from None
