"""`defend.bench`: suite -> cells -> units -> records. Existing units are read, not computed."""

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
from defend.benchmarks.cell import Cell
from defend.benchmarks.choose_numerics import choose_numerics, keep_numerics
from defend.benchmarks.components import Components
from defend.benchmarks.describe_images import DescribedImages, ImageDescriber
from defend.benchmarks.engines.local import RunSettings, run_jobs
from defend.benchmarks.expand import expand
from defend.benchmarks.jobs import AttackJob, UnitTask
from defend.benchmarks.live_objects import name_objects
from defend.benchmarks.make_record import make_record
from defend.benchmarks.saved_images import SavedImages
from defend.benchmarks.suite import Suite, load_suite, make_suite
from defend.benchmarks.units import KeyInputs, shard_size, split_ranges
from defend.dataset import Dataset
from defend.errors import BadParameter
from defend.files import PART, checkout, ensure_writable, user_path
from defend.hashing import cache_key, canonical_json, tensor_sha256
from defend.loading import load, pick_device
from defend.numerics import NumericSettings, numerics_applied, start_device
from defend.plain_numbers import whole_number
from defend.progress import Progress
from defend.record_list import Records
from defend.records import Record, merge_records, take_up_records
from defend.tasks.registry import load_task
from defend.unit_files import Unit, read_unit, unit_path

ABANDONED_AFTER = 3600.0  # seconds; a unit file is written in milliseconds


@dataclass(frozen=True, kw_only=True)
class PlannedUnit:
    """One unit of a cell on a range of images."""

    start: int
    stop: int
    task: UnitTask

    @property
    def images(self) -> int:
        """Return the number of images."""
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """A cell and its units, in the order of their ranges."""

    cell: Cell
    units: tuple[PlannedUnit, ...]
    described: DescribedImages  # on which it is measured


@torch.inference_mode(False)
def bench(
    suite: Mapping[str, Any] | str | Path | None = None,
    *,
    out: str | Path | None = None,
    workers: int | None = None,
    device: str = "auto",
    data_root: str | None = None,
    progress: bool = False,
    trust: bool = False,
    save_images: int = 0,
    **keys: Any,
) -> Records:
    """Run a suite and return one record for each cell, in the order of the suite.

    suite: a dict or a TOML file; keys replace its keys. In place of specs they may hold objects: an
    nn.Module or an ART PyTorchClassifier as a classifier, a Purifier, an Attack, a Dataset or two
    arrays (x, y) as data; then one worker computes. Without either, the embedded suite.
    Where they do not say n, it is 1,000 or all images of the split, whichever is less.
    trust: the suite file may run the files of code that it names.
    save_images: keep the clean, adversarial and purified images of the first so many of each cell,
    in the folder images/ of the run.
    The units lie in `out` (default runs/<suite>); what is there is not computed again.
    Raises DefendError for what the caller can mend. A cell that failed has its reason in `error`.
    """
    named, has_objects = name_objects(_merge(suite, keys, trust), data_root)
    validated = make_suite(named)
    if "n" not in validated.model_fields_set and validated.protocol is None:
        validated = validated.model_copy(update={"n": available_images(validated, data_root)})
    if workers is not None and (workers := whole_number(workers, "workers")) < 1:
        raise BadParameter(f"workers {workers}: expected a whole number >= 1")
    if (save_images := whole_number(save_images, "save_images")) < 0:
        raise BadParameter(f"save_images {save_images}: expected a whole number >= 0")
    chosen_device = pick_device(device)
    start_device(chosen_device)
    run_dir = user_path(out) if out is not None else Path("runs") / validated.name
    numerics = choose_numerics(validated, chosen_device, run_dir, data_root)
    components = Components(
        validated.dataset, data_root, chosen_device, numerics.precision, numerics.layout
    )
    cells, skipped = expand(validated, components)
    _prepare_folder(run_dir, numerics, validated)
    bar = Progress(progress, skipped)
    with numerics_applied(numerics):
        components.bpda.fit_all(_learned_pipelines(cells), bar.say)
        planned = _plan(validated, cells, components, numerics)
    settings = RunSettings(
        dataset=validated.dataset,
        data_root=data_root,
        run_dir=run_dir,
        numerics=numerics,
        provenance=provenance_of(chosen_device),
        save_images=save_images,
    )
    # Objects are found in this process alone.
    devices = _worker_devices(chosen_device, 1 if has_objects else workers)
    units, errors = _compute(planned, components, settings, devices, bar)
    records = Records(_record(p, components, settings, units, errors) for p in planned)
    _keep_records(run_dir, records)
    return records


