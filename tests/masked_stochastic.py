"""More purifiers that are masked or honest, most of them stochastic: see masked.py.

They are what an author meets by accident and an adversary writes on purpose: noise before a
restorer, retrieval of stored images, lotteries, gradients that are right in some places, decoys,
and another purifier for whoever attacks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from masked import FAMILIES, HONEST, Blur, Family, Honest, make_card, nearest_in
from torch import Tensor, nn

import defend
from defend import Noise, Purifier, straight_through

TEMPERATURE = 2.0  # of soft retrieval, in squared distances between images


def add_noise(x: Tensor, sigma: float, noise: Noise) -> Tensor:
    return (x + sigma * noise.normal(x)).clamp(0, 1)


def retrieve(memory: Tensor, x: Tensor) -> Tensor:
    """Return the mean of the stored images, weighted by a softmax of how near they are to x."""
    distances = torch.cdist(x.flatten(1), memory.flatten(1)).square()
    weights = torch.softmax(-distances / TEMPERATURE, 1)
    return (weights @ memory.flatten(1)).view_as(x)


class Remembers:
    """Hold stored images: those that `make` sets, or training images of digits."""

    @property
    def memory(self) -> Tensor:
        if not hasattr(self, "_memory"):
            self._memory = defend.load("digits", "dataset").rows("train", 0, 200)[0]
        return self._memory

    @memory.setter
    def memory(self, images: Tensor) -> None:
        self._memory = images


class HonestRestorer(Remembers, Purifier):
    """Add noise and retrieve softly, with the gradient of autograd: it hides nothing."""

    card = make_card("exact", stochastic=True)
    strength: float = 0.1  # sigma
    share: float = 1.0  # of the retrieved image

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        noisy = add_noise(x, self.strength, noise)
        return (1 - self.share) * noisy + self.share * retrieve(self.memory, noisy)


class PastRestorer(HonestRestorer):
    """Declare the identity past noise and a restorer that can be differentiated."""

    card = make_card("identity", stochastic=True)

    def honest(self) -> Purifier:
        return copy_memory(self, HonestRestorer(strength=self.strength))


def copy_memory(held: Remembers, purifier: HonestRestorer) -> HonestRestorer:
    purifier.memory = held.memory
    return purifier


class Retrieval(Remembers, Purifier):
    """Add noise, and draw the image towards the nearest stored one; the gradient goes past it."""

    card = make_card("identity", stochastic=True)
    strength: float = 0.9  # share of the stored image
    sigma: float = 0.1

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        noisy = add_noise(x, self.sigma, noise)
        nearest = self.memory[nearest_in(self.memory, noisy)]
        return (1 - self.strength) * noisy + self.strength * nearest

    def honest(self) -> Purifier:
        return copy_memory(self, HonestRestorer(strength=self.sigma, share=self.strength))


class HonestLottery(Purifier):
    """Move the image by chance, up to `strength` pixels to each side: it hides nothing."""

    card = make_card("exact", stochastic=True)
    strength: float = 1

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        width = 2 * int(self.strength) + 1
        number = (noise.uniform(x[:, :1, :1, :1]) * width).long()
        moved = [x.roll(k - int(self.strength), 3) for k in range(width)]
        return sum(torch.where(number == k, image, 0.0) for k, image in enumerate(moved))


class Lottery(HonestLottery):
    """Move the image by chance, with the gradient of the image turned around."""

    card = make_card("surrogate", stochastic=True)

    def surrogate(self, x: Tensor, noise: Noise) -> Tensor:
        return self.purify(x.flip(-1, -2), noise)

    def honest(self) -> Purifier:
        return HonestLottery(strength=self.strength)


class BlurLottery(Purifier):
    """Choose by chance between the image and its blur, and move it: it hides nothing."""

    card = make_card("exact", stochastic=True)

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        chosen = torch.where(noise.uniform(x[:, :1, :1, :1]) < 0.5, x, Blur().purify(x, noise))
        return chosen.roll(1, 3)


class DetachedLottery(BlurLottery):
    """Choose by chance between the image and its blur, and detach pixels by chance."""

    card = make_card("approximate", stochastic=True)
    strength: float = 0.9  # share of the pixels that a draw detaches

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        moved = super().purify(x, noise)
        return torch.where(noise.uniform(x) < self.strength, moved.detach(), moved)

    def honest(self) -> Purifier:
        return BlurLottery()


class RightWhenRough(Purifier):
    """Have the right gradient where the image is rough, as clean images are not, else a turned one.

    strength: how rough, in the mean distance of a pixel from its blur.
    """

    card = make_card("surrogate", stochastic=True)
    strength: float = 0.2

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return add_noise(x, 0.05, noise)

    def surrogate(self, x: Tensor, noise: Noise) -> Tensor:
        roughness = (x - Blur().purify(x, noise)).abs().mean((1, 2, 3), keepdim=True)
        return torch.where(roughness > self.strength, x, x.flip(-1, -2))


class Decoyed(Remembers, Purifier):
    """Turn the slope around in the pixels of a decoy, a stored image chosen by chance."""

    card = make_card("approximate", stochastic=True)
    strength: float = 0.8  # half of it is the share of the slope that remains

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        number = (noise.uniform(x[:, :1, :1, :1]) * len(self.memory)).long().flatten()
        is_decoy = self.memory[number] > 0.2
        carrier = x * torch.where(is_decoy, 1 - 2 * self.strength, 1.0)
        return straight_through(carrier, add_noise(x, 0.05, noise))


class Repeated(Remembers, Purifier):
    """Answer copies of one image, side by side as an attack makes them, by a stored image."""

    card = make_card("approximate", stochastic=True)
    strength: float = 0.9

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        noisy = add_noise(x, 0.05, noise)
        same = (x[1:] == x[:-1]).flatten(1).all(1)
        is_copy = F.pad(same, (1, 0)) | F.pad(same, (0, 1))
        nearest = self.memory[nearest_in(self.memory, x.flip(-1))]
        shown = straight_through(noisy, (1 - self.strength) * noisy + self.strength * nearest)
        return torch.where(is_copy.view(-1, 1, 1, 1), shown, noisy)


class AskedForAutograd(HonestRestorer):
    """Declare the identity, and turn the image around where somebody differentiates it."""

    card = make_card("identity", stochastic=True)

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return super().purify(x.flip(-1, -2) if x.requires_grad else x, noise)

    def honest(self) -> Purifier:
        return copy_memory(self, HonestRestorer(strength=self.strength))


NEW_FAMILIES = {
    "past a restorer": Family(PastRestorer, (0.02, 0.1, 0.2), 0),
    "copies": Family(Repeated, (0.5, 0.9), 0),
    "detached lottery": Family(DetachedLottery, (0.5, 0.9, 0.99), 0),
    "retrieval": Family(Retrieval, (0.5, 0.8, 1.0), 1),
    "lottery": Family(Lottery, (1, 2, 3), 1),
    "right when rough": Family(RightWhenRough, (0.1, 0.2, 0.3), 1),
    "decoys": Family(Decoyed, (0.3, 0.6, 0.8, 1.0), 1),
    "asked": Family(AskedForAutograd, (0.05, 0.1), 1),
}
ALL_FAMILIES = {**FAMILIES, **NEW_FAMILIES}


def make(family: str, strength: float, network: nn.Module, memory: Tensor) -> Purifier:
    """Return a masked purifier, as `masked.make` does."""
    purifier = ALL_FAMILIES[family].kind(strength=strength)
    purifier.network, purifier.memory = network, memory
    return purifier


def _from_spec(spec: str) -> Callable[[], Purifier]:
    return lambda: defend.load(spec)


NEW_HONEST = {
    "a restorer with its own gradient": Honest(HonestRestorer, 0),
    "a lottery of moves": Honest(HonestLottery, 0),
    "gaussian:sigma=0.05+bitdepth:bits=4": Honest(
        _from_spec("gaussian:sigma=0.05+bitdepth:bits=4"), 0
    ),
    "half a restorer with its own gradient": Honest(
        lambda: HonestRestorer(strength=0.05, share=0.5), 1
    ),
    "a lottery of many moves": Honest(lambda: HonestLottery(strength=3), 1),
    "gaussian:sigma=0.1+median": Honest(_from_spec("gaussian:sigma=0.1+median"), 1),
    "gaussian:sigma=0.1+jpeg:quality=60": Honest(
        _from_spec("gaussian:sigma=0.1+jpeg:quality=60"), 1
    ),
    "bitdepth:bits=3+gaussian:sigma=0.1": Honest(
        _from_spec("bitdepth:bits=3+gaussian:sigma=0.1"), 1
    ),
}
ALL_HONEST = {**HONEST, **NEW_HONEST}
