"""Purifiers with masked gradients, in families graded by a strength, and honest ones.

They are the ground truth of the audit. The truth about a purifier is the gap between what its
declared gradient's best attack leaves and what the best known attack leaves (best_known.py). A
masked purifier may name a pipeline that hides nothing (`honest`), on which that attack is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import defend
from defend import Card, Noise, Purifier, straight_through

PAPER = "none: made to mislead"
PATTERNS = 7  # of Counting, AnyPattern and Switching


def make_card(gradient: Any, stochastic: bool = False) -> Card:
    """Return the card of a purifier that no paper describes."""
    return Card(paper=PAPER, gradient=gradient, stochastic=stochastic)


@cache
def pixel_mask(shape: tuple[int, ...], share: float) -> Tensor:
    """Return True in about that share of the pixels, always in the same ones."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) < share


def add_patterns(x: Tensor, amplitude: float, numbers: Tensor) -> Tensor:
    """Add to each image of x the pattern of random signs with its number: numbers (b,)."""
    patterns = [
        torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(int(k))).sign()
        for k in numbers
    ]
    return (x + amplitude * torch.stack(patterns).to(x.device)).clamp(0, 1)


def nearest_in(memory: Tensor, x: Tensor) -> Tensor:
    """Return for each image of x the number of the nearest picture in memory: (b,)."""
    return torch.cdist(x.detach().flatten(1), memory.flatten(1)).argmin(1)


class Saturated(Purifier):
    """Quantise softly to four levels, joined by sigmoids whose slope vanishes as they steepen."""

    card = make_card("exact")
    strength: float = 10.0  # steepness

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        z = x.clamp(0, 1) * 3
        low = z.detach().floor().clamp(max=2)
        ends = torch.sigmoid(torch.tensor([-0.5, 0.5], dtype=x.dtype) * self.strength).to(x.device)
        sigmoid = torch.sigmoid(self.strength * (z - low - 0.5))
        return (low + ((sigmoid - ends[0]) / (ends[1] - ends[0])).clamp(0, 1)) / 3


class FalselyExact(Purifier):
    """Quantise, and declare the true derivative, which is zero."""

    card = make_card("exact")
    strength: float = 3  # bits

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        top = 2.0**self.strength - 1
        return torch.round(x * top) / top


class Unaveraged(Purifier):
    """Add noise that the card denies, so that no attack averages over it."""

    card = make_card("exact")
    strength: float = 0.1  # sigma

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return (x + self.strength * noise.normal(x)).clamp(0, 1)

    def honest(self) -> Purifier:
        return defend.load(f"gaussian:sigma={self.strength}")


class Misdirected(Purifier):
    """Mix the image turned around into the surrogate, so that the gradient points elsewhere."""

    card = make_card("surrogate")
    strength: float = 0.5

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return torch.round(x * 7) / 7

    def surrogate(self, x: Tensor, noise: Noise) -> Tensor:
        return (1 - self.strength) * x + self.strength * x.flip(-1, -2)


class Detached(Purifier):
    """Detach a share of the pixels."""

    card = make_card("approximate")
    strength: float = 0.5

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        is_detached = pixel_mask(tuple(x.shape[1:]), self.strength).to(x.device)
        return torch.where(is_detached, x.detach(), x)


class Shattered(Purifier):
    """Return x + (a / w) sin(w x), nearly x, with the true slope 1 + a cos(w x).

    The sign of that slope says nothing about the classifier.
    """

    card = make_card("exact")
    strength: float = 10.0  # a

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return (x + self.strength * 1e-4 * torch.sin(1e4 * x)).clamp(0, 1)


class Exploding(Purifier):
    """Multiply the gradient by a power of ten, until it overflows."""

    card = make_card("approximate")
    strength: float = 20.0  # the power

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return straight_through((x * 10.0 ** (self.strength / 2)) * 10.0 ** (self.strength / 2), x)


