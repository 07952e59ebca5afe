"""The training loop: one function for classifiers and purifiers.

A resumed run gives the same weights as an undisturbed one, to the bit. Nothing random has a state:
batches, augmentations and dropout are functions of the seed and the step, and the learning rate is
a function of the step. Only tensors have to be stored: the network, its average and the
optimiser's momenta.

With precision=auto or layout=auto, the numerics of a fresh run are chosen by timing. Two fresh runs
may then choose differently and end with other weights; a resumed run takes the choice of its resume
file. For weights that can be reproduced, the recipe names both.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim

from defend.errors import BadParameter
from defend.learned import autocast, set_layout
from defend.noise import Noise
from defend.numerics import Candidate, candidates, fastest
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
from defend.training.recipe import Recipe
from defend.training.schedule import learning_rate

Loss = Callable[[nn.Module, Tensor, Tensor, Noise], Tensor]  # (net, x, y, noise) -> batch mean
Score = Callable[[nn.Module], float]  # on validation images; higher is better
SAVE_EVERY = 10.0  # seconds between two writes of the resume file


def train(
    net: nn.Module,
    source: Source,
    loss: Loss,
    recipe: Recipe,
    score: Score | None = None,
    resume: Path | None = None,
    save_every: float = SAVE_EVERY,
    progress: bool = True,
) -> None:
    """Fit the parameters of `net` on the device that it is on.

    Afterwards `net` holds the weights that the recipe selects (the last, the average or the best),
    frozen, in eval mode.

    resume: a file that is written every `save_every` seconds, and read if it exists; the caller
    deletes it. Raises BadParameter if the file belongs to another run, or if the loss is no longer
    finite.
    """
    if recipe.keep == "best" and score is None:
        raise BadParameter(
            "recipe: expected validation images for keep=best, got none; give some, or keep=last"
        )
    device = next(net.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            net.requires_grad_(True)
            run = TrainingRun(net, source.to(device), loss, recipe, device, score, resume)
            run.complete(save_every, progress)
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
        loss: Loss,
        recipe: Recipe,
        device: torch.device,
        score: Score | None,
        resume: Path | None,
    ) -> None:
        self.net = net
        self.source = source
        self.loss = loss
        self.recipe = recipe
        self.device = device
        self.score = score
        self.path = resume

        self.batch = min(recipe.batch, source.epoch)
        self.steps = max(1, round(recipe.epochs * source.epoch / self.batch))
        self.step = 0
        self.best = -math.inf
        self.best_tensors: Tensors = {}
        self.loss_sum = torch.zeros((), device=device)  # over the steps of this epoch
        self.summed = 0  # the number of losses in loss_sum

        checkpoint = self._read_checkpoint()
        if checkpoint:
            self.numerics = Candidate(**checkpoint.state.numerics)
        else:
            self.numerics = self._measure_numerics()
        set_layout(net, self.numerics.layout)
        self.optimiser = make_optimiser(net, recipe)
        self.average = WeightAverage(net, recipe.ema) if recipe.ema else None
        if checkpoint:
            self._restore(checkpoint)
        self.compiled: nn.Module = net
        if recipe.compile:
            self.compiled = torch.compile(net)  # type: ignore[assignment]

    def complete(self, save_every: float, shown: bool) -> None:
        """Take all remaining steps, then load the weights that the recipe selects into `net`."""
        progress = TrainingProgress(shown)
        last_save = time.perf_counter()
        with progress.counting(self.steps * self.batch, self.step * self.batch):
            while self.step < self.steps:
                self._take_step()
                progress.advance(self.batch)
                if self._at_end_of_epoch:
                    self._end_epoch(progress)
                if self.path and time.perf_counter() - last_save >= save_every:
                    self._save()
                    last_save = time.perf_counter()
        if self.recipe.keep == "best":
            self.net.load_state_dict(self.best_tensors)
        else:
            self.net.load_state_dict(self.averaged_net.state_dict())

    @property
    def averaged_net(self) -> nn.Module:
        """Return the network with averaged weights, or the network itself without averaging."""
        return self.average.net if self.average else self.net

    @property
    def _at_end_of_epoch(self) -> bool:
        """Return True if the last step was the run's last, or went over the end of an epoch."""
        images = self.step * self.batch
        epochs_before = (images - self.batch) // self.source.epoch
        return self.step == self.steps or images // self.source.epoch > epochs_before

    def _take_step(self) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, self.recipe)
        self.net.train()
        with autocast(self.device, self.numerics.precision):
            loss = self._compute_loss(self.compiled, self.step)
        self.optimiser.zero_grad()
        loss.backward()
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip)
        self.optimiser.step()
        if self.average:
            self.average.update(self.net, self.step)
        self.loss_sum += loss.detach()
        self.summed += 1
        self.step += 1

    def _compute_loss(self, net: nn.Module, step: int) -> Tensor:
        start, seed = step * self.batch, self.recipe.seed
        torch.manual_seed((seed << 32) + step)  # for dropout
        x, y = self.source.batch(start, self.batch, seed)
        numbers = torch.arange(start, start + self.batch, device=self.device)
        return self.loss(net, x, y, Noise.of(seed, numbers).fork("loss"))

    def _measure_numerics(self) -> Candidate:
        """Return the numerics, among those that the recipe allows, that train fastest here.

        The choice rests on timings, so it may differ between two runs. Each candidate runs forward
        and backward passes of its own copy of the network.
        """
        copies: dict[Candidate, nn.Module] = {}

        def run(numerics: Candidate) -> None:
            if numerics not in copies:  # in the first round, which is not measured
                copies[numerics] = copy.deepcopy(self.net).train()
                set_layout(copies[numerics], numerics.layout)
            with autocast(self.device, numerics.precision):
                loss = self._compute_loss(copies[numerics], 0)
            loss.backward()

        options = candidates(self.recipe.precision, self.recipe.layout)
        return fastest(options, run, self.device)

    def _end_epoch(self, progress: TrainingProgress) -> None:
        self._check_finite()
        score = None
        if self.score:
            score = self.score(self.averaged_net.eval())
            if self.recipe.keep == "best" and score > self.best:
                self.best = score
                state = self.averaged_net.state_dict()
                self.best_tensors = {name: t.clone() for name, t in state.items()}
        epoch = self.step * self.batch / self.source.epoch
        mean_loss = self.loss_sum.item() / self.summed
        progress.report_epoch(epoch, self.recipe.epochs, mean_loss, score)
        self.loss_sum.zero_()
        self.summed = 0

    def _check_finite(self) -> None:
        if not self.loss_sum.isfinite():
            raise BadParameter(
                f"training diverged before step {self.step} of {self.steps}: expected a finite"
                f" loss, got {self.loss_sum.item()}; give a lower lr than {self.recipe.lr:g}"
            )

    def _identity(self) -> dict[str, Any]:
        """Return everything that a resume file must agree with."""
        return {
            **self.recipe.settings,
            "data": self.source.fingerprint(),
            "parameters": sum(p.numel() for p in self.net.parameters()),
        }

    def _save(self) -> None:
        assert self.path
        self._check_finite()
        tensors = {
            "running": self.loss_sum,
            **add_prefix("net", self.net.state_dict()),
            **add_prefix("best", self.best_tensors),
            **add_prefix("optimiser", optimiser_tensors(self.optimiser, self.net)),
        }
        if self.average:
            tensors.update(add_prefix("average", self.average.net.state_dict()))
        state = RunState(
            run=self._identity(),
            numerics={"precision": self.numerics.precision, "layout": self.numerics.layout},
            step=self.step,
            summed=self.summed,
            best=self.best if self.best_tensors else None,
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
        self.summed = state.summed
        if state.best is not None:
            self.best = state.best
        self.loss_sum.copy_(tensors["running"])
        best = select_prefix("best", tensors)
        self.best_tensors = {name: t.to(self.device) for name, t in best.items()}
        self.net.load_state_dict(select_prefix("net", tensors))
        restore_optimiser(self.optimiser, self.net, select_prefix("optimiser", tensors))
        if self.average:
            self.average.net.load_state_dict(select_prefix("average", tensors))


def make_optimiser(net: nn.Module, recipe: Recipe) -> optim.Optimizer:
    """Return the recipe's optimiser. Biases and norms, of one dimension, have no weight decay."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim > 1]
    other = [p for p in parameters if p.ndim <= 1]
    groups: list[dict[str, Any]] = []
    if decayed:
        groups.append({"params": decayed, "weight_decay": recipe.weight_decay})
    if other:
        groups.append({"params": other, "weight_decay": 0.0})
    if recipe.optimiser == "sgd":
        nesterov = recipe.momentum > 0
        return optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov)
    return optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999))
