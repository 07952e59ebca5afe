"""What attacks that keep a state for each image share: which images still stand, their likeliest wrong classes, the worst of many points.

An image falls when the target is wrong. Only where `target.may_drop` does it then leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor

from defend.losses import margin
from defend.target import Target

REPACK = 5  # steps between looks at which images still stand, on a GPU: the only waits for it. No result depends on it


@dataclass
class Rows:
    """Abstract. Fields of one row for each image, or for each copy of it, those of one image together: tensors, a target, noise."""

    results: ClassVar[tuple[str, ...]]  # the fields that are wanted of an image after it has left
    target: Target
    fallen: Tensor  # (b,) bool

    def take(self, at: Tensor) -> Self:
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        taken: dict[str, Any] = {
            name: v[at] if isinstance(v, Tensor) else v.take(at) for name, v in values.items()
        }
        return replace(self, **taken)

    def put(self, at: Tensor, some: Self) -> None:
        for name in (*self.results, "fallen"):
            setattr(self, name, getattr(self, name).index_copy(0, at, getattr(some, name)))

    def left_alone(self) -> Tensor:
        """Images (b,) that keep what they have, though they may still be in the batch: no result depends on repacking."""
        return self.fallen if self.target.may_drop else torch.zeros_like(self.fallen)


R = TypeVar("R", bound=Rows)


def while_standing(whole: R, step: Callable[[R, int], None], steps: range, copies: int = 1) -> R:
    """`step(rows, k)` for each k, which moves the rows on in place. All rows as they end.

    Where the target may drop images, one of which any copy has fallen leaves with all its copies at the next repacking.
    """
    rows, at = whole, torch.arange(len(whole.fallen), device=whole.fallen.device)
    every = 1 if looks_are_free(at) else REPACK
    for n, k in enumerate(steps):
        if whole.target.may_drop and n % every == 0:
            rows, at = _repacked(whole, rows, at, copies)
            if not len(at):
                return whole
        step(rows, k)
    if rows is not whole:
        whole.put(at, rows)
    return whole


def _repacked(whole: R, rows: R, at: Tensor, copies: int) -> tuple[R, Tensor]:
    """Those that stand, and their places in the whole; the others' results go there."""
    gone = rows.fallen.unflatten(0, (-1, copies)).any(1).repeat_interleave(copies)
    left = (~gone).nonzero()[:, 0]
    if len(left) == len(at):
        return rows, at
    if rows is not whole:
        out = gone.nonzero()[:, 0]
        whole.put(at[out], rows.take(out))
    return rows.take(left), at[left]


def looks_are_free(x: Tensor) -> bool:
    """May the host look at values without waiting? On a CPU they are there already."""
    return x.device.type == "cpu"


def over_draws(target: Target, x: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean of what is made `of` the logits, over fresh draws: one where the target is deterministic, `target.eot` elsewhere."""
    draws = 1 if target.deterministic else target.eot
    return torch.stack([of(target.logits(x)) for _ in range(draws)]).mean(0)


def mean_margin(target: Target, x: Tensor, y: Tensor) -> Tensor:
    """The mean of z_y - max z_i: (b,)."""
    return over_draws(target, x, lambda logits: margin(logits, y))


def likeliest_wrong(target: Target, x: Tensor, y: Tensor, n: int) -> Tensor:
    """The n classes but y (fewer, where there are fewer) of highest mean logit at x, best first: (b, n)."""
    logits = over_draws(target, x, lambda logits: logits)
    return logits.scatter(1, y[:, None], -float("inf")).topk(min(n, logits.shape[1] - 1), 1).indices


def worst(target: Target, points: Tensor, y: Tensor, copies: int) -> Tensor:
    """Of each image's `copies` points (b copies, c, h, w) the one of the smallest mean margin, measured afresh: (b, c, h, w).

    target and y: of the copies. Where one is wrong and the target deterministic, that is a wrong one.
    """
    if copies == 1:
        return points
    at = mean_margin(target, points, y).unflatten(0, (-1, copies)).argmin(1)
    picked: Tensor = points.unflatten(0, (-1, copies))[torch.arange(len(at), device=at.device), at]
    return picked
