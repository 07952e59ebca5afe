"""How long an audit takes at most, from one evaluation of each kind on a few images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from defend.auditing.comparison import MIN_GAP
from defend.auditing.context import Context
from defend.auditing.cost import AuditCost, Cost, count_evaluations
from defend.auditing.session import result_or_error
from defend.chain import declares_autograd
from defend.gradients import AUTOGRAD_ROUTES, identity
from defend.losses import cross_entropy
from defend.purifier import Purifier
from defend.target import Target
from defend.threat_models import TEMPERATURES

FIRST_IMAGES = 2  # timed first; where they take long, they are enough
LONG = 1.0  # seconds
TIMED_IMAGES = 32
MINUTE_FROM = 90  # seconds from which a duration is printed in minutes
HOUR_FROM = 90 * 60  # and in hours


Evaluation = Callable[[Target, Tensor, Tensor], object]  # of images and labels


@dataclass(frozen=True)
class Estimate:
    """The evaluations of an audit, and the seconds that each kind takes for one image."""

    cost: AuditCost
    seconds: Cost

    def duration(self, cost: Cost) -> float:
        """Return the seconds of a cost."""
        return sum(a * b for a, b in zip(cost, self.seconds, strict=True))


def estimate(context: Context) -> Estimate | None:
    """Return the estimate, or None if the pipeline cannot run."""
    seconds = result_or_error(lambda: _measure(context))
    return None if isinstance(seconds, Exception) else Estimate(announced_cost(context), seconds)


def announced_cost(context: Context) -> AuditCost:
    """Return the most that the audit evaluates."""
    gradients = len(TEMPERATURES) if context.purifier.has_relaxation else 0
    gradients += most_autograd_routes(context.purifier)
    return count_evaluations(context.budget, len(context.surrogates), gradients)


def most_autograd_routes(purifier: Purifier) -> int:
    """Return how many ways to differentiate `purify` may differ from the declared gradient.

    An exact gradient is that of autograd, and replaces no step.
    """
    if not declares_autograd(purifier):
        return len(AUTOGRAD_ROUTES)
    return 0 if purifier.card.gradient == "exact" else len(AUTOGRAD_ROUTES) - 1


def _measure(context: Context) -> Cost:
    """Return the seconds that an evaluation of each kind takes for one image."""
    return Cost(
        gradients=_seconds_per_image(context, _gradient),
        identity_gradients=_seconds_per_image(
            context, lambda target, x, y: _gradient(_past_purifier(target), x, y)
        ),
        bare_gradients=_seconds_per_image(
            context, lambda target, x, y: _gradient(_bare(context, target), x, y)
        ),
        forwards=_seconds_per_image(context, lambda target, x, _: target.logits(x)),
    )


def _gradient(target: Target, x: Tensor, y: Tensor) -> object:
    return target.gradient(x, y, cross_entropy)


def _past_purifier(target: Target) -> Target:
    return Target(target.classifier, target.purifier, target.noise, identity)


def _bare(context: Context, target: Target) -> Target:
    return Target(target.classifier, context.no_defense, target.noise)


def _seconds_per_image(context: Context, run: Evaluation) -> float:
    """Return the time of an evaluation, measured again on more images where that is cheap."""
    seconds, count = _time(context, run, FIRST_IMAGES)
    if seconds < LONG:
        seconds, count = _time(context, run, TIMED_IMAGES)
    return seconds / count


def _time(context: Context, run: Evaluation, images: int) -> tuple[float, int]:
    """Return the seconds for the first images, and their number."""
    rows = context.all_rows[:images]
    target = context.target(rows, eot=1, stream="estimate")
    start = time.perf_counter()
    run(target, context.x[rows], context.y[rows])
    if rows.device.type == "cuda":
        torch.cuda.synchronize(rows.device)
    return time.perf_counter() - start, len(rows)


def describe_duration(context: Context, estimated: Estimate | None) -> str:
    """Return how long the audit takes at most, as one line."""
    if estimated is None:
        return "the duration cannot be estimated: a first gradient could not be computed"
    seconds = estimated.duration(estimated.cost.total)
    fit = ""
    if context.budget.fits_network(context.purifier):
        fit = "; the fit of the learned gradient comes on top"
    return f"at most about {format_seconds(seconds)}, if no attack breaks anything{fit}"


def describe_rest(context: Context, estimated: Estimate, accuracy: float) -> str:
    """Return how long the checks behind the declared attacks take, as one line.

    accuracy: what these attacks left. Behind a deterministic purifier the other attacks run on
    these images alone, behind a stochastic one on all, and on none if too few are left to matter.
    """
    share = 1.0 if context.stochastic else accuracy
    share = share if 100 * accuracy >= MIN_GAP else 0.0
    seconds = estimated.duration(estimated.cost.rest(share))
    return f"at most about {format_seconds(seconds)} more, if no other attack breaks anything"


def format_seconds(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours."""
    if seconds < MINUTE_FROM:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < HOUR_FROM else f"{seconds / 3600:.1f} h"
