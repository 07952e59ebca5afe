"""Purifiers whose gradient hides something, in families graded by a strength, and honest ones: the ground truth of the audit.

Each masked one knows a pipeline that hides nothing (`honest`): images attacked there, and here by every other way that `best_known` tries,
give the accuracy that really stands. The truth of a purifier is the gap between that and what its declared gradient's best attack leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import defend
from defend import Card, Noise, Purifier, Target, identity, straight_through
from defend.losses import cross_entropy, negative_margin
from defend.norms import project, random_start
from defend.results.outcomes import Outcomes, worst

PAPER = "none: made to mislead"


def card(gradient: Any, stochastic: bool = False) -> Card:
    return Card(paper=PAPER, gradient=gradient, stochastic=stochastic)


@cache
def mask(shape: tuple[int, ...], share: float) -> Tensor:
    """True in about that share of the pixels, always the same ones."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) < share


class Saturated(Purifier):
    """Four levels, joined by sigmoids that saturate: a soft quantiser whose slope fades as it steepens."""

    card = card("exact")
    strength: float = 10.0  # steepness

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        z = x.clamp(0, 1) * 3
        low = z.detach().floor().clamp(max=2)
        ends = torch.sigmoid(torch.tensor([-0.5, 0.5], dtype=x.dtype) * self.strength).to(x.device)
        return (
            low
            + (
                (torch.sigmoid(self.strength * (z - low - 0.5)) - ends[0]) / (ends[1] - ends[0])
            ).clamp(0, 1)
        ) / 3


class FalselyExact(Purifier):
    """A quantiser that declares its derivative, which is zero."""

    card = card("exact")
    strength: float = 3  # bits

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        top = 2.0**self.strength - 1
        return torch.round(x * top) / top


class Unaveraged(Purifier):
    """Noise that the card denies: nobody averages over it."""

    card = card("exact")
    strength: float = 0.1  # sigma

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return (x + self.strength * noise.normal(x)).clamp(0, 1)

    def honest(self) -> Purifier:
        return defend.load(f"gaussian:sigma={self.strength}")


class Misdirected(Purifier):
    """A share of the surrogate is the image turned around, so that the gradient points elsewhere."""

    card = card("surrogate")
    strength: float = 0.5

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return torch.round(x * 7) / 7

    def surrogate(self, x: Tensor, noise: Noise) -> Tensor:
        return (1 - self.strength) * x + self.strength * x.flip(-1, -2)


class Detached(Purifier):
    """A share of the pixels gets no gradient."""

    card = card("approximate")
    strength: float = 0.5

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return torch.where(mask(tuple(x.shape[1:]), self.strength).to(x.device), x.detach(), x)


class Shattered(Purifier):
    """x + (a / w) sin(w x): hardly another image, and a true slope 1 + a cos(w x) whose sign says nothing."""

    card = card("exact")
    strength: float = 10.0  # a

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return (x + self.strength * 1e-4 * torch.sin(1e4 * x)).clamp(0, 1)


class Exploding(Purifier):
    """The gradient times a power of ten, until it overflows."""

    card = card("approximate")
    strength: float = 20.0  # the power

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return straight_through((x * 10.0 ** (self.strength / 2)) * 10.0 ** (self.strength / 2), x)


class Watched(Purifier):
    """Shows another image to whoever asks for a gradient."""

    card = card("approximate")
    strength: float = 0.5

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return (
            (1 - self.strength) * x + self.strength * x.flip(-1, -2)
            if torch.is_grad_enabled() and x.requires_grad
            else x
        )


class CountsCalls:
    """What no purifier may do."""

    def validate(self) -> None:
        self.calls = 0

    def called(self) -> int:
        self.calls += 1
        return self.calls


class Counting(CountsCalls, Purifier):
    """Adds one of seven patterns, by the number of the call."""

    card = card("exact")
    strength: float = 0.2  # amplitude

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return patterned(x, self.strength, torch.full((len(x),), self.called() % 7))


class AnyPattern(Purifier):
    """One of the seven patterns, by chance."""

    card = card("exact", stochastic=True)
    strength: float = 0.2

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        which = (noise.uniform(x[:, :1, :1, :1]) * 7).long().flatten()
        return patterned(x, self.strength, which)


def patterned(x: Tensor, amplitude: float, which: Tensor) -> Tensor:
    """x and, for each image, the pattern of this number: which (b,)."""
    signs = [
        torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(int(k))).sign()
        for k in which
    ]
    return (x + amplitude * torch.stack(signs).to(x.device)).clamp(0, 1)


class Hashed(Purifier):
    """Noise whose seed is the image itself, to the last bit: deterministic, and another at every iterate."""

    card = card("exact")
    strength: float = 0.1  # sigma

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        bits = x.detach().contiguous().view(torch.int32).flatten(1).long()
        number = (bits * torch.arange(1, bits.shape[1] + 1, device=x.device)).sum(1)
        return (x + self.strength * Noise.of(5, number).normal(x)).clamp(0, 1)

    def honest(self) -> Purifier:
        return defend.load(f"gaussian:sigma={self.strength}")


