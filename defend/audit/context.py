"""What all checks share: a pipeline, its images, its noise, and how an attack is run and scored on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from defend.audit.budget import Budget
from defend.audit.thresholds import THRESHOLDS
from defend.benchmarks.components import Components
from defend.benchmarks.purifier_checks import SELECT, logits_after_purify, purified
from defend.benchmarks.units import NumericSettings
from defend.load import load
from defend.noise import Noise
from defend.norms import check_attacked, random_start
from defend.purifier import Backward, Purifier
from defend.results.outcomes import Bits
from defend.target import Target

NORM = "Linf"
PRECISION, LAYOUT = (
    "float32",
    "contiguous",
)  # the bench's defaults: what is given by a spec is run as there
Floats = NDArray[np.float64]


def frame(device: torch.device) -> NumericSettings:
    """How an audit computes: as a worker of the bench."""
    return NumericSettings(precision=PRECISION, layout=LAYOUT, threads=1, device=device.type)


@dataclass(frozen=True)
class Bench:
    """The same pipeline as the bench has it, by its specs."""

    parts: Components
    defense: str
    classifier: str


@dataclass(kw_only=True)
class Context:
    """n images x (n, c, h, w) with labels y, behind network(purifier(.))."""

    purifier: Purifier
    network: nn.Module
    bare: Purifier  # no defense
    x: Tensor
    y: Tensor
    root: Noise
    eps: float
    classes: int
    plan: Budget
    seed: int
    twin: Callable[
        [Tensor, Tensor, str], Tensor
    ]  # what a fresh purifier gives for images, their rows, and the name of a draw
    twin_is: str  # where that one lives
    training: Callable[[int], tuple[Tensor, Tensor]]  # so many training images, with labels
    surrogates: Sequence[tuple[Purifier, nn.Module]] = ()
    no_surrogate: str = ""  # why there is none
    bench: Bench | None = None  # None where objects are audited
    imitation_error: float | None = (
        None  # of the learned gradient's network, relative to the identity's
    )
    before: list[Tensor] = field(default_factory=list)  # what it gave when the audit began

    @property
    def stochastic(self) -> bool:
        return self.purifier.card.stochastic

    @property
    def all(self) -> Tensor:
        return torch.arange(len(self.x), device=self.x.device)

    @property
    def some(self) -> Tensor:
        return self.all[: self.budget.some]

    @property
    def points(self) -> Tensor:
        """Where gradients and state are looked at, of `some` images: inside the ball, off the grid of the clean ones."""
        return random_start(
            self.x[self.some], self.eps, NORM, self.root.take(self.some).fork("points")
        )

    def target(
        self,
        rows: Tensor,
        backward: Backward | None = None,
        eot: int | None = None,
        fork: str = "attack",
    ) -> Target:
        """The audited pipeline, through the declared gradient where `backward` gives no other."""
        return Target(
            self.network,
            self.purifier,
            self.root.take(rows).fork(fork),
            backward,
            eot or self.budget.eot,
            scored=True,
        )

    def elsewhere(
        self, rows: Tensor, purifier: Purifier, network: nn.Module, backward: Backward | None = None
    ) -> Target:
        """Another pipeline, from which images are only transferred: none may be dropped."""
        return Target(
            network,
            purifier,
            self.root.take(rows).fork("attack"),
            backward,
            eot=max(self.budget.eot, 5 if purifier.card.stochastic else 1),
        )

    def attack(self, spec: str, target: Target, rows: Tensor, eps: float | None = None) -> Tensor:
        """x_adv of these rows, inside the ball: checked. Raises BrokenAttack."""
        x, y, eps = self.x[rows], self.y[rows], self.eps if eps is None else eps
        x_adv: Tensor = load(spec, "attack").run(
            target, x.clone(), y.clone(), eps, self.root.take(rows).fork(f"start {spec}")
        )
        check_attacked(x_adv, x, eps, NORM, spec)
        return x_adv.detach()

    @cached_property
    def steady(self) -> bool:
        """Does its noise, if any, decide nothing? Then a search needs no averages."""
        if not self.stochastic:
            return True
        draws = [
            self.outcomes(x, self.some, "steady", SELECT) for x in (self.x[self.some], self.points)
        ]
        return all(float((d.min(1) < d.max(1)).mean()) <= THRESHOLDS["state"].value for d in draws)

    @cached_property
    def clean(self) -> Floats:
        """What is right of the clean images: (n,)."""
        return self.right(self.x, self.all, "score", self.budget.draws)

    def score(self, x: Tensor) -> Floats:
        """What is right of images x (n, c, h, w), as the bench reads it off: behind a deterministic purifier only where the clean one is too."""
        right = self.right(x, self.all, "score", self.budget.draws)
        return right if self.stochastic else right * self.clean

    def right(self, x: Tensor, rows: Tensor, fork: str, draws: int) -> Floats:
        """The share of draws in which each image is right: (b,)."""
        return np.asarray(self.outcomes(x, rows, fork, draws).mean(1), np.float64)

    def outcomes(self, x: Tensor, rows: Tensor, fork: str, draws: int) -> Bits:
        """Right (1) or wrong (0), draw by draw: (b, draws)."""
        right = [
            self.logits(x, self.nth(rows, fork, draw)).argmax(1) == self.y[rows]
            for draw in range(draws if len(rows) else 0)
        ]
        return (
            np.asarray(torch.stack(right, 1).cpu().numpy(), np.uint8)
            if right
            else np.zeros((0, draws), np.uint8)
        )

    def nth(self, rows: Tensor, fork: str, draw: int = 0) -> Noise:
        """One draw of these rows."""
        return self.root.take(rows).fork(fork).draw(draw)

    def purified(self, x: Tensor, noise: Noise) -> Tensor:
        return purified(self.purifier, x, noise)

    def logits(self, x: Tensor, noise: Noise) -> Tensor:
        return logits_after_purify(self.purifier, self.network, self.purified(x, noise))
