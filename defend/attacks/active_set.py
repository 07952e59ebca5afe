"""Keep the state of an attack for each image, and drop the images that are already broken.

An image is broken when the target misclassifies it. It leaves the batch only if `target.may_drop`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor

from defend.losses import margin
from defend.target import Target

# On a GPU, the number of steps between two checks for broken images. These checks are the only
# moments at which an attack waits for the GPU. No result depends on the interval.
REPACK_INTERVAL = 5


@dataclass
class ImageStates:
    """Hold what an attack knows of each image. Abstract: subclasses add fields.

    Every field (tensor, target, noise) has one row for each image, or for each copy of an image,
    where the copies of one image are adjacent.
    """

    results: ClassVar[tuple[str, ...]]  # the fields that are still read after an image was dropped
    target: Target
    broken: Tensor  # (b,) bool

    def take(self, rows: Tensor) -> Self:
        """Return the states of these rows."""
        selected: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            selected[field.name] = value[rows] if isinstance(value, Tensor) else value.take(rows)
        return replace(self, **selected)

    def write_back(self, rows: Tensor, states: Self) -> None:
        """Copy the results of `states`, which were taken from these rows, into this object."""
        for name in (*self.results, "broken"):
            updated = getattr(self, name).index_copy(0, rows, getattr(states, name))
            setattr(self, name, updated)

    def is_final(self) -> Tensor:
        """Return a mask (b,) of the images whose result must not change any more.

        A broken image may stay in the batch until the next repacking. Since its result is final at
        once, no result depends on when the batch is repacked.
        """
        return self.broken if self.target.may_drop else torch.zeros_like(self.broken)


S = TypeVar("S", bound=ImageStates)


def run_active(states: S, step: Callable[[S, int], None], steps: range, copies: int = 1) -> S:
    """Call `step(states, k)`, which updates the states in place, for each k. Return all states.

    If the target may drop images, an image leaves the batch with all its copies at the next
    repacking after one copy was broken.
    """
    active, rows = states, torch.arange(len(states.broken), device=states.broken.device)
    interval = 1 if is_readable_without_waiting(rows) else REPACK_INTERVAL
    for count, k in enumerate(steps):
        if states.target.may_drop and count % interval == 0:
            active, rows = _drop_broken(states, active, rows, copies)
            if not len(rows):
                return states
        step(active, k)
    if active is not states:
        states.write_back(rows, active)
    return states


def _drop_broken(states: S, active: S, rows: Tensor, copies: int) -> tuple[S, Tensor]:
    """Return the active states without broken images, and their rows in `states`.

    The results of the dropped images are written into `states`.
    """
    is_dropped = active.broken.unflatten(0, (-1, copies)).any(1).repeat_interleave(copies)
    remaining = (~is_dropped).nonzero()[:, 0]
    if len(remaining) == len(rows):
        return active, rows
    if active is not states:
        dropped = is_dropped.nonzero()[:, 0]
        states.write_back(rows[dropped], active.take(dropped))
    return active.take(remaining), rows[remaining]


def is_readable_without_waiting(x: Tensor) -> bool:
    """Return True if the host can read values of x without waiting for a device, as on a CPU."""
    return x.device.type == "cpu"


def mean_over_draws(target: Target, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the mean of function(logits) over fresh draws.

    A deterministic target is queried once, a stochastic one `target.eot` times.
    """
    draws = 1 if target.deterministic else target.eot
    return torch.stack([function(target.logits(x)) for _ in range(draws)]).mean(0)


def goal_margin(logits: Tensor, y: Tensor, targeted: bool) -> Tensor:
    """Return what an attacker lowers below 0: z_y - max over i != y of z_i (b,).

    If targeted, y are the classes that he wants, and it is minus that.
    """
    return -margin(logits, y) if targeted else margin(logits, y)


def mean_margin(target: Target, x: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    """Return the mean of `goal_margin` over fresh draws, of shape (b,)."""
    return mean_over_draws(target, x, lambda logits: goal_margin(logits, y, targeted))


def likeliest_wrong_classes(target: Target, x: Tensor, y: Tensor, n: int) -> Tensor:
    """Return the n classes other than y with the highest mean logits at x, best first: (b, n).

    If there are fewer than n wrong classes, return all of them.
    """
    logits = mean_over_draws(target, x, lambda logits: logits)
    wrong_logits = logits.scatter(1, y[:, None], -float("inf"))
    return wrong_logits.topk(min(n, logits.shape[1] - 1), 1).indices


def select_smallest_margin(
    target: Target, points: Tensor, y: Tensor, copies: int, targeted: bool = False
) -> Tensor:
    """Return for each image the point of the smallest mean margin, measured afresh: (b, c, h, w).

    points: (b copies, c, h, w), the copies of one image adjacent. target and y have a row for each
    copy. If a copy is misclassified by a deterministic target, the selected one is misclassified.
    """
    if copies == 1:
        return points
    best = mean_margin(target, points, y, targeted).unflatten(0, (-1, copies)).argmin(1)
    return select_copy(points, best, copies)


def select_copy(points: Tensor, copy: Tensor, copies: int) -> Tensor:
    """Return for each image the point of the given copy.

    points: (b copies, c, h, w). copy: (b,) in 0..copies-1. The result has shape (b, c, h, w).
    """
    images = torch.arange(len(copy), device=copy.device)
    selected: Tensor = points.unflatten(0, (-1, copies))[images, copy]
    return selected
