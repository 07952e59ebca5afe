"""Whether autograd through `purify` gives another gradient than the declared one, and a useful one.

A purifier may declare the identity or a stand-in though it can be differentiated, and may replace a
step that can be differentiated. Who looks for its weakness differentiates the purifier itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from defend.auditing.context import Context
from defend.chain import declares_autograd
from defend.errors import one_line
from defend.gradients import AUTOGRAD_ROUTES, Backward, PlainAutograd
from defend.losses import negative_margin

PROBED_IMAGES = 8
MIN_WITH_GRADIENT = 0.5  # share of images that need a gradient for an attack to make sense
MAX_ERROR = 80  # characters of an exception in a row of the report


@dataclass
class AutogradRoutes:
    """The ways to differentiate `purify` that differ from the declared gradient."""

    routes: list[PlainAutograd] = field(default_factory=list)
    reason: str = "the declared gradient is that of autograd"  # why there is none
    raises: bool = False  # another gradient is declared, and purify cannot be differentiated


def find_autograd_routes(context: Context) -> AutogradRoutes:
    """Return the ways whose gradient on a few images is neither zero nor one that is known."""
    ways = AutogradRoutes()
    known: list[Tensor] = list(_try_gradient(context, None, []))
    for route in AUTOGRAD_ROUTES:
        errors: list[str] = []
        for gradient in _try_gradient(context, route, errors):
            if _is_useful(gradient) and not any(torch.allclose(gradient, g) for g in known):
                ways.routes.append(route)
                known.append(gradient)
        is_plain = not route.past_replacements
        if is_plain and not declares_autograd(context.purifier) and not ways.routes:
            ways.raises = bool(errors)
            ways.reason = errors[0] if errors else "autograd through purify gives no other gradient"
    return ways


def _try_gradient(
    context: Context, backward: Backward | None, errors: list[str]
) -> Iterator[Tensor]:
    """Yield the gradient (b, pixels) of a few images; none and a reason if it raises."""
    rows = context.probe_rows[:PROBED_IMAGES]
    points, labels = context.probe_points[:PROBED_IMAGES], context.probe_y[:PROBED_IMAGES]
    target = context.target(rows, backward, eot=1, stream="autograd")
    try:
        gradient, _, _ = target.gradient(points, labels, negative_margin)
    except Exception as e:  # `purify` may use anything that autograd refuses
        text = f"{type(e).__name__}: {one_line(e)}"[:MAX_ERROR]
        errors.append(f"purify cannot be differentiated: {text}")
        return
    yield gradient.flatten(1)


def _is_useful(gradient: Tensor) -> bool:
    is_usable = gradient.isfinite().all(1) & (gradient.abs().amax(1) > 0)
    return bool(is_usable.double().mean() >= MIN_WITH_GRADIENT)
