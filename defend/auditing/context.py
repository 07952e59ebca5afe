"""What all checks share: a pipeline, its images and noise, and one way to attack and to score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from defend.auditing.budget import Budget
from defend.auditing.thresholds import THRESHOLDS
from defend.benchmarks.attacking import attack_images
from defend.benchmarks.components import Components
from defend.benchmarks.purifier_checks import logits_after_purify, purify_once
from defend.benchmarks.scoring import SELECT_DRAWS
from defend.gradients import Backward
from defend.loading import load
from defend.noise import Noise
from defend.norms import random_start
from defend.numerics import NumericSettings
from defend.purifier import Purifier
from defend.stats import mcnemar, permutation
from defend.target import Target

NORM = "Linf"
PRECISION, LAYOUT = (
    "float32",
    "contiguous",
)  # the bench's defaults, so that specs run as they do there
TRANSFER_EOT = 5  # EOT copies of a stochastic surrogate, at least

Floats = NDArray[np.float64]
Bits = NDArray[np.uint8]


def numeric_settings(device: torch.device) -> NumericSettings:
    """Return how an audit computes: as a worker of the bench does."""
    return NumericSettings(precision=PRECISION, layout=LAYOUT, threads=1, device=device.type)


@dataclass(frozen=True)
class BenchPipeline:
    """The specs of the audited pipeline, and the components that the bench loads for them."""

    components: Components
    classifier: str
    defense: str


@dataclass(frozen=True)
class Surrogate:
    """Another pipeline, from which adversarial images are transferred."""

    purifier: Purifier
    network: nn.Module


@dataclass(frozen=True)
class FreshPurifier:
    """A purifier that the audit's attacks have not touched."""

    purify: Callable[[Tensor, Tensor, str], Tensor]  # (images, their rows, name of the noise)
    description: str


