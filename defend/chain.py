"""A purifier made of purifiers."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from defend.noise import Noise
from defend.purifier import Backward, Card, Purifier, Relaxed
from defend.trained_on import TrainedOn
from defend.weights.third_party import merge_hashes


class Chain(Purifier):
    """x -> members[0] -> members[1] -> ...; each keeps its own noise, memory, checks and
    gradient.
    """

    members: tuple[Purifier, ...]

    def validate(self) -> None:
        """Raise BadParameter without members, or if they share no number of channels."""
        self.require(len(self.members) >= 1, "members", "at least one purifier")
        self.require(
            len(self.card.channels) >= 1, "members", "purifiers that share a number of channels"
        )

    @property
    def card(self) -> Card:  # type: ignore[override]
        """The claims that hold for all members together."""
        cards = [member.card for member in self.members]
        names = ", ".join(type(member).__name__ for member in self.members)
        channels = set.intersection(*(set(card.channels) for card in cards))
        return Card(
            paper=f"none: a chain of {names}",
            gradient=self._gradient(cards),
            stochastic=any(card.stochastic for card in cards),
            channels=tuple(sorted(channels)),
        )

    @staticmethod
    def _gradient(cards: list[Card]) -> Literal["exact", "identity", "approximate"]:
        """Return the gradient that all members declare if it is "exact" or "identity", else
        "approximate".
        """
        if all(card.gradient == "exact" for card in cards):
            return "exact"
        if all(card.gradient == "identity" for card in cards):
            return "identity"
        return "approximate"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of all members, in order."""
        return {
            "members": [
                {"name": type(member).__name__, **member.settings} for member in self.members
            ]
        }

    @property
    def trained_on(self) -> tuple[TrainedOn, ...]:
        """What the training of each learned member knew."""
        return tuple(known for member in self.members for known in member.trained_on)

    @property
    def weights_sha256(self) -> dict[str, str]:
        """The hashes of all members' weights files by their names."""
        return merge_hashes(*(member.weights_sha256 for member in self.members))

    def networks(self) -> list[nn.Module]:
        """Return the networks of all members."""
        networks: list[nn.Module] = []
        for member in self.members:
            networks.extend(member.networks())
        return networks

    def move(self, device: str | torch.device) -> None:
        """Purify on this device from now on."""
        for member in self.members:
            member.move(device)
        super().move(device)

    def run_as(self, precision: str, layout: str) -> None:
        """Deploy every member in this precision and layout."""
        for member in self.members:
            member.run_as(precision, layout)

    def example(self, n: int = 6) -> Tensor:
        """Return a legal batch of the first member."""
        return self.members[0].example(n)

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        """Return the output of the last member. Each member forks the noise by its position."""
        return self._through_members(x, noise, None)

    @property
    def has_relaxation(self) -> bool:
        """True if a member declares `relaxed`."""
        return any(member.has_relaxation for member in self.members)

    def relaxed(self, x: Tensor, noise: Noise, temperature: float) -> Tensor:
        """Return what `purify` returns. Members without a relaxation keep their declared gradient.

        The temperature is in each member's own unit.
        """
        return self._through_members(x, noise, Relaxed(temperature))

    def _through_members(self, x: Tensor, noise: Noise, relaxation: Relaxed | None) -> Tensor:
        for stage, member in enumerate(self.members):
            backward: Backward | None = relaxation if member.has_relaxation else None
            x = member.purified(x, noise.fork(str(stage)), backward)
        return x


def declares_autograd(purifier: Purifier) -> bool:
    """Return True if the declared gradient, of a chain that of each member, is plain autograd."""
    if isinstance(purifier, Chain):
        return all(declares_autograd(member) for member in purifier.members)
    return purifier.card.gradient in ("exact", "approximate")


def members_of(purifier: Purifier) -> tuple[Purifier, ...]:
    """Return the members of a chain; another purifier is its own only member."""
    return purifier.members if isinstance(purifier, Chain) else (purifier,)
