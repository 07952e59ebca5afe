"""results.csv, a line for each cell, and summary.json, which holds what no single cell can."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import fields
from io import StringIO
from typing import Any

from defend.records import Measured, Record
from defend.results.claim_text import format_claim
from defend.results.diagnostics import (
    Finding,
    encode_finding,
    encode_flag,
    encode_training_mark,
    format_finding,
)
from defend.results.model import Compared, Number, Section, Table, Worst
from defend.results.report.marks import format_marks
from defend.results.training_knowledge import find_training_marks, format_trained_on

_SCALARS = (str, int, float, bool, type(None))
_TRAININGS = ("trained_on", "classifier_trained_on")  # written in words
_MEASURED = ("score", "clean_score")  # three columns each
_LAST = "flags"


def format_csv(records: Sequence[Record], accusations: Sequence[Sequence[Finding]]) -> str:
    """Return a line for each cell: fields of one value, what trainings knew in words, and marks.

    Flags, the findings that accuse the cell and its training marks are code=value, joined by "; ".
    A cell without a value is empty. A column "run" tells two versions of one component apart.
    accusations: of each record, as a Table holds them.
    """
    columns = ["run"] if any(r.run for r in records) else []
    columns += [name for name in Record.model_fields if _is_column(name, records)]
    measures = list(dict.fromkeys(name for r in records for name in _measured_of(r)))
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*columns, *_measured_columns(measures), _LAST])
    for record, findings in zip(records, accusations, strict=True):
        values = [_to_scalar(record, name) for name in columns]  # None is written as nothing
        values += _measured_values(record, measures)
        writer.writerow([*values, _encode_marks(record, findings)])
    return out.getvalue()


def _measured_of(record: Record) -> dict[str, Measured]:
    """Return the scores that are no shares, and what the task measures beside them, by name."""
    scores = {"score": record.score, "clean_score": record.clean_score}
    return {k: v for k, v in scores.items() if v is not None} | dict(record.measures)


def _measured_columns(names: Sequence[str]) -> list[str]:
    columns = []
    for name in names:
        columns += [name, f"{name}_low", f"{name}_high"]
    return columns


def _measured_values(record: Record, names: Sequence[str]) -> list[float | None]:
    values: list[float | None] = []
    for name in names:
        number = _measured_of(record).get(name)
        values += [None] * 3 if number is None else [number.value, number.low, number.high]
    return values


def _is_column(name: str, records: Sequence[Record]) -> bool:
    if name in _TRAININGS:
        return True
    if name in _MEASURED:
        return False
    return name != _LAST and all(isinstance(getattr(r, name), _SCALARS) for r in records)


def _to_scalar(record: Record, name: str) -> Any:
    value = getattr(record, name)
    return format_trained_on(value) if name in _TRAININGS else value


def _encode_marks(record: Record, findings: Sequence[Finding]) -> str:
    codes = [encode_flag(flag) for flag in record.flags or ()]
    codes += map(encode_finding, findings)
    codes += map(encode_training_mark, find_training_marks(record))
    return "; ".join(dict.fromkeys(codes))


def format_json(model: Table) -> str:
    """Return worst cases, pairs, claims, what keeps a defense from one, and how to read it all."""
    worst = []
    for section in model.sections:
        worst += [_worst_to_dict(section, w) for w in section.worst]
    summary = {
        "worst": worst,
        "comparisons": [_pair_to_dict(pair) for pair in model.comparisons],
        "measures": model.measures,
        "measure_pairs": model.measure_pairs,
        "claims": [format_claim(claim) for claim in model.claims],
        "surrogates": model.surrogates,
        "signs": model.signs,
        "findings": [format_finding(finding) for finding in model.findings],
        "unconfirmed": model.unconfirmed,
        "training": model.training,
        "reading": model.footnotes,
    }
    return json.dumps(summary, indent=1, allow_nan=False) + "\n"


def _pair_to_dict(pair: Compared) -> dict[str, Any]:
    values = {field.name: getattr(pair, field.name) for field in fields(pair)}
    return {**values, "significant": pair.significant}


def _worst_to_dict(section: Section, worst: Worst) -> dict[str, Any]:
    trained_on = worst.cells[0].trained_on
    return {
        "section": section.title,
        "defense": worst.defense,
        "purifier": worst.purifier,
        "trained_on": [training.to_json() for training in trained_on],
        "classifier_trained_on": [t.to_json() for t in section.classifier_trained_on],
        "training_marks": list(map(encode_training_mark, worst.training_marks)),
        "eps": worst.eps,
        "eps_text": worst.eps_text,
        "number": _number_to_dict(worst.number),
        "clean": _number_to_dict(worst.clean),
        "candidates": worst.candidates,
        "draws": worst.draws,
        "all_draws": worst.all_draws,
        "majority": worst.majority,
        "control": None if worst.control is None else _number_to_dict(worst.control),
        "controls": worst.controls,
        "passes": worst.passes,
        "purify_ms": worst.purify_ms,
        "claim": format_claim(worst.claim),
    }


def _number_to_dict(number: Number) -> dict[str, Any]:
    return {
        "value": number.value,
        "unit": number.unit,
        "low": number.low,
        "high": number.high,
        "note": number.note,
        "bound": number.bound,
        "flags": format_marks(number),
        "failed": number.failed,
    }