@dataclass(kw_only=True)
class Context:
    """The pipeline network(purifier(x)), with n images x (n, c, h, w) and their labels y (n,)."""

    purifier: Purifier
    network: nn.Module
    no_defense: Purifier  # returns its input
    x: Tensor
    y: Tensor
    noise: Noise  # one stream for each image, from which every other one is forked
    eps: float
    classes: int
    budget: Budget
    seed: int
    fresh: FreshPurifier
    training_images: Callable[[int], tuple[Tensor, Tensor]]  # returns this many, with labels
    surrogates: Sequence[Surrogate] = ()
    no_surrogate_reason: str = ""
    bench_pipeline: BenchPipeline | None = None  # None if objects are audited
    copies: int | None = None  # of other gradients, once the declared attacks have ended
    bpda_network_error: float | None = None  # known once the learned gradient's network is fitted
    initial_outputs: list[Tensor] = field(default_factory=list)  # before any attack

    @property
    def stochastic(self) -> bool:
        """Return what the purifier's card says."""
        return self.purifier.card.stochastic

    @property
    def all_rows(self) -> Tensor:
        """Return the indices of all images, int64 (n,)."""
        return torch.arange(len(self.x), device=self.x.device)

    @property
    def probe_rows(self) -> Tensor:
        """Return the indices of the images on which gradients and state are checked."""
        return self.all_rows[: self.budget.probe_images]

    @property
    def probe_x(self) -> Tensor:
        """Return the clean probe images."""
        return self.x[self.probe_rows]

    @property
    def probe_y(self) -> Tensor:
        """Return the labels of the probe images."""
        return self.y[self.probe_rows]

    @property
    def probe_points(self) -> Tensor:
        """Return one random point of the ball around each probe image, off the 8-bit grid."""
        noise = self.noise.take(self.probe_rows).fork("points")
        return random_start(self.probe_x, self.eps, NORM, noise)

    def target(
        self,
        rows: Tensor,
        backward: Backward | None = None,
        eot: int | None = None,
        stream: str = "attack",
    ) -> Target:
        """Return the audited pipeline for an attack on these rows.

        backward replaces the declared gradient. stream: the name of the noise.
        """
        return Target(
            self.network,
            self.purifier,
            self.noise.take(rows).fork(stream),
            backward,
            eot or self.budget.eot,
            scored=True,
        )

    def transfer_target(
        self, rows: Tensor, surrogate: Surrogate, backward: Backward | None = None
    ) -> Target:
        """Return another pipeline to attack; broken images must not be dropped there."""
        min_eot = TRANSFER_EOT if surrogate.purifier.card.stochastic else 1
        return Target(
            surrogate.network,
            surrogate.purifier,
            self.noise.take(rows).fork("attack"),
            backward,
            eot=max(self.budget.eot, min_eot),
        )

    def attack(self, spec: str, target: Target, rows: Tensor, eps: float | None = None) -> Tensor:
        """Return adversarial images of these rows, checked to be in the ball and the box.

        eps: by default the audit's. Raises BrokenAttack.
        """
        x, y = self.x[rows], self.y[rows]
        eps = self.eps if eps is None else eps
        noise = self.noise.take(rows).fork(f"start {spec}")
        return attack_images(load(spec, "attack"), spec, target, x, y, eps, noise)

    @cached_property
    def noise_is_negligible(self) -> bool:
        """Return True if the purifier's noise changes almost no prediction.

        A search without gradients then needs no average over draws.
        """
        if not self.stochastic:
            return True
        for x in (self.probe_x, self.probe_points):
            correct = self.classify_draws(x, self.probe_rows, "steady", SELECT_DRAWS)
            changing = float((correct.min(1) < correct.max(1)).mean())
            if changing > THRESHOLDS.state.value:
                return False
        return True

    @cached_property
    def clean_scores(self) -> Floats:
        """Return the share of draws in which each clean image is classified correctly, (n,)."""
        return self.score_rows(self.x, self.all_rows, "score", self.budget.score_draws)

    def score(self, x: Tensor) -> Floats:
        """Return the score of images x (n, c, h, w), as the bench defines it: (n,).

        Behind a deterministic purifier an image counts only if its clean image does, too.
        """
        scores = self.score_rows(x, self.all_rows, "score", self.budget.score_draws)
        return scores if self.stochastic else scores * self.clean_scores

    def score_rows(self, x: Tensor, rows: Tensor, stream: str, draws: int) -> Floats:
        """Return the share of draws in which each image is classified correctly: (b,)."""
        return np.asarray(self.classify_draws(x, rows, stream, draws).mean(1), np.float64)

    def classify_draws(self, x: Tensor, rows: Tensor, stream: str, draws: int) -> Bits:
        """Return 1 where an image is classified correctly in a draw, else 0: (b, draws)."""
        if not len(rows):
            return np.zeros((0, draws), np.uint8)
        columns = [
            self.logits(x, self.noise_of(rows, stream, draw)).argmax(1) == self.y[rows]
            for draw in range(draws)
        ]
        return np.asarray(torch.stack(columns, 1).cpu().numpy(), np.uint8)

    def noise_of(self, rows: Tensor, stream: str, draw: int = 0) -> Noise:
        """Return one draw of the named noise for these rows."""
        return self.noise.take(rows).fork(stream).draw(draw)

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        """Return the purified images of one draw, without a gradient."""
        return purify_once(self.purifier, x, noise)

    def logits(self, x: Tensor, noise: Noise) -> Tensor:
        """Return the logits (b, classes) of one draw. Raises BrokenPurifier if not finite."""
        return logits_after_purify(self.purifier, self.network, self.purify(x, noise))

    def paired_p_value(self, a: Floats, b: Floats) -> float:
        """Return the two-sided p value of a paired test of two scores of the same images."""
        test = permutation if self.stochastic else mcnemar
        return test(a, b)

    def p_value_of_attack(self, attacked: Floats, baseline: Floats) -> float:
        """Return the one-sided p value that an attack leaves as much as another: it is small only
        where it leaves less.
        """
        if self.stochastic:
            return permutation(baseline, attacked, alternative="greater")
        return mcnemar(baseline, attacked, alternative="greater")
