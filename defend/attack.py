"""The base class of attacks."""

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
from defend.tasks.task import Objective


@dataclass(frozen=True, kw_only=True)
class AttackCard:
    """The source of an attack, and the access to the target that it needs."""

    paper: str
    access: Access
    norms: tuple[Norm, ...] = ("Linf",)
    # What it climbs: "task" is `target.loss`, the loss of any task; "label" is a loss of its own
    # that makes a classifier lose the label; "distortion" makes a reconstruction wrong.
    objective: Objective = "label"
    # True: it stops at an image once the target is wrong, whatever `target.may_drop` says.
    stops_early: bool = False
    # True: an image's result is the same alone, in any batch and order. Attacks of ART draw noise
    # by row and call, so that theirs is not.
    per_image: bool = True
    # True: through the declared gradient it tries other gradients, too, by itself. Through any
    # other, which the caller chose, it takes that one alone.
    chooses_gradients: bool = False

    def __post_init__(self) -> None:
        check_choice(self, "access")
        check_choice(self, "objective")


@dataclass_transform(kw_only_default=True, eq_default=False)
@dataclass(kw_only=True, eq=False)
class Attack(Configured):
    """Abstract base of attacks.

    A subclass adds annotated fields (keyword-only), a `card`, and `run`. eps is not a field: it
    comes with the call.
    """

    card: ClassVar[AttackCard]
    norm: str = ""  # if it is not set: the first norm of the card

    def __post_init__(self) -> None:
        self.require_card('AttackCard(paper="none: my own", access="gradient")')
        self.norm = self.norm or self.card.norms[0]
        self.require(self.norm in self.card.norms, "norm", " or ".join(self.card.norms))
        self.validate()

    @property
    def is_targeted(self) -> bool:
        """True if `run` takes the classes that images are to become, not those that they are.

        As in ART, a field `targeted` says so.
        """
        return bool(getattr(self, "targeted", False))

    def unsupported(self, stochastic: bool, classes: int) -> str:
        """Return the reason why it cannot attack such a pipeline, in a few words, or "" if it can.

        The bench then skips the pair and prints the reason.
        """
        return ""

    @abstractmethod
    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise) -> Tensor:
        """Return adversarial images (b, c, h, w) in [0, 1], within eps of x.

        y: labels (b,), or what the task of the target measures against: (b, ...). If `is_targeted`,
        the classes (b,) that the images are to become.

        Drop images only if `target.may_drop`.

        Never return the clean image where the attack failed: the pipeline that is scored may be
        another than the target.
        """

    def sweep(
        self, target: Target, x: Tensor, y: Tensor, epsilons: Sequence[float], noise: Noise
    ) -> Iterator[Tensor]:
        """Yield the adversarial images for each eps, each as if it had been asked for alone.

        Override this if several eps can share work. After each, `target.counts` must say what this
        eps costs by itself.
        """
        for eps in epsilons:
            yield self.run(target.again(), x, y, eps, noise.again())
