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

from defend.attack import Attack
from defend.benchmarks.cell import Cell
from defend.benchmarks.digest import sha256_of
from defend.benchmarks.imitation import imitation
from defend.benchmarks.parts import Parts
from defend.benchmarks.scoring import check_finite, check_memory, check_word, judged, purified
from defend.benchmarks.units import write_unit
from defend.errors import BadWeights, BrokenAttack, one_line
from defend.losses import cross_entropy
from defend.noise import Noise
from defend.norms import check_attacked
from defend.purifier import Backward, identity
from defend.target import Target

SELECT = 10  # draws on which worst cases are chosen; `score` draws are for reading off
DRAWN = 4  # draws, of which one at least should differ
SAMPLES = 6  # images kept for the report, of the first unit


@dataclass(frozen=True, kw_only=True)
class Task:
    """One unit to be made."""

    key: str
    made_of: dict[str, Any]
    cell: Cell


@dataclass(frozen=True, kw_only=True)
class Job:
    """All missing units that share an attack's work: the same data, range, attacked pipeline, attack and seed."""

    start: int
    stop: int
    tasks: tuple[Task, ...]


Report = Callable[[str, int, str | None], None]  # key, images done, error
Notes = dict[str, Tensor]  # what the attack says of each image: (b, ...)


@dataclass(frozen=True)
class Attacked:
    """One eps."""

    eps: float
    x_adv: Tensor | Exception  # or why there is none
    costs: dict[str, Any]
    notes: Notes


def work(job: Job, parts: Parts, run_dir: Path, provenance: dict[str, Any], report: Report) -> None:
    """Writes the job's units. A unit that fails leaves no file; the others go on."""
    cell = job.tasks[0].cell
    x, y = (t.to(parts.device) for t in parts.data.rows(cell.split, job.start, job.stop))
    root = Noise.of(cell.seed, torch.arange(job.start, job.stop, device=parts.device))
    scorer = _Scorer(parts, root, x, y)
    for made in _attacked(job, parts, root, x, y, sorted({t.cell.eps.value for t in job.tasks})):
        for task in [t for t in job.tasks if t.cell.eps.value == made.eps]:
            _guarded(task, lambda t=task, a=made: _unit(t, job, scorer, a, run_dir, provenance), report, len(x))  # type: ignore[misc]


def _guarded(task: Task, make: Callable[[], None], report: Report, images: int) -> None:
    try:
        make()
    except Exception as e:  # a purifier may raise anything: its unit fails, with the reason, and its siblings go on
        report(task.key, images, _line(e))
    else:
        report(task.key, images, None)


def _line(e: Exception) -> str:
    return f"{type(e).__name__}: {one_line(e)}"[:500]


def _attacked(job: Job, parts: Parts, root: Noise, x: Tensor, y: Tensor, epsilons: Sequence[float]) -> Iterator[Attacked]:
    """Each eps; eps 0 is the clean image."""
    cell = job.tasks[0].cell
    try:
        target = _target(job, parts, root)
        watch = _Watch(target, x, y, parts.attack(cell.bare_attack))
    except Exception as e:  # a pipeline may raise anything: all its units fail, with the reason
        yield from (Attacked(eps, e, {}, {}) for eps in epsilons)
        return
    swept = _swept(cell, parts, target, root, x, y, [e for e in epsilons if e > 0])
    free = [Attacked(0.0, x, {"forwards": 0, "backwards": 0, "seconds": 0.0}, {})] if 0.0 in epsilons else []
    for made in chain(swept, free):
        if isinstance(made.x_adv, Tensor):
            try:
                made = replace(made, costs=made.costs | watch.flags(made.x_adv))
            except Exception as e:  # a purifier may raise on adversarial images alone
                made = replace(made, x_adv=e)
        yield made


def _swept(cell: Cell, parts: Parts, target: Target, root: Noise, x: Tensor, y: Tensor, epsilons: list[float]) -> Iterator[Attacked]:
    """An eps at which the attack fails leaves the others alone: the sweep begins again behind it."""
    while epsilons:
        began = time.perf_counter()
        try:
            for x_adv in parts.attack(cell.bare_attack).sweep(target, x.clone(), y.clone(), list(epsilons), root.fork("start")):
                check_attacked(x_adv, x, epsilons[0], cell.norm, cell.bare_attack)
                notes = _notes(target, len(x), cell.bare_attack)
                yield Attacked(epsilons.pop(0), x_adv.detach(), {**target.counts, "seconds": time.perf_counter() - began}, notes)
                began = time.perf_counter()
            error: Exception = BrokenAttack(f"{cell.bare_attack}: gave fewer images than it was asked for")
        except Exception as e:  # an attack may raise anything: its unit fails, with the reason, and the run goes on
            error = e
        if epsilons:
            yield Attacked(epsilons.pop(0), error, {}, {})