def _keep_records(run_dir: Path, records: Sequence[Record]) -> None:
    """Write the records into the folder. Raises BadParameter, as for a full disk."""
    try:
        merge_records(run_dir, records)
    except OSError as e:
        raise BadParameter(
            f"{run_dir}: the records cannot be written there: {e.strerror}. The units are stored:"
            " make room, and the same command computes nothing again"
        ) from None


def _merge(
    suite: Mapping[str, Any] | str | Path | None, keys: Mapping[str, Any], trust: bool
) -> dict[str, Any]:
    """Return the keys of the suite, replaced by those that are given."""
    if isinstance(suite, Mapping):
        base = dict(suite)
    elif suite is not None or not keys:
        base = load_suite(suite, trust)
    else:
        base = {}
    return base | {k: v for k, v in keys.items() if v is not None}


def available_images(suite: Suite, data_root: str | None) -> int:
    """Return n of the suite, or the size of its split where that has fewer images.

    Raises DefendError if the data set cannot be loaded.
    """
    data: Dataset = load(suite.dataset, "dataset", root=data_root)
    return min(suite.n, data.count(suite.split))


def _prepare_folder(run_dir: Path, numerics: NumericSettings, suite: Suite) -> None:
    """Make the folder after everything that can be wrong was checked.

    Nothing is computed for a folder whose records cannot be gone on with.
    """
    ensure_writable(run_dir)
    take_up_records(run_dir)
    _remove_abandoned_parts(run_dir)
    keep_numerics(numerics, suite, run_dir)


def _remove_abandoned_parts(run_dir: Path) -> None:
    """Remove what a killed run left half-written; another run in this folder may be writing."""
    for part in (run_dir / "units").glob(f"*/*{PART}"):
        with suppress(OSError):  # it is gone, or another user's
            if part.stat().st_mtime < time.time() - ABANDONED_AFTER:
                part.unlink(missing_ok=True)


