"""The training loop: one function for classifiers and purifiers.

A resumed run gives the same weights as an undisturbed one, to the bit. Nothing random has a state:
batches, augmentations and dropout are functions of the seed and the step, and the learning rate is
a function of the step. Only tensors have to be stored: the network, its average and the
optimisers' momenta.

With precision=auto or layout=auto, the numerics of a fresh run are chosen by timing. Two fresh runs
may then choose differently and end with other weights; a resumed run takes the choice of its resume
file. For weights that can be reproduced, the recipe names both.

With `minutes` the schedule follows the wall clock, and a run can be repeated by its minutes alone.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from defend.errors import BadParameter
from defend.learned import SAVE_EVERY, autocast, set_layout
from defend.noise import Noise
from defend.numerics import Candidate, candidates, check_winograd, fastest
from defend.progress import TrainingProgress
from defend.training.average import WeightAverage
from defend.training.checkpoint import (
    Checkpoint,
    RunState,
    Tensors,
    add_prefix,
    check_same_run,
    load_checkpoint,
    optimiser_tensors,
    restore_optimiser,
    save_checkpoint,
    select_prefix,
)
from defend.training.data import Source
from defend.training.interrupts import HeldInterrupts
from defend.training.knowledge import add_earlier_files
from defend.training.objectives import (
    Loss,
    Objective,
    freeze_frozen_modules,
    make_trained_parts,
    train_mode,
)
from defend.training.options import LoopOptions
from defend.training.schedule import Schedule
from defend.winograd import eligible

Score = Callable[[nn.Module], float]  # on validation images; higher is better


def train(
    net: nn.Module,
    source: Source,
    objectives: Loss | Sequence[Objective],
    options: LoopOptions,
    score: Score | None = None,
    resume: Path | None = None,
    save_every: float = SAVE_EVERY,
    progress: TrainingProgress | bool = True,
    identity: Mapping[str, Any] | None = None,
) -> None:
    """Fit the parameters of `net` that require gradients, on the device that it is on.

    objectives: one loss, or several `Objective`s, each with an optimiser of its own. All of them
    get the same batch and the same noise, one after another. Modules of the type `Frozen`, and
    parameters that require no gradient, do not change by one bit. Afterwards `net` holds the
    weights that the options select (the last, the average or the best), frozen, in eval mode.

    score: called at the end of each epoch, while `net` holds the averaged weights in eval mode.
    resume: a file that is written every `save_every` seconds and at Control-C, and read if it
    exists; the caller deletes it. identity: what else a resume file must agree with. Raises
    BadParameter if the file belongs to another run, or if a loss is no longer finite.
    """
    if options.keep == "best" and score is None:
        raise BadParameter(
            "recipe: expected validation images for keep=best, got none; give some, or keep=last"
        )
    if callable(objectives):
        objectives = (Objective("loss", objectives),)
    display = TrainingProgress(progress) if isinstance(progress, bool) else progress
    device = next(net.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            run = TrainingRun(
                net, source.to(device), objectives, options, score, resume, display, identity or {}
            )
            run.complete(save_every)
        finally:
            set_layout(net, "contiguous")
            net.zero_grad(set_to_none=True)
            net.requires_grad_(False).eval()


class TrainingRun:
    """One call of `train`, at some step."""

    def __init__(
        self,
        net: nn.Module,
        source: Source,
        objectives: Sequence[Objective],
        options: LoopOptions,
        score: Score | None,
        resume: Path | None,
        progress: TrainingProgress,
        identity: Mapping[str, Any],
    ) -> None:
        self.net = net
        self.source = source
        self.options = options
        self.device = next(net.parameters()).device
        self.score = score
        self.path = resume
        self.progress = progress
        self.identity = identity
        self.interrupts = HeldInterrupts()

        self.batch = min(options.batch, source.epoch)
        steps = max(1, round(options.epochs * source.epoch / self.batch))
        self.schedule = Schedule(options, steps)
        self.step = 0
        self.in_step = False  # whether the state is that of no whole number of steps
        self.best = -math.inf
        self.best_tensors: Tensors = {}
        self.loss_sums = torch.zeros(len(objectives), device=self.device)  # of this epoch
        self.summed = 0  # the number of losses in each of loss_sums

        freeze_frozen_modules(net)
        self.parts = make_trained_parts(net, objectives, options)
        checkpoint = self._read_checkpoint()
        if checkpoint:
            self.numerics = Candidate(**checkpoint.state.numerics)
        else:
            self.numerics = self._measure_numerics()
        set_layout(net, self.numerics.layout)
        self.average = WeightAverage(net, options.ema) if options.ema else None
        if checkpoint:
            self._restore(checkpoint)
        self.compiled: nn.Module = net
        if options.compile:
            self.compiled = torch.compile(net)  # type: ignore[assignment]

    def complete(self, save_every: float) -> None:
        """Take all remaining steps, then load the weights that the options select into `net`."""
        images = self.schedule.total_steps(self.step) * self.batch
        completed = self.step * self.batch
        with self.progress.counting(images, completed), self.interrupts:
            try:
                self._take_remaining_steps(save_every)
            except KeyboardInterrupt:
                self._save_interrupted()
                raise
        if self.options.keep == "best":
            self.net.load_state_dict(self.best_tensors)
        elif self.average:
            self.net.load_state_dict(self.average.net.state_dict())

    def _take_remaining_steps(self, save_every: float) -> None:
        last_save = time.perf_counter()
        while True:
            self.interrupts.check()
            is_over = self.schedule.is_over(self.step)
            # A run that was interrupted while it measured the quality begins with that.
            if self.summed and (is_over or self._at_end_of_epoch):
                self._end_epoch()
            self.interrupts.check()
            if is_over:
                return
            self._take_step()
            self.progress.advance(self.batch)
            self.progress.expect(self.schedule.total_steps(self.step) * self.batch)
            if self.path and time.perf_counter() - last_save >= save_every:
                self._save()
                last_save = time.perf_counter()

    def _save_interrupted(self) -> None:
        """Write the resume file, unless a step was cut off: the file of before is then the last."""
        if self.path and not self.in_step:
            self._save()
            self.progress.say_if_shown(
                f"interrupted at step {self._position}, saved in {self.path};"
                " train again with the same options to go on"
            )

    @property
    def _at_end_of_epoch(self) -> bool:
        """Return True if the last step went over the end of an epoch."""
        images = self.step * self.batch
        epochs_before = (images - self.batch) // self.source.epoch
        return images // self.source.epoch > epochs_before

    @property
    def _position(self) -> str:
        """The step and the number of all steps, as in "3 of 10"."""
        return f"{self.step} of {self.schedule.total_steps(self.step)}"

    def _take_step(self) -> None:
        self.in_step = True
        share = self.options.share = self.schedule.share(self.step)
        rate = self.schedule.learning_rate(self.step, share)
        train_mode(self.net)
        for k, part in enumerate(self.parts):
            with part.alone():
                with autocast(self.device, self.numerics.precision):
                    loss = self._compute_loss(part.objective.loss, self.compiled, self.step)
                part.descend(loss, rate, self.options.clip)
            self.loss_sums[k] += loss.detach()
        if self.average:
            self.average.update(self.net, self.step)
        self.summed += 1
        self.step += 1
        self.in_step = False

    def _compute_loss(self, loss: Loss, net: nn.Module, step: int) -> Tensor:
        start, seed = step * self.batch, self.options.seed
        torch.manual_seed((seed << 32) + step)  # for dropout
        x, y = self.source.batch(start, self.batch, seed)
        numbers = torch.arange(start, start + self.batch, device=self.device)
        return loss(net, x, y, Noise.of(seed, numbers).fork("loss"))

    def _measure_numerics(self) -> Candidate:
        """Return the numerics, among those that the options allow, that train fastest here.

        The choice rests on timings, so it may differ between two runs. Each candidate runs forward
        and backward passes of its own copy of the network.
        """
        copies: dict[Candidate, nn.Module] = {}

        def run(numerics: Candidate) -> None:
            if numerics not in copies:  # in the first round, which is not measured
                copies[numerics] = copy.deepcopy(self.net)
                train_mode(copies[numerics])
                set_layout(copies[numerics], numerics.layout)
            for part in self.parts:
                with autocast(self.device, numerics.precision):
                    loss = self._compute_loss(part.objective.loss, copies[numerics], 0)
                loss.backward()

        options = self.options
        check_winograd(options.precision, options.layout, self.device.type)
        on_cpu = self.device.type == "cpu" and not options.compile
        has_winograd = on_cpu and bool(eligible(self.net))
        choices = candidates(options.precision, options.layout, has_winograd)
        if len(choices) > 1:
            self.progress.say_if_shown("measuring precision and layout...")
        return fastest(choices, run, self.device)

    def _end_epoch(self) -> None:
        self._check_finite()
        score = None
        if self.score:
            with self._measured_weights():
                with self.interrupts.allowed():
                    score = self.score(self.net)
                self._keep_best(score)
        epoch = self.step * self.batch / self.source.epoch
        means = (self.loss_sums / self.summed).tolist()
        losses = {part.objective.name: mean for part, mean in zip(self.parts, means, strict=True)}
        epochs = self.options.epochs
        if self.options.minutes:
            images = self.schedule.total_steps(self.step) * self.batch
            epochs = round(images / self.source.epoch, 1)
        self.progress.report_epoch(epoch, epochs, losses, score)
        self.loss_sums.zero_()
        self.summed = 0

    def _keep_best(self, score: float) -> None:
        """Remember the weights that `net` holds if no earlier epoch was as good."""
        if self.options.keep == "best" and score > self.best:
            self.best = score
            self.best_tensors = {name: t.clone() for name, t in self.net.state_dict().items()}

    @contextmanager
    def _measured_weights(self) -> Iterator[None]:
        """Let `net` hold the averaged weights, without gradients, while the block runs.

        What is measured may freeze its network, so gradients are asked for again afterwards.
        """
        trained = [p for p in self.net.parameters() if p.requires_grad]
        own = {name: t.clone() for name, t in self.net.state_dict().items()} if self.average else {}
        if self.average:
            self.net.load_state_dict(self.average.net.state_dict())
        self.net.requires_grad_(False).eval()
        try:
            yield
        finally:
            if self.average:
                self.net.load_state_dict(own)
            for parameter in trained:
                parameter.requires_grad_(True)

    def _check_finite(self) -> None:
        if not self.loss_sums.isfinite().all():
            raise BadParameter(
                f"training diverged before step {self._position}: expected finite"
                f" losses, got {self.loss_sums.tolist()}; give a lower lr than {self.options.lr:g}"
            )

    def _identity(self) -> dict[str, Any]:
        """Return everything that a resume file must agree with."""
        return {
            **self.options.settings,
            "data": self.source.fingerprint(),
            "parameters": sum(p.numel() for p in self.net.parameters()),
            "objectives": [part.objective.name for part in self.parts],
            **self.identity,
        }

    def _save(self) -> None:
        assert self.path
        self._check_finite()
        tensors = {
            "running": self.loss_sums,
            **add_prefix("net", self.net.state_dict()),
            **add_prefix("best", self.best_tensors),
        }
        for part in self.parts:
            momenta = optimiser_tensors(part.optimiser, self.net)
            tensors.update(add_prefix(f"optimiser.{part.objective.name}", momenta))
        if self.average:
            tensors.update(add_prefix("average", self.average.net.state_dict()))
        state = RunState(
            run=self._identity(),
            numerics={"precision": self.numerics.precision, "layout": self.numerics.layout},
            step=self.step,
            seconds=self.schedule.seconds,
            summed=self.summed,
            best=self.best if self.best_tensors else None,
            classifiers=self.options.classifiers,
            loaded=self.options.loaded,
        )
        save_checkpoint(self.path, Checkpoint(tensors, state))

    def _read_checkpoint(self) -> Checkpoint | None:
        if self.path is None or not self.path.exists():
            return None
        checkpoint = load_checkpoint(self.path)
        check_same_run(self.path, checkpoint.state.run, self._identity())
        return checkpoint

    def _restore(self, checkpoint: Checkpoint) -> None:
        tensors, state = checkpoint.tensors, checkpoint.state
        self.step = state.step
        self.schedule.earlier_seconds = state.seconds
        self.summed = state.summed
        self.options.classifiers = add_earlier_files(self.options.classifiers, state.classifiers)
        self.options.loaded = {**state.loaded, **self.options.loaded}
        if state.best is not None:
            self.best = state.best
        self.loss_sums.copy_(tensors["running"])
        best = select_prefix("best", tensors)
        self.best_tensors = {name: t.to(self.device) for name, t in best.items()}
        self.net.load_state_dict(select_prefix("net", tensors))
        for part in self.parts:
            momenta = select_prefix(f"optimiser.{part.objective.name}", tensors)
            restore_optimiser(part.optimiser, self.net, momenta)
        if self.average:
            self.average.net.load_state_dict(select_prefix("average", tensors))
        self.progress.say_if_shown(f"resumed at step {self._position}")
