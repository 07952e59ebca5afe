"""How long an audit takes at most, from one forward and one gradient of a few images."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import isnan, nan

import torch
from torch import Tensor

from defend.auditing.context import Context
from defend.auditing.session import result_or_error
from defend.losses import cross_entropy
from defend.threat_models import TEMPERATURES

TIMED_IMAGES = 32
MINUTE_FROM = 90  # seconds from which a duration is printed in minutes


def estimate_seconds(context: Context) -> float:
    """Return the seconds if no attack breaks anything, or NaN if the pipeline cannot run."""
    rows = context.all_rows[:TIMED_IMAGES]
    target = context.target(rows, eot=1, stream="estimate")
    x, y = context.x[rows], context.y[rows]

    def measure() -> tuple[float, float]:
        gradient = _seconds_per_image(lambda: target.gradient(x, y, cross_entropy), rows)
        forward = _seconds_per_image(lambda: target.logits(x), rows)
        return gradient, forward

    seconds = result_or_error(measure)
    if isinstance(seconds, Exception):
        return nan
    temperatures = len(TEMPERATURES) if context.purifier.has_relaxation else 0
    cost = context.budget.cost(len(context.surrogates), temperatures)
    return seconds[0] * cost.gradients + seconds[1] * cost.forwards


def _seconds_per_image(run: Callable[[], object], rows: Tensor) -> float:
    run()  # warm up
    start = time.perf_counter()
    run()
    if rows.device.type == "cuda":
        torch.cuda.synchronize(rows.device)
    return (time.perf_counter() - start) / len(rows)


def describe_duration(context: Context) -> str:
    """Return how long the audit takes at most, as one line."""
    seconds = estimate_seconds(context)
    if isnan(seconds):
        return "the duration cannot be estimated: a first gradient could not be computed"
    fit = ""
    if context.budget.fits_network(context.purifier):
        fit = "; the fit of the learned gradient comes on top"
    return f"at most about {format_seconds(seconds)}, if no attack breaks anything{fit}"


def format_seconds(seconds: float) -> str:
    """Return a duration in seconds or minutes."""
    return f"{seconds:.0f} s" if seconds < MINUTE_FROM else f"{seconds / 60:.0f} min"