def _notes(target: Target, images: int, attack: str) -> Notes:
    """Raises BrokenAttack where a note is not of each image."""
    for name, values in target.notes.items():
        if len(values) != images:
            raise BrokenAttack(f"{attack}: its note {name!r} is of shape {tuple(values.shape)}; expected one row for each of {images} images")
    return {name: values.cpu() for name, values in target.notes.items()}


def _target(job: Job, parts: Parts, root: Noise) -> Target:
    cell = job.tasks[0].cell
    at = cell.attacked
    return Target(
        classifier=parts.classifier(at.classifier).network, purifier=parts.defense(at.defense), noise=root.fork("attack"),
        backward=_backward(job, parts), eot=cell.eot,
        scored=cell.drops and parts.precision == "float32",  # in bfloat16 a repacked batch may round an image right again
        access=parts.attack(cell.bare_attack).card.access,
    )  # fmt: skip


def _backward(job: Job, parts: Parts) -> Backward | None:
    """What replaces the declared gradient. Raises BadWeights where the learned one is not what the unit's key says."""
    at = job.tasks[0].cell.attacked
    if at.gradient != "learned":
        return identity if at.gradient == "identity" else None
    found, wanted = imitation(parts, at.classifier, at.defense), job.tasks[0].made_of["attacked"]["learned"]
    if found.sha256 != wanted:
        raise BadWeights(f"learned gradient of {at.defense}: fitted weights {found.sha256[:12]}..., the run began with {wanted[:12]}...; run it again")
    return found.backward


class _Watch:
    """What the record's local flags are made of, on noise of its own: an attack's costs and draws stay as they are."""

    def __init__(self, target: Target, x: Tensor, y: Tensor, attack: Attack) -> None:
        self.x, self.y, self.target = x, y, Target(target.classifier, target.purifier, target.noise.fork("flags"), target.backward, target.eot)
        self.seen: dict[str, Any] = {}
        self.before = self._loss(x)
        self._check(x)
        if attack.card.access == "gradient":
            self.seen |= self._slopes()

    def _check(self, x: Tensor) -> None:
        target = self.target.again()
        first, second = target.logits(x.clone()), target.logits(x.clone())
        check_finite(target.purifier, first)
        check_word(target.purifier, first, second)

    def _slopes(self) -> dict[str, int]:
        """On the grid of 256 levels, and half a step off it, where attacks climb. The sign of NaN is 0: such a pixel just stands still."""
        off = (self.x + (self.target.noise.fork("off the grid").uniform(self.x) - 0.5) / 255).clamp(0, 1)
        slopes = torch.stack([self.target.again().gradient(z, self.y, cross_entropy)[0].flatten(1) for z in (self.x, off)])
        dead, wild = (slopes == 0).all(2).any(0), ~slopes.isfinite().all(2).all(0)
        return {"zero_gradients": int(dead.sum()), "undefined_gradients": int(wild.sum())}

    def _loss(self, x: Tensor) -> float:
        return float(cross_entropy(self.target.again().logits(x.clone()), self.y).double().sum())

    def flags(self, x_adv: Tensor) -> dict[str, Any]:
        same = int((x_adv == self.x).flatten(1).all(1).sum())
        return {**self.seen, "unchanged": same, "loss_before": self.before, "loss_after": self._loss(x_adv)}


