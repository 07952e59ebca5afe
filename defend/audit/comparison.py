"""Per image the worst of several attacks, and the contest of other attacks with the declared gradient's best."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defend.audit.context import Context, Floats
from defend.audit.thresholds import THRESHOLDS
from defend.audit.verdict import CheckResult
from defend.benchmarks.purifier_checks import SELECT
from defend.norms import check_attacked
from defend.purifier import Backward
from defend.results.outcomes import Bits, chosen
from defend.stats import mcnemar, permutation

Attempt = Callable[[Tensor], Tensor]  # rows of the scene (b,) -> x_adv (b, c, h, w)


@dataclass(frozen=True)
class Tried:
    """What an attempt did to a stochastic purifier, draw by draw."""

    select: Bits  # (b, 10)
    score: Bits  # (b, draws)
    x_adv: Tensor | None = None  # where it is kept

    def within(self, other: Tried, at: NDArray[np.int64]) -> Tried:
        """This one at those places of the other, which is larger."""
        select, score = other.select.copy(), other.score.copy()
        select[at], score[at] = self.select, self.score
        return Tried(select, score)


def worst_of(tried: Sequence[Tried]) -> tuple[NDArray[np.int64], Tried]:
    """Of which attempt each image is taken (b,), and what it did: chosen on `select`, to be read off on `score`."""
    select, score = np.stack([t.select for t in tried]), np.stack([t.score for t in tried])
    picked, places = chosen(select), np.arange(select.shape[1])
    return picked, Tried(select[picked, places], score[picked, places])


class Best:
    """Per image the worst of what was tried; the clean image is one.

    Deterministic: right where right under all, so that an attack is run on what still stands. Stochastic: chosen as the bench chooses
    (tables/outcomes.chosen), over the same images for every attack. The least of ten draws falls by itself, and leads to weak attacks.
    """

    def __init__(self, context: Context, rows: Tensor, images: bool = True) -> None:
        """images=False: keeps no images of single attempts; of a stochastic purifier outcomes alone, and x_adv stays clean."""
        self.context, self.rows, self.images, self.x_adv = (
            context,
            rows,
            images,
            context.x[rows].clone(),
        )
        self.made: list[
            Tensor
        ] = []  # the images of each attempt; where it was not run, those that broke the image
        self.tried: list[Tried] = []  # of a stochastic purifier; the clean image first
        self.rivals: list[
            Best
        ] = []  # of other attacks on these images or some of them, whichever copy they were contested with
        if context.stochastic:
            self._try(self.x_adv)
        else:
            self.score = context.right(self.x_adv, rows, "score", context.budget.draws)

    def standing(self) -> Tensor:
        """Places that a further attack could still worsen."""
        there = (
            np.arange(len(self.rows)) if self.context.stochastic else np.flatnonzero(self.score > 0)
        )
        return torch.from_numpy(there).to(self.rows.device)

    def run(self, attempt: Attempt) -> None:
        """An attack on what still stands."""
        at = self.standing()
        if not len(at):
            return
        x_adv = attempt(self.rows[at])
        if self.context.stochastic:
            self._try(x_adv)
            self.made += [x_adv] * self.images
        else:  # of equals the last is kept: where nothing succeeds, an attempt and not the clean image
            self.x_adv[at], self.score[at.cpu().numpy()] = (
                x_adv,
                self.context.right(x_adv, self.rows[at], "score", 1),
            )
            self.made += [self.x_adv.clone()] * self.images

    def _try(self, x_adv: Tensor) -> None:
        """As the bench chooses: on `select`, read off on `score`."""
        select, score = (
            self.context.outcomes(x_adv, self.rows, *fork)
            for fork in (("select", SELECT), ("score", self.context.budget.draws))
        )
        self.tried.append(Tried(select, score, x_adv.clone() if self.images else None))
        picked, worst = worst_of(self.tried)
        self.score = np.asarray(worst.score.mean(1), np.float64)
        for k, tried in enumerate(self.tried):
            if tried.x_adv is not None:
                mine = torch.from_numpy(picked == k).to(self.rows.device)
                self.x_adv[mine] = tried.x_adv[mine]

    def copy(self) -> Best:
        new = copy.copy(self)
        new.x_adv, new.score, new.tried, new.made = (
            self.x_adv.clone(),
            self.score.copy(),
            [*self.tried],
            [*self.made],
        )
        return new

    @property
    def accuracy(self) -> float:
        return float(self.score.mean())


def through(
    context: Context, specs: Sequence[str], backward: Backward | None = None
) -> Iterator[Attempt]:
    """Attacks on the audited pipeline."""
    for spec in specs:
        yield lambda rows, s=spec: context.attack(s, context.target(rows, backward), rows)  # type: ignore[misc]


def contest(
    context: Context,
    declared: Best,
    make: Callable[[], Iterable[Attempt]],
    named: str = "the declared gradient's best",
    spent: Callable[[], str] = str,
) -> CheckResult:
    """Do these attacks together break more images than the declared gradient's best?

    They are made only where enough stands to be won. First on the images that stand, where alone something can be won. Where that is
    little, it is all; else on the others too, for the images that the declared gradient breaks and these do not, and a paired test.
    spent: what they cost, to be said where they were run.
    """
    n, left, stands = (
        len(context.x),
        declared.score > 0,
        f"the {100 * declared.accuracy:.1f} % that stand",
    )
    if 100 * declared.accuracy < THRESHOLDS["gap"].value - 1e-9:
        return CheckResult(
            measured=f"of {stands}, no attack can win enough", value=0.0, gap=0.0, p=1.0
        )
    attempts = list(make())
    first = _worst(declared, left, attempts)
    won = float((declared.score[left] - first.score).sum()) / n
    if 100 * won < THRESHOLDS["gap"].value - 1e-9:
        return CheckResult(
            measured=(
                f"breaks {100 * won:.1f} points of {stands}"
                if won > 0
                else f"breaks none of {stands}"
            )
            + spent(),
            value=won,
            gap=won,
            p=1.0,
        )
    other = declared.score.copy()
    other[left] = first.score
    if not left.all():
        other[~left] = _worst(declared, ~left, attempts).score
    gap = float((declared.score - other).mean())
    measured = (
        f"leaves {100 * other.mean():.1f} %, {named} {100 * declared.accuracy:.1f} %{spent()}"
    )
    return CheckResult(
        measured=measured, value=gap, gap=gap, p=paired(context)(other, declared.score)
    )


def paired(context: Context) -> Callable[[Floats, Floats], float]:
    """The paired test over the same images."""
    return permutation if context.stochastic else mcnemar


def _worst(declared: Best, rows: np.ndarray, attempts: Sequence[Attempt]) -> Best:
    best = Best(
        declared.context,
        declared.rows[torch.from_numpy(np.flatnonzero(rows)).to(declared.rows.device)],
        images=False,
    )
    for attempt in attempts:
        best.run(attempt)
    declared.rivals.append(best)
    return best


def together(declared: Best) -> Floats:
    """Per image the worst over the declared gradient's attacks and every rival's: (n,)."""
    rivals = [(rival, rival.rows.cpu().numpy()) for rival in declared.rivals]
    if (
        declared.context.stochastic
    ):  # chosen anew over all; where one was not run, it is as the declared gradient's best
        _, own = worst_of(declared.tried)
        others = [tried.within(own, at) for rival, at in rivals for tried in rival.tried[1:]]
        return np.asarray(worst_of([*declared.tried, *others])[1].score.mean(1), np.float64)
    lowest = declared.score.copy()
    for rival, at in rivals:
        lowest[at] = np.minimum(lowest[at], rival.score)
    return lowest


def to_grid(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """The nearest multiples of 1/255 towards x: never farther from x than x_adv."""
    scaled = x_adv * 255
    scaled = torch.where(
        (scaled - scaled.round()).abs() < 1e-3, scaled.round(), scaled
    )  # a level already, but for float32
    rounded = torch.where(x_adv > x, scaled.floor(), scaled.ceil()) / 255
    out = torch.where(x_adv > x, rounded.maximum(x), rounded.minimum(x))
    check_attacked(out, x, eps, "Linf", "8-bit")
    return out
