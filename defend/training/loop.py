"""The training loop: one function for classifiers and purifiers. A resumed run gives what an undisturbed one gives, to the bit.

Nothing random has a state: batches, augmentations and dropout are functions of the seed and the step, the learning rate of the step.
What remains to be kept are tensors: the network, its average, the optimiser's momenta.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim

from defend.errors import BadParameter
from defend.learned import arrange, autocast
from defend.noise import Noise
from defend.training import checkpoint
from defend.training.average import Average
from defend.training.data import Source
from defend.training.precision import Plan, measure
from defend.training.progress import TrainingProgress
from defend.training.recipe import Recipe
from defend.training.schedule import rate

Loss = Callable[
    [nn.Module, Tensor, Tensor, Noise], Tensor
]  # (net, x, y, noise) -> the mean over the batch
Score = Callable[[nn.Module], float]  # on validation images; higher is better
SAVE_EVERY = 10.0  # seconds


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
    """Fit the parameters of `net`, where it is; afterwards it holds the weights that the recipe keeps, frozen, in eval mode.

    resume: a file that is written every `save_every` seconds, and read where it is there; deleting it is the caller's.
    Raises BadParameter where the file belongs to another run, or the loss is no number any more.
    """
    if recipe.keep == "best" and score is None:
        raise BadParameter("recipe: keep=best needs validation images; give some, or keep=last")
    device = next(net.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            run = Run(
                net.requires_grad_(True), source.to(device), loss, recipe, device, score, resume
            )
            run.go(save_every, progress)
        finally:
            arrange(net, "contiguous")
            net.zero_grad(set_to_none=True)
            net.requires_grad_(False).eval()


class Run:
    """One run of `train`, at some step."""

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
        self.net, self.source, self.loss, self.recipe, self.device, self.score, self.path = (
            net,
            source,
            loss,
            recipe,
            device,
            score,
            resume,
        )
        self.batch = min(recipe.batch, source.epoch)
        self.steps = max(1, round(recipe.epochs * source.epoch / self.batch))
        self.step = 0
        self.best = -math.inf
        self.best_tensors: checkpoint.Tensors = {}
        self.running = torch.zeros((), device=device)  # the sum of the losses since the epoch began
        self.summed = 0  # how many they are
        kept = self._read()
        self.plan = (
            Plan(**kept[1]["plan"])
            if kept
            else measure(net, recipe, lambda n: self._loss(n, 0), device)
        )
        arrange(net, self.plan.layout)
        self.optimiser = make_optimiser(net, recipe)
        self.average = Average(net, recipe.ema) if recipe.ema else None
        if kept:
            self._restore(*kept)
        self.compiled: nn.Module = torch.compile(net) if recipe.compile else net  # type: ignore[assignment]

    def go(self, save_every: float, progress: bool) -> None:
        saved = time.perf_counter()
        with TrainingProgress(self.steps, self.step, self.batch, progress) as report:
            while self.step < self.steps:
                self._advance()
                report.step()
                if self._epoch_ends:
                    self._end_epoch(report)
                if self.path and time.perf_counter() - saved >= save_every:
                    self._save()
                    saved = time.perf_counter()
        self.net.load_state_dict(
            self.best_tensors if self.recipe.keep == "best" else self.averaged.state_dict()
        )

    @property
    def averaged(self) -> nn.Module:
        return self.average.net if self.average else self.net

    @property
    def _epoch_ends(self) -> bool:
        images = self.step * self.batch
        return (
            self.step == self.steps
            or images // self.source.epoch > (images - self.batch) // self.source.epoch
        )

    def _advance(self) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = rate(self.step, self.steps, self.recipe)
        self.net.train()
        with autocast(self.device, self.plan.precision):
            value = self._loss(self.compiled, self.step)
        self.optimiser.zero_grad()
        value.backward()
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip)
        self.optimiser.step()
        if self.average:
            self.average.update(self.net, self.step)
        self.running += value.detach()
        self.summed += 1
        self.step += 1

    def _loss(self, net: nn.Module, step: int) -> Tensor:
        start, seed = step * self.batch, self.recipe.seed
        torch.manual_seed((seed << 32) + step)  # for dropout
        x, y = self.source.batch(start, self.batch, seed)
        return self.loss(
            net,
            x,
            y,
            Noise.of(seed, torch.arange(start, start + self.batch, device=self.device)).fork(
                "loss"
            ),
        )

    def _end_epoch(self, report: TrainingProgress) -> None:
        self._check_finite()
        value = None
        if self.score:
            value = self.score(self.averaged.eval())
            if self.recipe.keep == "best" and value > self.best:
                self.best, self.best_tensors = (
                    value,
                    {k: v.clone() for k, v in self.averaged.state_dict().items()},
                )
        report.epoch(
            self.step * self.batch / self.source.epoch,
            self.recipe.epochs,
            self.running.item() / self.summed,
            value,
        )
        self.running.zero_()
        self.summed = 0

    def _check_finite(self) -> None:
        if not self.running.isfinite():
            raise BadParameter(
                f"training diverged before step {self.step} of {self.steps}: the loss is not finite. Give a lower lr than {self.recipe.lr:g}"
            )

    def _about(self) -> dict[str, Any]:
        """What makes this run this run."""
        return {
            **self.recipe.settings,
            "data": self.source.fingerprint(),
            "parameters": sum(p.numel() for p in self.net.parameters()),
        }

    def _save(self) -> None:
        assert self.path
        self._check_finite()
        parts = {
            "net": self.net.state_dict(),
            "best": self.best_tensors,
            "optimiser": checkpoint.optimiser_state(self.optimiser, self.net),
        }
        parts |= {"average": self.average.net.state_dict()} if self.average else {}
        tensors = {"running": self.running} | {
            k: t
            for prefix, part in parts.items()
            for k, t in checkpoint.under(prefix, part).items()
        }
        best = self.best if self.best_tensors else None
        checkpoint.save(
            self.path,
            tensors,
            {
                "run": self._about(),
                "plan": vars(self.plan),
                "step": self.step,
                "summed": self.summed,
                "best": best,
            },
        )

    def _read(self) -> tuple[checkpoint.Tensors, dict[str, Any]] | None:
        if self.path is None or not self.path.exists():
            return None
        tensors, about = checkpoint.load(self.path)
        checkpoint.check_same(self.path, about["run"], self._about())
        return tensors, about

    def _restore(self, tensors: checkpoint.Tensors, about: dict[str, Any]) -> None:
        self.step, self.best = about["step"], -math.inf if about["best"] is None else about["best"]
        self.running.copy_(tensors["running"])
        self.summed = about["summed"]
        self.best_tensors = {
            k: t.to(self.device) for k, t in checkpoint.beneath("best", tensors).items()
        }
        self.net.load_state_dict(checkpoint.beneath("net", tensors))
        checkpoint.restore_optimiser(
            self.optimiser, self.net, checkpoint.beneath("optimiser", tensors)
        )
        if self.average:
            self.average.net.load_state_dict(checkpoint.beneath("average", tensors))


def make_optimiser(net: nn.Module, recipe: Recipe) -> optim.Optimizer:
    parameters = [p for p in net.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if recipe.optimiser == "sgd":
        return optim.SGD(
            groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0
        )
    return optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999))
