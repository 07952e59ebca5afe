"""What a task is: what the attacker wants, what is measured of each image, and how it is compared.

Attacks, units, tables and the report know no task by name. They ask the task of a cell for the
loss to climb, for the score of each image, for one number over all images with its interval, and
for the comparison of two pipelines.

`output` is what the pipeline gives: logits (b, classes), or images (b, c, h, w) if the task takes
no classifier. `reference` is what it is measured against, one row for each image.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from defend.spec import Configured
from defend.stats import Comparison, compare, interval, per_cluster

# What an attack climbs, as its card says. "task": the loss of the task. "label": losses that make
# a classifier lose the label y. "distortion": what makes a reconstruction wrong.
Objective = Literal["task", "label", "distortion"]
OBJECTIVES: tuple[Objective, ...] = ("task", "label", "distortion")
Unit = Literal["share", "dB", "bpp"]
Arrays = Mapping[str, NDArray[np.generic]]  # detail -> (n, draws, ...)


@dataclass(frozen=True)
class Summary:
    """One number over all images with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number that a task measures beside its score."""

    heading: str  # in a table
    unit: Unit
    higher_is_better: bool  # for the defender
    clean: bool = False  # of clean images alone, the same under every attack


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """One draw of the scored pipeline on a batch of images."""

    x: Tensor  # handed in, (b, c, h, w)
    source: Tensor  # the clean images, (b, c, h, w)
    output: Tensor  # of x
    clean_output: Tensor | None  # of `source` on the same draw; None unless the task compares it
    reference: Tensor
    rate: Tensor | None  # bits per pixel (b,) at which a codec codes x; None for other purifiers
    is_clean: bool  # no attack has touched x


class Task(Configured):
    """Abstract base. The fields of a subclass are typed as those of components."""

    name: ClassVar[str]
    unit: ClassVar[Unit] = "share"  # of the score
    needs_classifier: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True
    # Deterministic pipelines that are scored: an attack may leave an image alone once it is broken.
    may_drop: ClassVar[bool] = False
    default_attacks: ClassVar[tuple[str, ...]] = ()  # of the command line without --attack
    # True: the loss of a clean image may be its minimum, where no gradient says anything.
    clean_is_minimum: ClassVar[bool] = False
    compares_clean_output: ClassVar[bool] = False
    needs_calibration: ClassVar[bool] = False  # on clean images of `val`, behind each pipeline
    # True: who makes a classifier lose the label y has reached the goal of this task.
    label_is_goal: ClassVar[bool] = True
    has_claims: ClassVar[bool] = False  # a protocol says what a claim needs at this task
    compared: ClassVar[tuple[str, ...]] = ()  # measures by which defenses are compared in pairs
    told_of_pairs: ClassVar[str] = ""  # the measure of the attack that is told beside each pair
    least_gap: ClassVar[float] = 0.02  # in the unit of the score: a smaller difference is no sign

    def __post_init__(self) -> None:
        self.validate()

    @property
    @abstractmethod
    def score_means(self) -> str:
        """Return what a share counts, as "right", or what a number in decibels is."""

    @property
    def objectives(self) -> frozenset[Objective]:
        """Return the objectives of attacks that may be run at it."""
        return frozenset(("task", "label"))

    @property
    def measured(self) -> Mapping[str, Measure]:
        """Return the description of each number that `measure` returns."""
        return {}

    @abstractmethod
    def loss(self, output: Tensor, reference: Tensor) -> Tensor:
        """Return what attackers climb: (b,)."""

    @abstractmethod
    def score(self, output: Tensor, reference: Tensor) -> Tensor:
        """Return the score of each image (b,): the higher, the better for the defender."""

    @abstractmethod
    def is_broken(self, output: Tensor, reference: Tensor) -> Tensor:
        """Return for which images (b,) an attack has reached its goal."""

    def reference(self, x: Tensor, y: Tensor, classes: int) -> Tensor:
        """Return what clean images x (b, c, h, w) with labels y (b,) are measured against."""
        return y

    def agree(self, first: Tensor, second: Tensor) -> Tensor:
        """Return which outputs (b,) say the same: the same class."""
        return first.argmax(1) == second.argmax(1)

    def under_attack(self, score: Tensor, clean: Tensor) -> Tensor:
        """Return the score under attack (b, 1) behind a deterministic defense, given the clean one.

        By default it is the score itself.
        """
        return score

    def details(self, deployed: Deployed) -> dict[str, Tensor]:
        """Return further values of each image: (b, ...). `measure` is made of them."""
        return {}

    def measure(self, attacked: Arrays, clean: Arrays, seed: int) -> dict[str, Summary]:
        """Return the measures of `measured` from details (n, draws, ...) under attack and clean.

        A measure that these images or this purifier do not have is left out.
        """
        return {}

    def values(self, name: str, attacked: Arrays) -> NDArray[np.float64] | None:
        """Return a measure of `compared` for each image and draw (n, draws), None without it."""
        return None

    def curve(self, attacked: Arrays, clean: Arrays) -> tuple[tuple[float, float], ...]:
        """Return points (x, y) of the task's curve, such as a ROC; none if it has no curve."""
        return ()

    def calibrated(self, output: Tensor, reference: Tensor) -> Task:
        """Return the task with thresholds from clean outputs (n, classes) of `val`."""
        return self

    @property
    def thresholds(self) -> dict[str, float]:
        """Return the thresholds that calibration fixed."""
        return {}

    @property
    def accepted(self) -> dict[str, int]:
        """Return how many wrong claims of `val` each threshold accepts: it rests on them."""
        return {}

    def summarise(
        self, scores: ArrayLike, seed: int = 0, clusters: ArrayLike | None = None
    ) -> Summary:
        """Return the mean over scores (n, draws) with its interval over images.

        seed: of the bootstrap. A share of one draw has Wilson's interval. clusters (n,): which
        images show the same thing; each thing then counts once.
        """
        scores = per_cluster(scores, clusters)
        low, high = interval(scores, seed)
        value = torch.from_numpy(scores).mean(1).mean().item()
        return Summary(value=value, low=low, high=high)

    def compare(
        self, a: ArrayLike, b: ArrayLike, seed: int = 0, clusters: ArrayLike | None = None
    ) -> Comparison:
        """Compare scores (n, draws) of two pipelines on the same images, or on their clusters."""
        return compare(per_cluster(a, clusters), per_cluster(b, clusters), seed)

    def reason_against(self, objective: Objective) -> str:
        """Return why an attack with this objective is not run at this task, "" if it is."""
        if objective in self.objectives:
            return ""
        return f"its card says objective={objective!r}, which is not what the task {self} asks for"

    def __str__(self) -> str:
        fields = {k: v for k, v in self.settings.items() if v != type(self).fields()[k][1]}
        texts = ",".join(f"{key}={value}" for key, value in sorted(fields.items()))
        return f"{self.name}:{texts}" if texts else self.name