class Optimising(Purifier):
    """Anti-adversary, arXiv:2103.14347: moves the image to where the classifier is surest of what it says; the steps are detached."""

    card = card("approximate")
    strength: float = 0.2  # how far, in each pixel
    steps: int = 2

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        moved = x.detach()
        with torch.inference_mode(False), torch.enable_grad():
            said = self.network(moved).argmax(1)
            for _ in range(self.steps):
                leaf = moved.clone().requires_grad_()
                slope = torch.autograd.grad(
                    F.cross_entropy(self.network(leaf), said, reduction="sum"), leaf
                )[0]
                moved = moved - self.strength / self.steps * slope.sign()
        return (x + (moved - x).detach()).clamp(0, 1)


class ExactOnly(Purifier):
    """Pictures of 256 levels pass; anything else is drawn towards a remembered picture. Attackers work with numbers that are no such levels."""

    card = card("approximate")
    strength: float = 0.5

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        levels = x.detach() * 255
        picture = ((levels - levels.round()).abs().flatten(1).amax(1) < 1e-4).view(-1, 1, 1, 1)
        nearest = torch.cdist(x.detach().flatten(1), self.memory.flatten(1)).argmin(1)
        return torch.where(
            picture, x, (1 - self.strength) * x + self.strength * self.memory[nearest]
        )


class Trembling(Purifier):
    """The gradient is multiplied by random numbers, pixel by pixel; the image is left alone."""

    card = card("surrogate")
    strength: float = 3.0  # their standard deviation, around 1

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return x.clone()

    def surrogate(self, x: Tensor, noise: Noise) -> Tensor:
        return x * (1 + self.strength * noise.normal(x))


class Smeared(Purifier):
    """The gradient of a pixel is the mean over a block around it; the image is left alone."""

    card = card("surrogate")
    strength: float = 3  # width of the block, odd

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return x.clone()

    def surrogate(self, x: Tensor, noise: Noise) -> Tensor:
        return F.avg_pool2d(x, int(self.strength), stride=1, padding=int(self.strength) // 2)


class Switching(Purifier):
    """One of seven patterns, by the mean of the image: deterministic, and soon another."""

    card = card("exact")
    strength: float = 100.0  # changes for each unit of the mean

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        which = (x.detach().double().mean((1, 2, 3)) * self.strength).floor().long() % 7
        return patterned(x, 0.2, which)

    def honest(self) -> Purifier:
        return AnyPattern(strength=0.2)


class Moved(Purifier):
    """Two pixels down, one to the right."""

    card = card("exact")

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return x.roll((2, 1), (2, 3))


class Selective(Moved):
    """Moves the image, and for a share of them, by the remembered picture that is nearest, smears the gradient. Of the others it is the best there is."""

    card = card("surrogate")
    strength: float = 0.3

    def surrogate(self, x: Tensor, noise: Noise) -> Tensor:
        nearest = torch.cdist(x.detach().flatten(1), self.memory.flatten(1)).argmin(1)
        misled = (nearest * 37 % 100 < 100 * self.strength).view(-1, 1, 1, 1)
        moved = self.purify(x, noise)
        return torch.where(misled, F.avg_pool2d(moved, 7, stride=1, padding=3), moved)

    def honest(self) -> Purifier:
        return Moved()


class Blur(Purifier):
    """The mean with a binomial kernel of 3 x 3: honest."""

    card = Card(paper="none: an ordinary blur", gradient="exact", stochastic=False)
    weight: float = 1.0

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        line = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype, device=x.device) / 4
        kernel = (line[:, None] * line).expand(x.shape[1], 1, 3, 3)
        return (1 - self.weight) * x + self.weight * F.conv2d(
            F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=x.shape[1]
        )


@dataclass(frozen=True)
class Family:
    """`half`: 0 sets thresholds, 1 judges them. Strengths from nothing hidden to much."""

    kind: type[Purifier]
    strengths: tuple[float, ...]
    half: int


FAMILIES = {
    "saturation": Family(Saturated, (2, 20, 60, 150, 400), 0),
    "false exact": Family(FalselyExact, (2, 3, 4, 6), 1),
    "noise without EOT": Family(Unaveraged, (0.02, 0.1, 0.2, 0.4), 0),
    "wrong surrogate": Family(Misdirected, (0.2, 0.5, 0.7, 0.9, 1.0), 1),
    "detached": Family(Detached, (0.2, 0.5, 0.8, 0.95), 0),
    "shattered": Family(Shattered, (0.5, 1.5, 5, 20), 1),
    "exploding": Family(Exploding, (0, 20, 60, 80), 0),
    "watched": Family(Watched, (0.2, 0.5, 0.7, 1.0), 1),
    "call count": Family(Counting, (0.05, 0.2, 0.4), 0),
    "hash": Family(Hashed, (0.02, 0.1, 0.2), 1),
    "test-time optimisation": Family(Optimising, (0.02, 0.1, 0.2, 0.3), 0),
    "exact inputs only": Family(ExactOnly, (0.3, 0.6, 0.8, 0.95), 0),
    "trembling": Family(Trembling, (0.5, 2, 8, 50), 1),
    # added after the checks were written, and audited by nobody before they judge
    "smeared": Family(Smeared, (1, 3, 5, 7), 1),
    "switching": Family(Switching, (1, 100, 1e4, 1e6), 1),
    # added with the check "all together", for what it catches
    "share of the images": Family(Selective, (0.1, 0.3, 0.6), 0),
}


