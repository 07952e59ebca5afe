"""Precision and layout: as asked, or measured once for each machine and classifier. Settled by the parent, kept in DIR/run.json."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from defend.benchmarks.components import Components, component_key
from defend.benchmarks.suite import Suite
from defend.benchmarks.units import NumericSettings
from defend.classifier import Classifier
from defend.files import cache_folder
from defend.hashing import canonical

_ROUNDS = 3  # the best of these counts


def settled(
    suite: Suite, device: torch.device, run_dir: Path, data_root: str | None
) -> NumericSettings:
    """`auto` keeps what the run's folder, else the user's cache, says; else it measures."""
    frame = NumericSettings(
        precision=suite.precision, layout=suite.layout, threads=suite.threads, device=device.type
    )
    if "auto" in (suite.precision, suite.layout):
        kept = _read(run_dir / "run.json")
        asked = {k: kept.get("suite", {}).get(k) for k in ("precision", "layout")}
        if (kept.get("threads"), kept.get("device"), asked) != (
            frame.threads,
            frame.device,
            {"precision": suite.precision, "layout": suite.layout},
        ):
            kept = _measured(suite, device, data_root)
        frame = NumericSettings(
            **{
                **asdict(frame),
                **{k: kept[k] for k in ("precision", "layout") if getattr(suite, k) == "auto"},
            }
        )
    return frame


def keep_frame(frame: NumericSettings, suite: Suite, run_dir: Path) -> None:
    (run_dir / "run.json").write_text(
        json.dumps(asdict(frame) | {"suite": suite.spelled()}, indent=1) + "\n"
    )


def _measured(suite: Suite, device: torch.device, data_root: str | None) -> dict[str, Any]:
    """The fastest forward and backward pass of the first classifier, by machine and component."""
    classifier = Components(suite.dataset, data_root, device).classifier(suite.classifiers[0])
    name = canonical(
        [
            component_key(classifier, "classifier"),
            device.type,
            platform.processor(),
            os.cpu_count(),
            suite.threads,
            suite.precision,
            suite.layout,
            str(torch.__version__),
        ]
    )
    cache = cache_folder() / "tune" / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
    if kept := _read(cache):
        return kept
    choices = [
        (p, q)
        for p in _options(suite.precision, "float32", "bfloat16")
        for q in _options(suite.layout, "contiguous", "channels_last")
    ]
    before = torch.get_num_threads()
    torch.set_num_threads(suite.threads)
    try:
        precision, layout = min(choices, key=lambda c: _seconds(classifier, device, *c))
    finally:
        torch.set_num_threads(before)
    found = {"precision": precision, "layout": layout}
    with suppress(OSError):  # where nothing can be kept, it is measured again next time
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(json.dumps(found))
    return found


def _options(asked: str, *known: str) -> tuple[str, ...]:
    return known if asked == "auto" else (asked,)


def _seconds(classifier: Classifier, device: torch.device, precision: str, layout: str) -> float:
    classifier.run_as(precision, layout)
    x = classifier.example(64).to(device).requires_grad_()
    times = []
    for _ in range(_ROUNDS + 1):  # the first warms up
        began = time.perf_counter()
        torch.autograd.grad(classifier.network(x).sum(), x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError):
        return {}
