"""What a worker does: attack one pipeline on one range of images, and score the images behind each defense that asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from defend.benchmarks.bpda_network import bpda_network
from defend.benchmarks.cell import Cell
from defend.benchmarks.components import Components
from defend.benchmarks.gradient_probe import GradientProbe
from defend.benchmarks.scoring import RangeScorer
from defend.benchmarks.units import write_unit
from defend.errors import BadWeights, BrokenAttack, one_line
from defend.hashing import tensor_sha256
from defend.noise import Noise
from defend.norms import check_attacked
from defend.purifier import Backward, identity
from defend.target import Target


@dataclass(frozen=True, kw_only=True)
class UnitTask:
    """One unit to be made."""

    key: str
    key_inputs: dict[str, Any]
    cell: Cell


@dataclass(frozen=True, kw_only=True)
class AttackJob:
    """All missing units that share an attack's work: the same data, range, attacked pipeline, attack and seed."""

    start: int
    stop: int
    tasks: tuple[UnitTask, ...]


OnUnitDone = Callable[[str, int, str | None], None]  # key, images done, error
Notes = dict[str, Tensor]  # what the attack says of each image: (b, ...)


@dataclass(frozen=True)
class Attacked:
    """One eps."""

    eps: float
    x_adv: Tensor | Exception  # or why there is none
    costs: dict[str, Any]
    notes: Notes


def execute_job(
    job: AttackJob,
    components: Components,
    run_dir: Path,
    provenance: dict[str, Any],
    report: OnUnitDone,
) -> None:
    """Writes the job's units. A unit that fails leaves no file; the others go on."""
    cell = job.tasks[0].cell
    x, y = (t.to(components.device) for t in components.data.rows(cell.split, job.start, job.stop))
    root = Noise.of(cell.seed, torch.arange(job.start, job.stop, device=components.device))
    scorer = RangeScorer(components, root, x, y)
    for made in _attacked(
        job, components, root, x, y, sorted({t.cell.eps.value for t in job.tasks})
    ):
        for task in [t for t in job.tasks if t.cell.eps.value == made.eps]:
            _guarded(
                task,
                lambda t=task, a=made: _unit(t, job, scorer, a, run_dir, provenance),
                report,
                len(x),
            )  # type: ignore[misc]


def _guarded(task: UnitTask, make: Callable[[], None], report: OnUnitDone, images: int) -> None:
    try:
        make()
    except Exception as e:  # a purifier may raise anything: its unit fails, with the reason, and its siblings go on
        report(task.key, images, _line(e))
    else:
        report(task.key, images, None)


def _line(e: Exception) -> str:
    return f"{type(e).__name__}: {one_line(e)}"[:500]


def _attacked(
    job: AttackJob,
    components: Components,
    root: Noise,
    x: Tensor,
    y: Tensor,
    epsilons: Sequence[float],
) -> Iterator[Attacked]:
    """Each eps; eps 0 is the clean image."""
    cell = job.tasks[0].cell
    try:
        target = _target(job, components, root)
        watch = GradientProbe(target, x, y, components.attack(cell.bare_attack))
    except Exception as e:  # a pipeline may raise anything: all its units fail, with the reason
        yield from (Attacked(eps, e, {}, {}) for eps in epsilons)
        return
    swept = _swept(cell, components, target, root, x, y, [e for e in epsilons if e > 0])
    free = (
        [Attacked(0.0, x, {"forwards": 0, "backwards": 0, "seconds": 0.0}, {})]
        if 0.0 in epsilons
        else []
    )
    for made in chain(swept, free):
        if isinstance(made.x_adv, Tensor):
            try:
                made = replace(made, costs=made.costs | watch.flags(made.x_adv))
            except Exception as e:  # a purifier may raise on adversarial images alone
                made = replace(made, x_adv=e)
        yield made


def _swept(
    cell: Cell,
    components: Components,
    target: Target,
    root: Noise,
    x: Tensor,
    y: Tensor,
    epsilons: list[float],
) -> Iterator[Attacked]:
    """An eps at which the attack fails leaves the others alone: the sweep begins again behind it."""
    while epsilons:
        began = time.perf_counter()
        try:
            for x_adv in components.attack(cell.bare_attack).sweep(
                target, x.clone(), y.clone(), list(epsilons), root.fork("start")
            ):
                check_attacked(x_adv, x, epsilons[0], cell.norm, cell.bare_attack)
                notes = _notes(target, len(x), cell.bare_attack)
                yield Attacked(
                    epsilons.pop(0),
                    x_adv.detach(),
                    {**target.counts, "seconds": time.perf_counter() - began},
                    notes,
                )
                began = time.perf_counter()
            error: Exception = BrokenAttack(
                f"{cell.bare_attack}: gave fewer images than it was asked for"
            )
        except Exception as e:  # an attack may raise anything: its unit fails, with the reason, and the run goes on
            error = e
        if epsilons:
            yield Attacked(epsilons.pop(0), error, {}, {})


def _notes(target: Target, images: int, attack: str) -> Notes:
    """Raises BrokenAttack where a note is not of each image."""
    for name, values in target.notes.items():
        if len(values) != images:
            raise BrokenAttack(
                f"{attack}: its note {name!r} is of shape {tuple(values.shape)}; expected one row for each of {images} images"
            )
    return {name: values.cpu() for name, values in target.notes.items()}


def _target(job: AttackJob, components: Components, root: Noise) -> Target:
    cell = job.tasks[0].cell
    at = cell.attacked
    return Target(
        classifier=components.classifier(at.classifier).network,
        purifier=components.defense(at.defense),
        noise=root.fork("attack"),
        backward=_backward(job, components),
        eot=cell.eot,
        scored=cell.drops
        and components.precision
        == "float32",  # in bfloat16 a repacked batch may round an image right again
        access=components.attack(cell.bare_attack).card.access,
    )


def _backward(job: AttackJob, components: Components) -> Backward | None:
    """What replaces the declared gradient. Raises BadWeights where the learned one is not what the unit's key says."""
    at = job.tasks[0].cell.attacked
    if at.gradient != "learned":
        return identity if at.gradient == "identity" else None
    found, wanted = (
        bpda_network(components, at.classifier, at.defense),
        job.tasks[0].key_inputs["attacked"]["learned"],
    )
    if found.sha256 != wanted:
        raise BadWeights(
            f"learned gradient of {at.defense}: fitted weights {found.sha256[:12]}..., the run began with {wanted[:12]}...; run it again"
        )
    return found.backward


def _unit(
    task: UnitTask,
    job: AttackJob,
    scorer: RangeScorer,
    made: Attacked,
    run_dir: Path,
    provenance: dict[str, Any],
) -> None:
    x_adv, costs = made.x_adv, made.costs
    if isinstance(x_adv, Exception):
        raise x_adv
    began = time.perf_counter()
    clean, found = scorer.clean(task.cell), scorer.attacked(task.cell, x_adv)
    tensors = (
        found.right
        | {f"clean_{name}": t for name, t in clean.right.items()}
        | {f"note_{name}": t for name, t in made.notes.items()}
    )
    if job.start == 0:
        tensors |= scorer.samples(x_adv, found)
    costs = costs | {
        "seconds": costs["seconds"] + time.perf_counter() - began,
        "purify_images_per_second": clean.images_per_second,
        "drew": found.drew,
    }
    header = {
        "made_of": task.key_inputs,
        "provenance": provenance,
        "start": job.start,
        "stop": job.stop,
        "x_adv_sha256": tensor_sha256(x_adv),
        "costs": costs,
    }
    write_unit(run_dir, task.key, tensors, header)
