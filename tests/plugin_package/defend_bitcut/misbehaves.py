"""A purifier that breaks its contract, in the way its field says: the benchmark must notice, and keep others out of it."""

import os
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from defend import Card, Noise, Purifier


class Misbehaves(Purifier):
    """Does what ``how`` says."""

    card = Card(paper="none: a broken example", gradient="identity", stochastic=False)
    how: Literal[
        "writes", "nan", "random", "late", "raises", "dies", "cuts", "remembers", "centres"
    ]

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        if self.how == "writes":
            return x.mul_(0.5)
        if self.how == "dies":
            os._exit(3)
        if self.how == "cuts":
            return x[..., :-1]
        if self.how == "centres":
            return (x - x.mean(0, keepdim=True) + 0.5).clamp(0, 1)
        if self.how == "remembers":
            return self._nearest_seen(x)
        clean = torch.equal(16 * x, (16 * x).round())  # those of `digits` have 17 shades
        if self.how == "raises" and not clean:
            raise RuntimeError("adversarial images are not to my taste")
        if self.how == "late" and clean:
            return x
        trembled = (x + 0.3 * noise.normal(x)).clamp(0, 1)
        return {"nan": torch.full_like(x, torch.nan), "random": trembled, "late": trembled}.get(
            self.how, x
        )

    def _nearest_seen(self, x: Tensor) -> Tensor:
        """A picture near one seen before is that one: what an attack makes of it is the clean image again."""
        memory = self.__dict__.setdefault("memory", x[:0].detach().clone())
        if len(memory):
            distance, which = torch.cdist(
                x.detach().flatten(1), memory.flatten(1), p=torch.inf
            ).min(1)
            x = torch.where((distance < 0.25)[:, None, None, None], memory[which], x)
        self.__dict__["memory"] = torch.cat([memory, x.detach()])
        return x


class Careless(Purifier):
    """Draws from elsewhere than its noise: at each call, or once, when it is made."""

    card = Card(paper="none: a broken example", gradient="identity", stochastic=True)
    once: bool

    def validate(self) -> None:
        self.__dict__["shift"] = 0.2 * torch.rand(())

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        drawn = self.__dict__["shift"] if self.once else 0.2 * torch.randn_like(x)
        return (x + drawn + 0.01 * noise.normal(x)).clamp(0, 1)


class FromFile(Purifier):
    """Multiplies by what stands in a file."""

    card = Card(paper="none: an example", gradient="exact", stochastic=False)
    file: str

    def validate(self) -> None:
        self.__dict__["factor"] = float(Path(self.file).read_text())

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return x * self.__dict__["factor"]


class Detached(Purifier):
    """Changes nothing, and claims a gradient that it does not have."""

    card = Card(paper="none: a broken example", gradient="exact", stochastic=False)

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return x.detach().clone()
