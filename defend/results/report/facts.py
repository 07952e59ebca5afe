"""The facts of a report: what was run, what each defense was, where the numbers come from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defend.errors import count_of
from defend.records import Record
from defend.results.diagnostics import format_measured
from defend.results.training_knowledge import format_classifier, format_trained_on
from defend.tasks.registry import DEFAULT, load_task

MAX_EPS = 6  # values that are listed one by one


def describe_run(records: Sequence[Record]) -> dict[str, str]:
    """Return what the run was, in a few lines."""
    failed = sum(r.failed for r in records)
    cells = f"{len(records)}, {failed} failed" if failed else str(len(records))
    tasks = {"task": _join(r.task for r in records)}
    return {
        **({} if set(tasks.values()) == {DEFAULT} else tasks),
        "data set": _join(r.dataset for r in records),
        "classifier": _join(
            format_classifier(r.classifier_label, r.classifier_trained_on) for r in records
        ),
        "defenses": _join(r.defense_label for r in records),
        "attacks": _join(_name_attack(r) for r in records),
        "eps": _format_eps(records),
        "images": _join(f"{r.n} of {r.split}" for r in records),
        "cells": cells,
    }


def describe_numbers(records: Sequence[Record]) -> str:
    """Return what each number of the report is: "the share of all images that are still right"."""
    texts = []
    for task in map(load_task, dict.fromkeys(r.task for r in records)):
        if task.name == DEFAULT:
            texts.append("the share of all images that are still right")
        elif task.unit == "share":
            texts.append(f"at the task {task} the share of all images {task.score_means}")
        else:
            texts.append(f"at the task {task} the {task.score_means} in {task.unit}")
    return ", ".join(texts)


def format_score(record: Record) -> str:
    """Return the number of a cell with its unit: "25.0 % right", "31.4 dB"."""
    task = load_task(record.task)
    if record.number is None:
        return "no number"
    text = format_measured(record.number.value, task.unit)
    return f"{text} {task.score_means}" if task.unit == "share" else text


def _name_attack(record: Record) -> str:
    return "harmless controls" if record.is_control else record.attack


def _format_eps(records: Sequence[Record]) -> str:
    by_eps = sorted(records, key=lambda r: r.eps)
    texts = [text for _, text in dict.fromkeys((r.eps, r.eps_text) for r in by_eps)]
    if len(texts) <= MAX_EPS:
        return ", ".join(texts)
    return f"{texts[0]} to {texts[-1]}, {len(texts)} values"


@dataclass(frozen=True, kw_only=True)
class DefenseFacts:
    """What a defense is, with the settings in force."""

    name: str
    gradient: str  # declared
    draws: str
    trained_on: str
    learned: str  # error of the learned gradient
    speed: str  # images per second
    settings: str


def describe_defenses(records: Sequence[Record]) -> list[DefenseFacts]:
    """Return the facts of each defense."""
    by_name: dict[str, list[Record]] = {}
    for record in records:
        by_name.setdefault(record.defense_label, []).append(record)
    return [_describe_defense(name, cells) for name, cells in by_name.items()]


def _describe_defense(name: str, cells: Sequence[Record]) -> DefenseFacts:
    first = cells[0]
    errors = [r.gradient_error for r in cells if r.gradient_error is not None]
    return DefenseFacts(
        name=name,
        gradient=first.declared_gradient,
        draws=f"stochastic, {count_of(first.draws, 'draw')}"
        if first.stochastic
        else "deterministic",
        trained_on=format_trained_on(first.trained_on) or "nothing",
        learned=f"{errors[0]:.2f}" if errors else "",
        speed=_format_median(r.purify_images_per_second for r in cells),
        settings=_format_settings(first.settings.defense),
    )


def describe_provenance(records: Sequence[Record], folders: Sequence[Path]) -> dict[str, str]:
    """Return versions, device, seeds, settings and weights, and how each run was started."""
    facts = {
        "versions": _join(_format_versions(r) for r in records),
        "commit": _join(r.commit or "none: installed" for r in records),
        "device": _join(r.device for r in records),
        "seed": _join(str(r.seed) for r in records),
        "EOT copies": _join(str(r.eot) for r in records),
        "attack settings": _join(
            (f"{r.attack} {_format_settings(r.settings.attack)}" for r in records), "; "
        ),
        "classifier settings": _join(
            (f"{r.classifier_label} {_format_settings(r.settings.classifier)}" for r in records),
            "; ",
        ),
        "weights (sha256)": _format_weights(records),
        "seconds of work": f"{sum(r.seconds or 0 for r in records):.0f}, over all cells",
    }
    for folder in folders:
        run = _read_run_file(folder)
        if run:
            facts[f"run {folder.name}"] = _format_settings(run)
    return facts


def _format_versions(record: Record) -> str:
    return ", ".join(f"{name} {version}" for name, version in record.versions.items())


def _format_weights(records: Iterable[Record]) -> str:
    weights: dict[str, str] = {}
    for record in records:
        weights |= record.weights
    return ", ".join(f"{name} {sha256[:16]}" for name, sha256 in weights.items()) or "none"


def _read_run_file(folder: Path) -> Mapping[str, Any]:
    """Return how the run was started, from its run.json; nothing if that is absent or damaged."""
    try:
        content = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _format_settings(settings: Any) -> str:
    """Return key = value for a mapping, and the settings of the members of a list in order."""
    if isinstance(settings, Mapping):
        return ", ".join(f"{key} = {_format_value(value)}" for key, value in settings.items())
    if isinstance(settings, list | tuple):
        return "; ".join(map(_format_settings, settings))
    return str(settings)


def _format_value(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple):
        return f"({_format_settings(value)})"
    return str(value)


def _format_median(values: Iterable[float | None]) -> str:
    measured = sorted(value for value in values if value is not None)
    return f"{measured[len(measured) // 2]:,.0f}" if measured else ""


def _join(values: Iterable[str], separator: str = ", ") -> str:
    """Return the distinct values in order."""
    return separator.join(dict.fromkeys(values))
