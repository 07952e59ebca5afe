"""What an author of attacks subclasses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, dataclass_transform

from torch import Tensor

from defend.noise import Noise
from defend.norms import Norm
from defend.spec import Configured, check_choice
from defend.target import Access, Target


@dataclass(frozen=True, kw_only=True)
class AttackCard:
    paper: str
    access: Access
    norms: tuple[Norm, ...] = ("Linf",)
    stops_early: bool = False  # does it leave an image alone once the target is wrong, whatever `target.may_drop` says?
    per_image: bool = True  # is an image's result the same alone, in any batch and order? Attacks of ART draw by row and call

    def __post_init__(self) -> None:
        check_choice(self, "access")


@dataclass_transform(kw_only_default=True, eq_default=False)
@dataclass(kw_only=True, eq=False)
class Attack(Configured):
    """Abstract. A subclass adds annotated fields (keyword-only), a `card`, and `run`. eps is no field: it comes with the call."""

    card: ClassVar[AttackCard]
    norm: str = ""  # the first of the card's, where none is given

    def __post_init__(self) -> None:
        self.require_card('AttackCard(paper="none: my own", access="gradient")')
        self.norm = self.norm or self.card.norms[0]
        self.require(self.norm in self.card.norms, "norm", " or ".join(self.card.norms))
        self.validate()

    def unsupported(self, stochastic: bool, classes: int) -> str:
        """Why it cannot attack such a pipeline, in a few words; nothing where it can. The bench then leaves the pair out, with a line."""
        return ""

    @abstractmethod
    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise) -> Tensor:
        """x_adv (b, c, h, w) in [0, 1], within eps of x. Drop images only where `target.may_drop`.

        Never the clean image where the attack failed: what is scored may be another pipeline than the target.
        """

    def sweep(
        self, target: Target, x: Tensor, y: Tensor, epsilons: Sequence[float], noise: Noise
    ) -> Iterator[Tensor]:
        """One x_adv for each eps, each as if it had been asked for alone. Override it where eps can share work.

        After each, `target.counts` says what that eps costs by itself.
        """
        for eps in epsilons:
            yield self.run(target.again(), x, y, eps, noise.again())
