"""Settle precision and layout before a run: as asked, or measured once for each machine.

The choice is kept in DIR/run.json, and in the user's cache.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from defend.benchmarks.components import Components
from defend.benchmarks.suite import Suite
from defend.numerics import (
    Candidate,
    NumericSettings,
    candidates,
    check_winograd,
    choose_once,
    fastest,
)
from defend.winograd import eligible

RUN_FILE = "run.json"
IMAGES = 64  # of the measured batch


def choose_numerics(
    suite: Suite, device: torch.device, run_dir: Path, data_root: str | None
) -> NumericSettings:
    """Return the settings of a run.

    `auto` keeps what the run's folder says, else the user's cache; else it measures.
    """
    asked = NumericSettings(
        precision=suite.precision, layout=suite.layout, threads=suite.threads, device=device.type
    )
    check_winograd(suite.precision, suite.layout, device.type)
    if "auto" not in (suite.precision, suite.layout):
        return asked
    choice = _read_choice(run_dir, suite, asked) or _measured_choice(suite, device, data_root)
    return replace(asked, precision=choice.precision, layout=choice.layout)


def keep_numerics(numerics: NumericSettings, suite: Suite, run_dir: Path) -> None:
    """Write the settings and the suite into the run's folder."""
    text = json.dumps(asdict(numerics) | {"suite": suite.to_dict()}, indent=1)
    (run_dir / RUN_FILE).write_text(text + "\n")


def _read_choice(run_dir: Path, suite: Suite, asked: NumericSettings) -> Candidate | None:
    """Return the choice of an earlier run that asked for the same, in this folder."""
    earlier = _read_json(run_dir / RUN_FILE)
    earlier_suite = earlier.get("suite", {})
    was_asked = (
        earlier.get("threads"),
        earlier.get("device"),
        earlier_suite.get("precision"),
        earlier_suite.get("layout"),
    )
    if was_asked != (asked.threads, asked.device, suite.precision, suite.layout):
        return None
    return Candidate(earlier["precision"], earlier["layout"])


def _measured_choice(suite: Suite, device: torch.device, data_root: str | None) -> Candidate:
    """Return what runs the first classifier fastest, from the cache or measured now."""
    components = Components(suite.dataset, data_root, device)
    facts = {
        "classifier": components.key("classifier", suite.classifiers[0]),
        "device": device.type,
        "threads": suite.threads,
        "asked": [suite.precision, suite.layout],
    }
    return choose_once(facts, lambda: _measure(suite, components))


def _measure(suite: Suite, components: Components) -> Candidate:
    classifier = components.classifier(suite.classifiers[0])
    x = classifier.example(IMAGES).to(components.device).requires_grad_()

    has_winograd = components.device.type == "cpu" and bool(eligible(classifier.net))
    options = candidates(suite.precision, suite.layout, has_winograd)

    def run(candidate: Candidate) -> None:
        classifier.run_as(candidate.precision, candidate.layout)
        torch.autograd.grad(classifier.network(x).sum(), x)

    threads = torch.get_num_threads()
    torch.set_num_threads(suite.threads)
    try:
        return fastest(options, run, components.device)
    finally:
        torch.set_num_threads(threads)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError):
        return {}
