"""A purifier made of purifiers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from defend.noise import Noise
from defend.purifier import Card, Purifier


class Chain(Purifier):
    """x -> members[0] -> members[1] -> ...; each keeps its own noise, memory, checks and declared gradient."""

    members: tuple[Purifier, ...]

    def validate(self) -> None:
        self.require(len(self.members) >= 1, "members", "at least one purifier")
        self.require(
            len(self.card.channels) >= 1, "members", "purifiers that share a number of channels"
        )

    @property
    def card(self) -> Card:  # type: ignore[override]
        cards = [m.card for m in self.members]
        return Card(
            paper="none: a chain of " + ", ".join(type(m).__name__ for m in self.members),
            gradient=next(
                (g for g in ("exact", "identity") if {c.gradient for c in cards} == {g}),
                "approximate",
            ),
            stochastic=any(c.stochastic for c in cards),
            channels=tuple(sorted(set.intersection(*(set(c.channels) for c in cards)))),
        )

    @property
    def settings(self) -> dict[str, Any]:
        return {"members": [{"name": type(m).__name__, **m.settings} for m in self.members]}

    @property
    def trained_on(self) -> str | None:
        known = [m.trained_on for m in self.members if m.trained_on is not None]
        return " + ".join(known) or None

    @property
    def weights_sha256(self) -> dict[str, str]:
        return {name: digest for m in self.members for name, digest in m.weights_sha256.items()}

    def networks(self) -> list[nn.Module]:
        return [net for m in self.members for net in m.networks()]

    def move(self, device: str | torch.device) -> None:
        for member in self.members:
            member.move(device)
        super().move(device)

    def run_as(self, precision: str, layout: str) -> None:
        for member in self.members:
            member.run_as(precision, layout)

    def example(self, n: int = 6) -> Tensor:
        return self.members[0].example(n)

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        for stage, member in enumerate(self.members):
            x = member.purified(x, noise.fork(str(stage)))
        return x


def members_of(purifier: Purifier) -> tuple[Purifier, ...]:
    """Of a chain its members; anything else is its own only one."""
    return purifier.members if isinstance(purifier, Chain) else (purifier,)
