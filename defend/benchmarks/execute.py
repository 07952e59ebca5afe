"""Execute a job: attack one pipeline on one range, and score the images behind each defense."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from defend.attack import Attack
from defend.attack_state import StateFile
from defend.benchmarks.attacking import AttackFailure, AttackResult, sweep_eps
from defend.benchmarks.calibration import Calibrations
from defend.benchmarks.cell import Cell
from defend.benchmarks.components import Components
from defend.benchmarks.gradient_probe import (
    FirstGradient,
    GradientCounts,
    ObservedTarget,
    check_attacked_pipeline,
    check_finite_logits,
    count_unusable,
    separate_target,
)
from defend.benchmarks.hash_once import HashOnce
from defend.benchmarks.jobs import AttackJob, OnUnitDone, UnitTask
from defend.benchmarks.range_scores import CleanCache, CleanScores, RangeScores
from defend.benchmarks.saved_images import SavedImages
from defend.benchmarks.scoring import Scores
from defend.benchmarks.writer import Writer
from defend.errors import BadWeights
from defend.gradients import FIXED_GRADIENTS
from defend.noise import Noise
from defend.plugin_checks import describe_crash
from defend.purifier import Backward, Relaxed
from defend.tasks.targeted import next_class
from defend.threat_models import Pipeline, gradient_kind, temperature_of
from defend.unit_files import CLEAN_DETAIL, DETAIL, TARGET_REACHED, write_unit

SAMPLES = 6  # images of the first range that are kept for the report
SAMPLE_VALUES = 2**21  # pixel values of them, at most: one photograph
JOINED_VALUES = 2**24  # pixel values of several eps that are scored in one batch
ScoresByDefense = dict[tuple[Pipeline, float], Scores | Exception]  # (scored pipeline, eps)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Cost and diagnostics of one unit. Losses are sums over its images."""

    forwards: int  # of the attack, one for each image and copy
    backwards: int
    seconds: float
    purify_images_per_second: float
    zero_gradients: int
    undefined_gradients: int
    unchanged: int  # images that the attack returned as they were
    loss_before: float
    loss_after: float
    draws_differ: bool


class Executor:
    """Executes jobs in this process, and keeps what several of them need."""

    def __init__(
        self,
        components: Components,
        run_dir: Path,
        provenance: dict[str, Any],
        writer: Writer,
        save_images: int = 0,
    ) -> None:
        self.components, self.run_dir = components, run_dir
        self.saved_images = SavedImages(run_dir, save_images)
        self.provenance, self.writer = provenance, writer
        self.clean_cache: CleanCache = {}
        self.calibrations = Calibrations(components)

    def execute(self, job: AttackJob, on_unit_done: OnUnitDone) -> None:
        """Compute the job's units. A unit that fails leaves no file; the others go on."""
        owed = {task.key for task in job.tasks}

        def report(key: str, images: int, error: str | None) -> None:
            owed.discard(key)
            on_unit_done(key, images, error)

        try:
            _JobRun(self, job, report).run()
        except Exception as e:  # data that cannot be read, a device without memory
            error = describe_error(e)
            self.writer.submit(lambda: self._fail_owed(job, owed, error, report))

    @staticmethod
    def _fail_owed(job: AttackJob, owed: set[str], error: str, report: OnUnitDone) -> None:
        """Fail the units that are not written, after those that wait in the writer."""
        for key in sorted(owed):
            report(key, job.images, error)


def describe_error(error: Exception) -> str:
    """Return the reason of a failed unit in one line, with the line of a plugin."""
    return describe_crash(error)[:500]