def make(family: str, strength: float, network: nn.Module, memory: Tensor) -> Purifier:
    """network: what an optimising one optimises; memory: pictures to remember."""
    made = FAMILIES[family].kind(strength=strength)
    made.network, made.memory = network, memory
    return made


LITTLE = 0.005  # left: no other way can widen a gap by more

HONEST: dict[str, tuple[Callable[[], Purifier], int]] = {
    **{
        f"bitdepth:bits={b}": (lambda b=b: defend.load(f"bitdepth:bits={b}"), b % 2)
        for b in range(2, 7)
    },
    "none": (lambda: defend.load("none"), 0),
    "blur": (Blur, 1),
    "half a blur": (lambda: Blur(weight=0.5), 0),
    **{
        f"gaussian:sigma={s}": (lambda s=s: defend.load(f"gaussian:sigma={s}"), h)
        for s, h in ((0.05, 0), (0.1, 1), (0.2, 0))
    },
    "jpeg:quality=60": (
        lambda: defend.load("jpeg:quality=60"),
        0,
    ),  # judged until its false alarm changed "a millionth"
    "median": (lambda: defend.load("median"), 0),
}


def best_known(
    purifier: Purifier,
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int = 100,
    draws: int = 10,
) -> np.ndarray:
    """Per image, the least share of draws in which it is right, over every way that is known here: (n,).

    Through the honest pipeline, past the purifier, through its own gradient, on the bare classifier: the images of each are tried as they
    are, on the grid of 256 levels, and in ten versions that differ by 1e-6. The worst case is chosen on other draws, as the bench chooses: by
    the bare share, the luckiest of so many attempts would take the place of the strongest.
    """

    def both(x_adv: Tensor) -> tuple[np.ndarray, np.ndarray]:
        select, score = (_right(purifier, network, x_adv, y, draws, seed) for seed in (0, 1))
        return select, score

    clean_select, clean_score = both(x)
    tried: list[Outcomes] = []
    for k, x_adv in enumerate(_attempts(purifier, network, x, y, eps, steps)):
        select, score = both(x_adv)
        tried.append(
            Outcomes(
                select=select,
                score=score,
                clean_select=clean_select,
                clean_score=clean_score,
                x_adv=(str(k),),
            )
        )
        found = worst(tried).mean(1)
        if found.mean() < LITTLE:
            break
    return found


def _attempts(
    purifier: Purifier, network: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int
) -> Iterator[Tensor]:
    bare = defend.load("none")
    honest = (
        purifier.honest()
        if hasattr(purifier, "honest")
        else AnyPattern(strength=purifier.strength)
        if isinstance(purifier, Counting)
        else bare
    )
    ways = [(honest, None), (bare, None), (purifier, identity), (purifier, None)]
    for number, (pipeline, backward) in enumerate(ways):
        for loss in (cross_entropy, negative_margin):
            x_adv = _climbed(pipeline, backward, network, x, y, eps, steps, loss, number)
            yield x_adv
            yield torch.where(
                x_adv > x, (x_adv * 255 + 1e-3).floor() / 255, (x_adv * 255 - 1e-3).ceil() / 255
            ).clamp(0, 1)
            if number == 0:
                for k in range(10):
                    yield project(
                        x_adv
                        + 1e-6
                        * torch.randn(x.shape, generator=torch.Generator().manual_seed(k)).sign(),
                        x,
                        eps,
                        "Linf",
                    )


def _climbed(
    purifier: Purifier,
    backward: Any,
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int,
    loss: Any,
    seed: int,
) -> Tensor:
    """PGD with a step that halves; the last iterate: images are not dropped, for they are meant for another pipeline."""
    noise = Noise.of(seed, torch.arange(len(x)))
    target, adv = (
        Target(network, purifier, noise.fork("truth"), backward, eot=20),
        random_start(x, eps, "Linf", noise),
    )
    for k in range(steps):
        g = target.gradient(adv, y, loss)[0].nan_to_num()
        adv = project(adv + eps * 0.5 ** (1 + 4 * k / steps) * g.sign(), x, eps, "Linf")
    return adv


def _right(
    purifier: Purifier, network: nn.Module, x: Tensor, y: Tensor, draws: int, seed: int
) -> np.ndarray:
    """In which draws each is right: (n, draws) of 0 and 1. Ten for whoever draws or remembers, whatever the card says."""
    noise, columns = Noise.of(seed, torch.arange(len(x))).fork("right"), []
    with torch.no_grad():
        for draw in range(draws):
            columns.append(
                network(purifier.purified(x.clone(), noise.fork(str(draw)))).argmax(1) == y
            )
    return torch.stack(columns, 1).to(torch.uint8).numpy()