class Watched(Purifier):
    """Return another image when a gradient is requested."""

    card = make_card("approximate")
    strength: float = 0.5

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return (1 - self.strength) * x + self.strength * x.flip(-1, -2)
        return x


class CountsCalls:
    """Count calls, which no purifier may do."""

    def validate(self) -> None:
        self.calls = 0

    def count_call(self) -> int:
        self.calls += 1
        return self.calls


class Counting(CountsCalls, Purifier):
    """Add one of seven patterns, by the number of the call."""

    card = make_card("exact")
    strength: float = 0.2  # amplitude

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        numbers = torch.full((len(x),), self.count_call() % PATTERNS)
        return add_patterns(x, self.strength, numbers)

    def honest(self) -> Purifier:
        return AnyPattern(strength=self.strength)


class AnyPattern(Purifier):
    """Add one of the seven patterns, by chance."""

    card = make_card("exact", stochastic=True)
    strength: float = 0.2

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        numbers = (noise.uniform(x[:, :1, :1, :1]) * PATTERNS).long().flatten()
        return add_patterns(x, self.strength, numbers)


class Hashed(Purifier):
    """Add noise whose seed is the image to the last bit: deterministic, new at every iterate."""

    card = make_card("exact")
    strength: float = 0.1  # sigma

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        bits = x.detach().contiguous().view(torch.int32).flatten(1).long()
        number = (bits * torch.arange(1, bits.shape[1] + 1, device=x.device)).sum(1)
        return (x + self.strength * Noise.of(5, number).normal(x)).clamp(0, 1)

    def honest(self) -> Purifier:
        return defend.load(f"gaussian:sigma={self.strength}")


class Optimising(Purifier):
    """Move the image to where the classifier is surer of its own label; the steps are detached.

    Source: anti-adversary, arXiv:2103.14347.
    """

    card = make_card("approximate")
    strength: float = 0.2  # the largest change of a pixel
    steps: int = 2

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        moved = x.detach()
        with torch.inference_mode(False), torch.enable_grad():
            labels = self.network(moved).argmax(1)
            for _ in range(self.steps):
                leaf = moved.clone().requires_grad_()
                loss = F.cross_entropy(self.network(leaf), labels, reduction="sum")
                gradient = torch.autograd.grad(loss, leaf)[0]
                moved = moved - self.strength / self.steps * gradient.sign()
        return (x + (moved - x).detach()).clamp(0, 1)


class ExactOnly(Purifier):
    """Return pictures of 256 levels as they are; draw anything else towards a stored picture.

    An attack works with numbers that are no such levels.
    """

    card = make_card("approximate")
    strength: float = 0.5

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        levels = x.detach() * 255
        is_picture = ((levels - levels.round()).abs().flatten(1).amax(1) < 1e-4).view(-1, 1, 1, 1)
        nearest = self.memory[nearest_in(self.memory, x)]
        return torch.where(is_picture, x, (1 - self.strength) * x + self.strength * nearest)


class Trembling(Purifier):
    """Multiply the gradient by random numbers, pixel by pixel; the image is not changed."""

    card = make_card("surrogate")
    strength: float = 3.0  # their standard deviation, around 1

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return x.clone()

    def surrogate(self, x: Tensor, noise: Noise) -> Tensor:
        return x * (1 + self.strength * noise.normal(x))