class _JobRun:
    """One job being executed. An error of a component fails its units, with the reason."""

    def __init__(self, executor: Executor, job: AttackJob, on_unit_done: OnUnitDone) -> None:
        self.executor, self.components = executor, executor.components
        self.job, self.on_unit_done = job, on_unit_done
        device = self.components.device
        data, self.task = self.components.data, job.cell.task
        self.x, y = (t.to(device) for t in data.rows(job.cell.split, job.start, job.stop))
        self.reference = self.task.reference(self.x, y, data.classes)
        self.noise = Noise.of(job.cell.seed, torch.arange(job.start, job.stop, device=device))
        self.first_gradient = FirstGradient(self.x)
        self.scores = RangeScores(
            self.components,
            executor.calibrations,
            executor.clean_cache,
            self.x,
            self.reference,
            self.noise,
            job.start,
        )

    def run(self) -> None:
        for results in self._groups(self._attack()):
            scores = self._score(results)
            for result in results:
                self._finish_eps(result, scores)

    def _tasks_at(self, eps: float) -> list[UnitTask]:
        return [task for task in self.job.tasks if task.cell.eps.value == eps]

    # Attacking.

    @cached_property
    def target(self) -> ObservedTarget:
        """The attacked pipeline. Raises what its components raise."""
        cell, attacked = self.job.cell, self.job.cell.attacked
        is_scored = cell.threat_model.may_drop and self.components.precision == "float32"
        return ObservedTarget(
            classifier=self.components.classifier(attacked.classifier).network,
            purifier=self.components.defense(attacked.defense),
            noise=self.noise.fork("attack"),
            backward=self._backward(attacked),
            eot=cell.eot,
            scored=is_scored,  # in bfloat16 a repacked batch may round an image right again
            access=self._attack_component.card.access,
            task=self.task,
            first_gradient=self.first_gradient,
            state_file=self._state_file,
        )

    def _state_file(self, eps: float) -> StateFile:
        """Return where the attack may keep its state at an eps until the units are written."""
        return StateFile(self.executor.run_dir / "rounds" / self._tasks_at(eps)[0].key)

    @property
    def _attack_component(self) -> Attack:
        return self.components.attack(self.job.cell.bare_attack)

    @property
    def attack_reference(self) -> Tensor:
        """What the attack gets as y: for a targeted attack the next class of each image."""
        if not self._attack_component.is_targeted:
            return self.reference
        return next_class(self.reference, self.components.data.classes)

    def _backward(self, attacked: Pipeline) -> Backward | None:
        """Return what replaces the declared gradient; None for the declared one."""
        if attacked.gradient in FIXED_GRADIENTS:
            return FIXED_GRADIENTS[attacked.gradient]
        if attacked.gradient and gradient_kind(attacked.gradient) == "relaxed":
            return Relaxed(temperature_of(attacked.gradient))
        if attacked.gradient != "learned":
            return None
        network = self.components.bpda.get(attacked.classifier, attacked.defense)
        expected = self.job.tasks[0].key_inputs["attacked"]["learned"]
        if network.sha256 != expected:
            raise BadWeights(
                f"learned gradient of {attacked.defense}: expected fitted weights"
                f" {expected[:12]}..., got {network.sha256[:12]}...; run it again"
            )
        return network.backward

    def _attack(self) -> Iterator[AttackResult | AttackFailure]:
        """Yield the images of each eps, the largest first: on it the defenses are checked."""
        cell = self.job.cell
        epsilons = sorted({task.cell.eps.value for task in self.job.tasks}, reverse=True)
        try:
            attack, target = self._attack_component, self.target
            if self.job.start == 0:
                needs_gradient = attack.card.access == "gradient"
                check_attacked_pipeline(target, self.x, self.reference, needs_gradient)
        except Exception as e:  # a pipeline may raise anything: all units fail
            yield from (AttackFailure(eps=eps, error=e) for eps in epsilons)
            return
        positive = [eps for eps in epsilons if eps > 0]
        noise = self.noise.fork("start")
        goal = self.attack_reference
        yield from sweep_eps(attack, cell.bare_attack, target, self.x, goal, positive, noise)
        if 0.0 in epsilons:
            yield AttackResult(
                eps=0.0, x_adv=self.x, forwards=0, backwards=0, seconds=0.0, notes={}
            )

    def _groups(
        self, results: Iterable[AttackResult | AttackFailure]
    ) -> Iterator[list[AttackResult]]:
        """Yield results that are scored in one batch.

        Only where the attack shares its work between eps: a slow attack's units are written one
        by one, so that an interrupted run loses little.
        """
        shares_work = type(self._attack_component).sweep is not Attack.sweep
        at_once = max(1, JOINED_VALUES // max(1, self.x.numel())) if shares_work else 1
        group: list[AttackResult] = []
        for result in results:
            if isinstance(result, AttackFailure):
                self._fail(self._tasks_at(result.eps), result.error)
                continue
            group.append(result)
            if len(group) == at_once:
                yield group
                group = []
        if group:
            yield group

    # Scoring.

    def _score(self, results: Sequence[AttackResult]) -> ScoresByDefense:
        """Return the scores of each defense at each eps, or why there are none."""
        scores: ScoresByDefense = {}
        cells = {task.cell.scored: task.cell for task in self.job.tasks}
        for pipeline, cell in cells.items():
            scored = [r for r in results if self._is_scored_at(pipeline, r.eps)]
            attacked = [r for r in scored if not self._is_known_from_clean(r.eps)]
            outcomes = self.scores.score(cell, [r.x_adv for r in attacked])
            for result, outcome in zip(attacked, outcomes, strict=True):
                scores[pipeline, result.eps] = outcome
            if len(attacked) < len(scored):
                scores[pipeline, 0.0] = self._clean_scores(cell)
        return scores

    def _is_known_from_clean(self, eps: float) -> bool:
        """Return True if the clean scores are those of an attack at this eps, which is 0 then.

        Ranges whose images are kept are scored nevertheless, and so is a task whose details under
        attack differ from those of clean images.
        """
        are_kept = self.job.start < max(1, self.executor.saved_images.count)
        return eps == 0 and not are_kept and not self.task.measured

    def _clean_scores(self, cell: Cell) -> Scores | Exception:
        try:
            return self.scores.clean(cell).as_scores()
        except Exception as e:  # a purifier may raise anything
            return e

    def _is_scored_at(self, pipeline: Pipeline, eps: float) -> bool:
        return any(task.cell.scored == pipeline for task in self._tasks_at(eps))

    @cached_property
    def gradient_counts(self) -> GradientCounts:
        """Images whose gradient no attack could follow; none where the attack needs none."""
        if self._attack_component.card.access != "gradient":
            return GradientCounts(zero=0, undefined=0)
        return count_unusable(self.target, self.first_gradient, self.reference)

    def _loss(self, x: Tensor) -> float:
        """Return the attacked pipeline's loss, summed over images. Raises BrokenPurifier."""
        logits = separate_target(self.target).logits(x.clone())
        check_finite_logits(self.target, x, logits)
        return float(self.task.loss(logits, self.reference).double().sum())

    @cached_property
    def loss_of_clean_images(self) -> float:
        """The attacked pipeline's loss before any attack."""
        return self._loss(self.x)

    def _losses(self, result: AttackResult, scores: ScoresByDefense) -> tuple[float, float]:
        """Return the attacked pipeline's loss before and after.

        They come from its scores where it is one of the scored pipelines.
        """
        attacked = replace(self.job.cell.attacked, gradient=None)  # as a scored pipeline
        for task in self._tasks_at(result.eps):
            outcome = scores[task.cell.scored, result.eps]
            if task.cell.scored == attacked and isinstance(outcome, Scores):
                return self.scores.clean(task.cell).loss, outcome.loss
        return self.loss_of_clean_images, self._loss(result.x_adv)

    # Units.

    def _finish_eps(self, result: AttackResult, scores: ScoresByDefense) -> None:
        """Write the units of one eps."""
        tasks = self._tasks_at(result.eps)
        try:
            losses = self._losses(result, scores)
            counts = self.gradient_counts
        except Exception as e:  # the attacked pipeline may fail on adversarial images alone
            self._fail(tasks, e)
            return
        unchanged = int((result.x_adv == self.x).flatten(1).all(1).sum())
        images_hash = HashOnce(result.x_adv)
        for task in tasks:
            outcome = scores[task.cell.scored, result.eps]
            if isinstance(outcome, Exception):
                self._fail([task], outcome)
                continue
            try:
                clean = self.scores.clean(task.cell)
            except Exception as e:
                self._fail([task], e)
                continue
            costs = Costs(
                forwards=result.forwards,
                backwards=result.backwards,
                seconds=result.seconds + outcome.seconds,
                purify_images_per_second=clean.images_per_second,
                zero_gradients=counts.zero,
                undefined_gradients=counts.undefined,
                unchanged=unchanged,
                loss_before=losses[0],
                loss_after=losses[1],
                draws_differ=outcome.draws_differ,
            )
            images = {"clean": self.x, "adversarial": result.x_adv, "purified": outcome.first_draw}
            self._write(task, self._tensors(result, outcome, clean), images, images_hash, costs)

    def _tensors(
        self, result: AttackResult, scores: Scores, clean: CleanScores
    ) -> dict[str, Tensor]:
        """Return what a unit file holds."""
        tensors = dict(scores.outcomes)
        if "select" not in tensors:
            clean_score = clean.outcomes["score"]
            tensors["score"] = self.task.under_attack(tensors["score"], clean_score)
        tensors |= {f"clean_{name}": values for name, values in clean.outcomes.items()}
        tensors |= {f"{DETAIL}{name}": values for name, values in scores.details.items()}
        tensors |= {f"{CLEAN_DETAIL}{name}": values for name, values in clean.details.items()}
        tensors |= {f"note_{name}": values for name, values in result.notes.items()}
        if self._attack_component.is_targeted and len(scores.first_logits):
            is_reached = scores.first_logits.argmax(1) == self.attack_reference
            tensors[TARGET_REACHED] = is_reached.cpu()
        if self.job.start == 0:
            samples = max(1, min(SAMPLES, SAMPLE_VALUES // self.x[0].numel()))
            images = {"x": self.x, "adv": result.x_adv, "purified": scores.first_draw}
            for name, batch in images.items():
                tensors[f"sample_{name}"] = batch[:samples].half().cpu()
        return tensors

    def _write(
        self,
        task: UnitTask,
        tensors: dict[str, Tensor],
        images: dict[str, Tensor],
        images_hash: HashOnce,
        costs: Costs,
    ) -> None:
        """Let the writer's thread hash the images, save those that are kept, and write the unit."""

        def write() -> None:
            header = {
                "key_inputs": task.key_inputs,
                "provenance": self.executor.provenance,
                "start": self.job.start,
                "stop": self.job.stop,
                "x_adv_sha256": images_hash.value,
                "costs": asdict(costs),
            }
            calibrated = self.executor.calibrations.task_of(task.cell)
            if calibrated.thresholds:
                header["thresholds"] = calibrated.thresholds
                header["accepted"] = calibrated.accepted
            try:
                self.executor.saved_images.save(task, self.job.start, images)
                write_unit(self.executor.run_dir, task.key, tensors, header)
                self._state_file(task.cell.eps.value).remove()
            except Exception as e:  # a full disk; the other units go on
                self._fail([task], e)
            else:
                self.on_unit_done(task.key, self.job.images, None)

        self.executor.writer.submit(write)

    def _fail(self, tasks: Sequence[UnitTask], error: Exception) -> None:
        for task in tasks:
            self.on_unit_done(task.key, self.job.images, describe_error(error))
