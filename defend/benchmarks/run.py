"""`defend.bench`: suite -> cells -> units -> records. Units that exist are read; the others are made."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import defend
from defend.benchmarks.bpda_network import fit_bpda_networks
from defend.benchmarks.cell import Cell
from defend.benchmarks.components import Components, component_key
from defend.benchmarks.engines.local import RunSettings, numerics_applied, run_jobs
from defend.benchmarks.execute import AttackJob, UnitTask
from defend.benchmarks.expand import expand
from defend.benchmarks.numerics import keep_frame, settled
from defend.benchmarks.suite import Suite, load_suite, make_suite
from defend.benchmarks.units import NumericSettings, Unit, key_inputs, path_of, ranges, read_unit
from defend.errors import BadParameter
from defend.files import PART, checkout, writable
from defend.hashing import cache_key, canonical, tensor_sha256
from defend.load import pick_device
from defend.progress import Progress
from defend.records import keep, read_records, record


@dataclass(frozen=True, kw_only=True)
class CellUnits:
    """A cell and its units' tasks."""

    cell: Cell
    tasks: tuple[tuple[int, int, UnitTask], ...]  # start, stop


def bench(
    suite: Mapping[str, Any] | str | Path | None = None,
    *,
    out: str | Path | None = None,
    workers: int | None = None,
    device: str = "auto",
    data_root: str | None = None,
    progress: bool = False,
    **keys: Any,
) -> list[dict[str, Any]]:
    """Run a suite; one record for each cell, in the order of the suite. Keys replace those of `suite`, a dict or a TOML file.

    Without either, the embedded suite. The units lie in `out` (default runs/<suite>); what is there is not computed again.
    Raises DefendError for what the caller can mend. A cell that failed has its reason in `error`.
    """
    base = (
        dict(suite)
        if isinstance(suite, Mapping)
        else load_suite(suite)
        if suite is not None or not keys
        else {}
    )
    wanted = make_suite(base | {k: v for k, v in keys.items() if v is not None})
    if workers is not None and workers < 1:
        raise BadParameter(f"workers {workers}: expected a whole number >= 1")
    where = pick_device(device)
    run_dir = Path(out) if out is not None else Path("runs") / wanted.name
    frame = settled(wanted, where, run_dir, data_root)
    components = Components(wanted.dataset, data_root, where, frame.precision, frame.layout)
    cells, skipped = expand(wanted, components)
    writable(run_dir)  # nothing is left behind by a command that could not begin
    read_records(
        run_dir
    )  # and nothing is computed for a folder whose records cannot be gone on with
    _sweep(run_dir)
    keep_frame(frame, wanted, run_dir)
    bar = Progress(progress, skipped)
    with numerics_applied(frame):
        learned = [
            (c.attacked.classifier, c.attacked.defense)
            for c in cells
            if c.attacked.gradient == "learned"
        ]
        fit_bpda_networks(learned, components, bar.say)
    plans = _plans(wanted, cells, components, frame)
    setup = RunSettings(
        dataset=wanted.dataset,
        data_root=data_root,
        run_dir=run_dir,
        frame=frame,
        provenance=provenance_of(where),
    )
    found, errors = _make(plans, components, setup, _devices(where, workers), bar)
    records = [_record(plan, components, setup, found, errors) for plan in plans]
    keep(run_dir, records)
    return records


def _make(
    plans: Sequence[CellUnits],
    components: Components,
    setup: RunSettings,
    devices: Sequence[str],
    bar: Progress,
) -> tuple[dict[str, Unit | None], dict[str, str]]:
    """Every unit, read or made; and the reasons of those that could not be."""
    found = {task.key: read_unit(setup.run_dir, task.key) for _, _, task in _distinct(plans)}
    errors: dict[str, str] = {}

    def report(key: str, images: int, error: str | None) -> None:
        errors.update({key: error} if error else {})
        bar.advance(images)

    if damaged := sum(
        unit is None and path_of(setup.run_dir, key).exists() for key, unit in found.items()
    ):
        bar.say(
            f"{damaged} damaged unit{'s' if damaged > 1 else ''} in {setup.run_dir}: made again"
        )
    with bar.counting(
        sum(stop - start for start, stop, task in _distinct(plans) if found[task.key] is None)
    ):
        run_jobs(_jobs(plans, found, components), setup, components, devices, report)
    made = {
        key: read_unit(setup.run_dir, key)
        for key, unit in found.items()
        if unit is None and key not in errors
    }
    return found | made, errors


