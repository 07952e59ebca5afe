"""The worst point of each image that several attacks found, and how points are judged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from defend.attacks.active_set import mean_margin
from defend.losses import margin
from defend.norms import per_image
from defend.target import Target

JUDGED_DRAWS = 20  # behind noise: of each point that is compared with another


@dataclass
class WorstPoints:
    """Hold the worst point of each image so far."""

    x_adv: Tensor  # (b, c, h, w)
    margin: Tensor  # (b,): the smallest margin
    is_wrong: Tensor  # (b,) bool: True if some attack broke the image

    def update(self, rows: Tensor, x_adv: Tensor, margin: Tensor, is_wrong: Tensor) -> Tensor:
        """Replace the points of these rows where x_adv is wrong or has a smaller margin.

        Return where: (len(rows),) bool.
        """
        is_worse = is_wrong | (margin < self.margin[rows])
        self.replace(rows, x_adv, is_worse)
        self.margin = self.margin.index_copy(0, rows, torch.minimum(margin, self.margin[rows]))
        self.is_wrong = self.is_wrong.index_copy(0, rows, self.is_wrong[rows] | is_wrong)
        return is_worse

    def replace(self, rows: Tensor, x_adv: Tensor, mask: Tensor) -> None:
        """Replace the points of those of these rows that are in `mask`."""
        chosen = torch.where(per_image(mask, x_adv), x_adv, self.x_adv[rows])
        self.x_adv = self.x_adv.index_copy(0, rows, chosen)


def judge(target: Target, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean margins, and which images are wrong as the score counts it, each (b,).

    Of equal highest logits, the first one is the prediction. Where no image may be dropped, the
    smallest margin alone decides, and no image counts as wrong.
    """
    if not target.may_drop:
        return mean_margin(target, x_adv, y), torch.zeros_like(y, dtype=torch.bool)
    logits = target.logits(x_adv)
    return margin(logits, y), logits.argmax(1) != y


@dataclass
class Judgement:
    """What a pipeline with noise makes of points, over a number of draws."""

    right: Tensor  # (b,): the share of draws in which the point is classified as its label
    margin: Tensor  # (b,): the mean margin

    def is_worse_than(self, other: Judgement) -> Tensor:
        """Return where fewer draws are right, or as many at a smaller mean margin: (b,)."""
        is_tie = self.right == other.right
        return (self.right < other.right) | (is_tie & (self.margin < other.margin))


def judge_draws(target: Target, x_adv: Tensor, y: Tensor, name: str) -> Judgement:
    """Return what the draws of this name make of the points; equal names are equal draws."""
    target = target.fork(name)
    logits = [target.logits(x_adv) for _ in range(JUDGED_DRAWS)]
    right = torch.stack([values.argmax(1) == y for values in logits]).to(x_adv.dtype)
    return Judgement(right.mean(0), torch.stack([margin(v, y) for v in logits]).mean(0))


def is_worse_behind_noise(
    target: Target, candidate: Tensor, incumbent: Tensor, y: Tensor, name: str
) -> Tensor:
    """Return where the candidate is worse than the incumbent on equal draws, twice: (b,).

    One comparison alone would choose lucky candidates, of which a long search makes many.
    """
    first, second = (
        judge_draws(target, candidate, y, f"{name}, {part}").is_worse_than(
            judge_draws(target, incumbent, y, f"{name}, {part}")
        )
        for part in ("first", "second")
    )
    return first & second