def _learned_pipelines(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    return [
        (cell.attacked.classifier, cell.attacked.defense)
        for cell in cells
        if cell.attacked.gradient == "learned"
    ]


def _plan(
    suite: Suite, cells: Sequence[Cell], components: Components, numerics: NumericSettings
) -> list[PlannedCell]:
    """Return the units of each cell with their keys."""
    ranges = _ranges(suite, components)
    data_hashes, describer = {}, ImageDescriber()
    for start, stop in ranges:
        x, y = components.data.rows(suite.split, start, stop)
        data_hashes[start] = tensor_sha256(x, y)
        describer.add(x, y)
    has_claims = load_task(suite.task).has_claims
    described = describer.describe(components.data, suite.split, has_claims)
    key_inputs = KeyInputs(components, numerics)
    planned = []
    for cell in cells:
        shared = key_inputs.of_cell(cell)
        units = []
        for start, stop in ranges:
            inputs = {"data": data_hashes[start], "range": [start, stop], **shared}
            task = UnitTask(key=cache_key(inputs), key_inputs=inputs, cell=cell)
            units.append(PlannedUnit(start=start, stop=stop, task=task))
        planned.append(PlannedCell(cell=cell, units=tuple(units), described=described))
    return planned


def _ranges(suite: Suite, components: Components) -> list[tuple[int, int]]:
    changes = components.data.size_changes(suite.split)
    return split_ranges(suite.n, shard_size(suite.shard, components, suite.task), changes)


def _distinct_units(planned: Sequence[PlannedCell]) -> list[PlannedUnit]:
    """Return each unit once: two cells share one where their gradients are the same."""
    by_key: dict[str, PlannedUnit] = {}
    for cell in planned:
        for unit in cell.units:
            by_key[unit.task.key] = unit
    return list(by_key.values())


def _compute(
    planned: Sequence[PlannedCell],
    components: Components,
    settings: RunSettings,
    devices: Sequence[str],
    bar: Progress,
) -> tuple[dict[str, Unit | None], dict[str, str]]:
    """Return every unit, read or computed, and the reasons of those that could not be."""
    distinct = _distinct_units(planned)
    units = {u.task.key: read_unit(settings.run_dir, u.task.key) for u in distinct}
    saved = SavedImages(settings.run_dir, settings.save_images)
    missing = [
        unit
        for unit in distinct
        if units[unit.task.key] is None or not saved.is_complete(unit.task, unit.start, unit.stop)
    ]
    errors: dict[str, str] = {}

    def on_unit_done(key: str, images: int, error: str | None) -> None:
        if error is not None:
            errors[key] = error
        bar.advance(images)

    damaged = sum(
        units[unit.task.key] is None and unit_path(settings.run_dir, unit.task.key).exists()
        for unit in missing
    )
    if damaged:
        plural = "s" if damaged > 1 else ""
        bar.say(f"{damaged} damaged unit{plural} in {settings.run_dir}: computed again")
    with bar.counting(sum(unit.images for unit in missing)):
        run_jobs(_jobs(missing, components), settings, components, devices, on_unit_done)
    for unit in missing:
        if unit.task.key not in errors:
            units[unit.task.key] = read_unit(settings.run_dir, unit.task.key)
    return units, errors


def _jobs(missing: Sequence[PlannedUnit], components: Components) -> list[AttackJob]:
    """Group missing units that share an attack's work, the most expensive jobs first.

    So no worker is left with an expensive one at the end.
    """
    groups: dict[str, list[PlannedUnit]] = {}
    for unit in missing:
        inputs = unit.task.key_inputs
        shared = [inputs[k] for k in ("range", "data", "attacked", "attack", "seed", "eot")]
        groups.setdefault(canonical_json(shared), []).append(unit)
    jobs = [
        AttackJob(start=group[0].start, stop=group[0].stop, tasks=tuple(u.task for u in group))
        for group in groups.values()
    ]
    return sorted(jobs, key=lambda job: -_estimated_cost(job, components))


def _estimated_cost(job: AttackJob, components: Components) -> float:
    """Return a guess, for the order of the jobs alone."""
    steps = components.attack(job.cell.bare_attack).settings.get("steps", 1)
    steps = steps if isinstance(steps, int) else 1
    epsilons = {task.cell.eps.value for task in job.tasks}
    return float(job.images * job.cell.eot * steps * len(epsilons))


def _record(
    planned: PlannedCell,
    components: Components,
    settings: RunSettings,
    units: Mapping[str, Unit | None],
    errors: Mapping[str, str],
) -> Record:
    keys = [unit.task.key for unit in planned.units]
    error = next((errors[key] for key in keys if key in errors), None)
    return make_record(
        planned.cell,
        components,
        settings.numerics,
        keys,
        [units[key] for key in keys],
        settings.provenance,
        error,
        planned.described,
    )


def _worker_devices(device: torch.device, workers: int | None) -> list[str]:
    """Return one worker for each core on the CPU, one for each GPU.

    `cuda` without a number is all GPUs.
    """
    if device.type == "cpu":
        return ["cpu"] * (workers or _usable_cores())
    if device.index is not None:
        gpus = [str(device)]
    else:
        gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return [gpus[i % len(gpus)] for i in range(workers or len(gpus))]


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def provenance_of(device: torch.device) -> dict[str, Any]:
    """Return the versions, the commit and the device that a result is labelled with."""
    source = checkout()
    commit = None
    if source is not None:
        commit = source[0] + ("+dirty" if source[1] else "")
    is_cuda = device.type == "cuda"
    return {
        "versions": _versions(),
        "commit": commit,
        "device": torch.cuda.get_device_name(device) if is_cuda else "cpu",
    }


@cache
def _versions() -> dict[str, str]:
    return {
        "defend": defend.__version__,
        "python": platform.python_version(),
        "art": version("adversarial-robustness-toolbox"),
        "numpy": version("numpy"),
        "torch": version("torch"),
        "torchvision": version("torchvision"),
    }