class Smeared(Purifier):
    """Average the gradient over a block around each pixel; the image is not changed."""

    card = make_card("surrogate")
    strength: float = 3  # width of the block, odd

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return x.clone()

    def surrogate(self, x: Tensor, noise: Noise) -> Tensor:
        return F.avg_pool2d(x, int(self.strength), stride=1, padding=int(self.strength) // 2)


class Switching(Purifier):
    """Add one of seven patterns, by the mean of the image: deterministic, but soon another."""

    card = make_card("exact")
    strength: float = 100.0  # changes for each unit of the mean

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        mean = x.detach().double().mean((1, 2, 3))
        numbers = (mean * self.strength).floor().long() % PATTERNS
        return add_patterns(x, 0.2, numbers)

    def honest(self) -> Purifier:
        return AnyPattern(strength=0.2)


class Moved(Purifier):
    """Move the image two pixels down and one to the right."""

    card = make_card("exact")

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return x.roll((2, 1), (2, 3))


class Selective(Moved):
    """Move the image, and smear the gradient for a share of the images.

    The nearest stored picture decides. The other images have the best possible gradient.
    """

    card = make_card("surrogate")
    strength: float = 0.3

    def surrogate(self, x: Tensor, noise: Noise) -> Tensor:
        hundredth = nearest_in(self.memory, x) * 37 % 100
        is_misled = (hundredth < 100 * self.strength).view(-1, 1, 1, 1)
        moved = self.purify(x, noise)
        return torch.where(is_misled, F.avg_pool2d(moved, 7, stride=1, padding=3), moved)

    def honest(self) -> Purifier:
        return Moved()


class Blur(Purifier):
    """Average with a binomial kernel of 3 x 3: an honest purifier."""

    card = Card(paper="none: an ordinary blur", gradient="exact", stochastic=False)
    weight: float = 1.0

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        line = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype, device=x.device) / 4
        kernel = (line[:, None] * line).expand(x.shape[1], 1, 3, 3)
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        blurred = F.conv2d(padded, kernel, groups=x.shape[1])
        return (1 - self.weight) * x + self.weight * blurred


@dataclass(frozen=True)
class Family:
    """Purifiers of one kind, from a strength at which nothing is hidden to one that hides much."""

    kind: type[Purifier]
    strengths: tuple[float, ...]
    half: int  # 0 sets thresholds, 1 judges them


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
    # Added after the checks were written, and not audited before they judged the thresholds.
    "smeared": Family(Smeared, (1, 3, 5, 7), 1),
    "switching": Family(Switching, (1, 100, 1e4, 1e6), 1),
    # Added with the check "all together", which was written to catch it.
    "share of the images": Family(Selective, (0.1, 0.3, 0.6), 0),
}


def make(family: str, strength: float, network: nn.Module, memory: Tensor) -> Purifier:
    """Return a masked purifier.

    network: what an optimising one optimises. memory: the pictures that it stores.
    """
    purifier = FAMILIES[family].kind(strength=strength)
    purifier.network, purifier.memory = network, memory
    return purifier


@dataclass(frozen=True)
class Honest:
    """A purifier that hides nothing."""

    make: Callable[[], Purifier]
    half: int  # 0 sets thresholds, 1 judges them


def _from_spec(spec: str) -> Callable[[], Purifier]:
    return lambda: defend.load(spec)


HONEST: dict[str, Honest] = {
    "bitdepth:bits=2": Honest(_from_spec("bitdepth:bits=2"), 0),
    "bitdepth:bits=3": Honest(_from_spec("bitdepth:bits=3"), 1),
    "bitdepth:bits=4": Honest(_from_spec("bitdepth:bits=4"), 0),
    "bitdepth:bits=5": Honest(_from_spec("bitdepth:bits=5"), 1),
    "bitdepth:bits=6": Honest(_from_spec("bitdepth:bits=6"), 0),
    "none": Honest(_from_spec("none"), 0),
    "blur": Honest(Blur, 1),
    "half a blur": Honest(lambda: Blur(weight=0.5), 0),
    "gaussian:sigma=0.05": Honest(_from_spec("gaussian:sigma=0.05"), 0),
    "gaussian:sigma=0.1": Honest(_from_spec("gaussian:sigma=0.1"), 1),
    "gaussian:sigma=0.2": Honest(_from_spec("gaussian:sigma=0.2"), 0),
    # It judged until its false alarm changed the check "a millionth".
    "jpeg:quality=60": Honest(_from_spec("jpeg:quality=60"), 0),
    "median": Honest(_from_spec("median"), 0),
}