def _record(
    plan: CellUnits,
    components: Components,
    setup: RunSettings,
    found: Mapping[str, Unit | None],
    errors: Mapping[str, str],
) -> dict[str, Any]:
    keys = [task.key for _, _, task in plan.tasks]
    error = next((errors[k] for k in keys if k in errors), None)
    return record(
        plan.cell, components, setup.frame, keys, [found[k] for k in keys], setup.provenance, error
    )


def _sweep(run_dir: Path) -> None:
    """What a killed run left half-written, after an hour: a file is written in milliseconds, perhaps by another run in this folder."""
    for part in (run_dir / "units").glob(f"*/*{PART}"):
        with suppress(OSError):  # gone, or another user's: it is in nobody's way
            if part.stat().st_mtime < time.time() - 3600:
                part.unlink(missing_ok=True)


def _devices(device: torch.device, workers: int | None) -> list[str]:
    """One worker for each core on the CPU, one for each GPU; `cuda` without a number is all of them."""
    if device.type == "cpu":
        return ["cpu"] * (workers or _cores())
    gpus = (
        [str(device)]
        if device.index is not None
        else [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    )
    return [gpus[i % len(gpus)] for i in range(workers or len(gpus))]


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _plans(
    suite: Suite, cells: Sequence[Cell], components: Components, frame: NumericSettings
) -> list[CellUnits]:
    spans = ranges(suite.n, suite.shard)
    data = {
        start: tensor_sha256(*components.data.rows(suite.split, start, stop))
        for start, stop in spans
    }
    plans = []
    for cell in cells:
        tasks = []
        for start, stop in spans:
            key_inputs = key_inputs(cell, start, stop, data[start], components, frame)
            tasks.append(
                (start, stop, UnitTask(key=cache_key(key_inputs), key_inputs=key_inputs, cell=cell))
            )
        plans.append(CellUnits(cell=cell, tasks=tuple(tasks)))
    return plans


def _distinct(plans: Sequence[CellUnits]) -> list[tuple[int, int, UnitTask]]:
    """Each unit once: two cells may share one, as identity and declared do behind a purifier that declares the identity."""
    return list(
        {
            task.key: (start, stop, task) for plan in plans for start, stop, task in plan.tasks
        }.values()
    )


def _jobs(
    plans: Sequence[CellUnits], found: Mapping[str, Unit | None], components: Components
) -> list[AttackJob]:
    """Missing units that share an attack's work go together; the dearest first, so that no worker is left with it at the end."""
    groups: dict[str, list[tuple[int, int, UnitTask]]] = {}
    for start, stop, task in _distinct(plans):
        if found[task.key] is None:
            made = task.key_inputs
            shared = [
                start,
                stop,
                made["data"],
                made["attacked"],
                made["attack"],
                made["seed"],
                made["eot"],
            ]
            groups.setdefault(canonical(shared), []).append((start, stop, task))
    jobs = [
        AttackJob(start=g[0][0], stop=g[0][1], tasks=tuple(t for _, _, t in g))
        for g in groups.values()
    ]
    return sorted(jobs, key=lambda job: -_cost(job, components))


def _cost(job: AttackJob, components: Components) -> float:
    """A guess, for the order alone."""
    cell = job.tasks[0].cell
    steps = component_key(components.attack(cell.bare_attack), "attack")["settings"].get("steps", 1)
    return float(
        (job.stop - job.start)
        * cell.eot
        * (steps if isinstance(steps, int) else 1)
        * len({t.cell.eps.value for t in job.tasks})
    )


def provenance_of(device: torch.device) -> dict[str, Any]:
    found = checkout()
    return {
        "versions": _versions(),
        "commit": found and found[0] + "+dirty" * found[1],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


@cache
def _versions() -> dict[str, str]:
    packages = {
        "art": "adversarial-robustness-toolbox",
        "numpy": "numpy",
        "torch": "torch",
        "torchvision": "torchvision",
    }
    return {
        "defend": defend.__version__,
        "python": platform.python_version(),
        **{k: version(p) for k, p in packages.items()},
    }
