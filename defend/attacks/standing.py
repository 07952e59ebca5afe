"""What attacks that keep a state for each image share: which images still stand, their likeliest wrong classes, the worst of many points.

An image falls when the target is wrong. Only where `target.may_drop` does it then leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor

from defend.attacks.losses import margin
from defend.target import Target

REPACK = 5  # steps between looks at which images still stand, on a GPU: the only waits for it. No result depends on it


@dataclass
class Rows:
    """Abstract. Fields of one row for each image, or for each copy of it, those of one image together: tensors, a target, noise."""

    results: ClassVar[tuple[str, ...]]  # the fields that are wanted of an image after it has left
    target: Target

    def take(self, at: Tensor) -> Self:
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        taken: dict[str, Any] = {name: v[at] if isinstance(v, Tensor) else v.take(at) for name, v in values.items()}
        return replace(self, **taken)

    def put(self, at: Tensor, some: Self) -> None:
        for name in self.results:
            setattr(self, name, getattr(self, name).index_copy(0, at, getattr(some, name)))


R = TypeVar("R", bound=Rows)


def while_standing(whole: R, step: Callable[[R, int], Tensor], steps: range, copies: int = 1) -> R:
    """`step(rows, k)` for each k: it moves the rows on, in place, and says which have fallen (b,). All rows as they end.

    Where the target may drop images, one of which any copy has fallen leaves with all its copies at the next repacking.
    """
    target, rows = whole.target, whole
    at = torch.arange(len(target.noise), device=target.noise.device)
    every = 1 if looks_are_free(at) else REPACK
    for n, k in enumerate(steps, 1):
        fallen = step(rows, k)
        if not target.may_drop or n % every:
            continue
        gone = fallen.unflatten(0, (-1, copies)).any(1).repeat_interleave(copies)
        left = (~gone).nonzero()[:, 0]
        if len(left) == len(at):
            continue
        if rows is not whole:
            out = gone.nonzero()[:, 0]
            whole.put(at[out], rows.take(out))
        rows, at = rows.take(left), at[left]
        if not len(at):
            return whole
    if rows is not whole:
        whole.put(at, rows)
    return whole


def looks_are_free(x: Tensor) -> bool:
    """May the host look at values without waiting? On a CPU they are there already."""
    return x.device.type == "cpu"


def mean_margin(target: Target, x: Tensor, y: Tensor) -> Tensor:
    """The mean of z_y - max z_i over fresh draws: (b,). One draw where the target is deterministic, `target.eot` elsewhere."""
    draws = 1 if target.deterministic else target.eot
    return torch.stack([margin(target.logits(x), y) for _ in range(draws)]).mean(0)


def likeliest_wrong(target: Target, x: Tensor, y: Tensor, n: int) -> Tensor:
    """The n classes but y (fewer, where there are fewer) of highest mean logit at x, best first: (b, n)."""
    draws = 1 if target.deterministic else target.eot
    logits = torch.stack([target.logits(x) for _ in range(draws)]).mean(0)
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


def column(v: Tensor, like: Tensor) -> Tensor:
    """v (b,) for a product with `like` (b, c, h, w)."""
    return v.view(-1, *[1] * (like.ndim - 1))
