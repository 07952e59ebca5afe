"""The worst point of each image that several attacks found, and how points are judged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from defend.attacks.active_set import mean_margin
from defend.losses import margin
from defend.norms import per_image
from defend.target import Target


@dataclass
class WorstPoints:
    """Hold the worst point of each image so far."""

    x_adv: Tensor  # (b, c, h, w)
    margin: Tensor  # (b,): the smallest margin
    is_wrong: Tensor  # (b,) bool: True if some attack broke the image

    def update(self, rows: Tensor, x_adv: Tensor, margin: Tensor, is_wrong: Tensor) -> None:
        """Replace the points of these rows where x_adv is wrong or has a smaller margin."""
        is_worse = is_wrong | (margin < self.margin[rows])
        worse = torch.where(per_image(is_worse, x_adv), x_adv, self.x_adv[rows])
        self.x_adv = self.x_adv.index_copy(0, rows, worse)
        self.margin = self.margin.index_copy(0, rows, torch.minimum(margin, self.margin[rows]))
        self.is_wrong = self.is_wrong.index_copy(0, rows, self.is_wrong[rows] | is_wrong)


def judge(target: Target, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean margins, and which images are wrong as the score counts it, each (b,).

    Of equal highest logits, the first one is the prediction. Where no image may be dropped, the
    smallest margin alone decides, and no image counts as wrong.
    """
    if not target.may_drop:
        return mean_margin(target, x_adv, y), torch.zeros_like(y, dtype=torch.bool)
    logits = target.logits(x_adv)
    return margin(logits, y), logits.argmax(1) != y