class _Scorer:
    """Is each image right, draw by draw? Clean outcomes are made once for each pipeline."""

    def __init__(self, parts: Parts, root: Noise, x: Tensor, y: Tensor) -> None:
        self.parts, self.root, self.x, self.y = parts, root, x, y
        self._range = sha256_of(x, y, root.uniform(x[:, :1, :1, :1]))

    def clean(self, cell: Cell) -> tuple[dict[str, Tensor], float]:
        """Outcomes on clean images, and images purified per second."""
        kept, key = self.parts.clean, (self._range, cell.classifier, cell.defense, cell.draws)
        if key not in kept:
            kept[key] = self._outcomes(cell, self.x)
        outcomes: tuple[dict[str, Tensor], float] = kept[key]
        return outcomes

    def outcomes(self, cell: Cell, x_adv: Tensor) -> dict[str, Tensor]:
        """uint8: `score` (b, draws); for stochastic defenses `select` (b, 10) too; the clean images' as clean_*."""
        clean, _ = self.clean(cell)
        found, _ = self._outcomes(cell, x_adv)
        self._check_memory(cell, x_adv)
        if not self.parts.defense(cell.defense).card.stochastic:
            found["score"] &= clean["score"]  # right if right clean and right attacked
        return found | {f"clean_{name}": t for name, t in clean.items()}

    def _outcomes(self, cell: Cell, x: Tensor) -> tuple[dict[str, Tensor], float]:
        forks = {"score": cell.draws} | ({"select": SELECT} if self.parts.defense(cell.defense).card.stochastic else {})
        seconds, out = 0.0, {}
        for fork, draws in forks.items():
            made = [self._right(cell, x, self.root.fork(fork).draw(draw)) for draw in range(draws)]
            out[fork] = torch.stack([right for right, _ in made], 1).to(torch.uint8).cpu()
            seconds += sum(spent for _, spent in made)
        return out, len(x) * sum(forks.values()) / max(seconds, 1e-9)

    def _check_memory(self, cell: Cell, x: Tensor) -> None:
        used, noise = self.parts.defense(cell.defense), self.root.fork("score").draw(0)
        net = self.parts.classifier(cell.classifier).network
        check_memory(used, *(judged(p, net, purified(p, x, noise)) for p in (used, self.parts.fresh_defense(cell.defense))))

    def _right(self, cell: Cell, x: Tensor, noise: Noise) -> tuple[Tensor, float]:
        """One draw: (b,), and the seconds that purifying took. What the card calls deterministic is held to it on these very images."""
        purifier, net = self.parts.defense(cell.defense), self.parts.classifier(cell.classifier).network
        began = _now(x.device)
        images = purified(purifier, x, noise)
        spent, logits = _now(x.device) - began, judged(purifier, net, images)
        if not purifier.card.stochastic:
            check_word(purifier, logits, judged(purifier, net, purified(purifier, x, noise.fork("flags"))))
        return logits.argmax(1) == self.y, spent

    def drew(self, cell: Cell, x: Tensor) -> bool:
        """Does noise change any pixel, where the card says so? What it calls stochastic is asked fewer queries, and no search is told to go on."""
        purifier, noise = self.parts.defense(cell.defense), self.root.fork("score")
        if not purifier.card.stochastic:
            return False
        first, *others = (purified(purifier, x, noise.draw(k)) for k in range(DRAWN))
        return any(not torch.equal(first, other) for other in others)

    def samples(self, cell: Cell, x_adv: Tensor) -> dict[str, Tensor]:
        """The first images, for the report's strips."""
        x, adv = self.x[:SAMPLES], x_adv[:SAMPLES]
        noise = self.root.take(slice(0, len(x))).fork("score").draw(0)
        images = {"sample_x": x, "sample_adv": adv, "sample_purified": purified(self.parts.defense(cell.defense), adv, noise)}
        return {name: t.half().cpu() for name, t in images.items()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _unit(task: Task, job: Job, scorer: _Scorer, made: Attacked, run_dir: Path, provenance: dict[str, Any]) -> None:
    x_adv, costs = made.x_adv, made.costs
    if isinstance(x_adv, Exception):
        raise x_adv
    began = time.perf_counter()
    tensors = scorer.outcomes(task.cell, x_adv) | {f"note_{name}": t for name, t in made.notes.items()}
    if job.start == 0:
        tensors |= scorer.samples(task.cell, x_adv)
    header = {
        "made_of": task.made_of, "provenance": provenance, "start": job.start, "stop": job.stop, "x_adv_sha256": sha256_of(x_adv),
        "costs": {
            **costs, "seconds": costs["seconds"] + time.perf_counter() - began, "purify_images_per_second": scorer.clean(task.cell)[1],
            "drew": scorer.drew(task.cell, x_adv),
        },
    }  # fmt: skip
    write_unit(run_dir, task.key, tensors, header)
