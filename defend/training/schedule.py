"""Learning rates as functions of the step alone, so that a resumed run needs no scheduler state."""

from __future__ import annotations

from math import cos, pi

from defend.training.options import LoopOptions

START_DIVISOR = 25.0  # one-cycle: the first learning rate is peak / START_DIVISOR
END_DIVISOR = 1e4  # one-cycle: the last learning rate is the first one / END_DIVISOR


def learning_rate(step: int, steps: int, recipe: LoopOptions) -> float:
    """Return the learning rate of step 0 <= step < steps by the recipe's schedule."""
    if recipe.schedule == "one-cycle":
        return one_cycle(step, steps, recipe.lr, recipe.warmup)
    if recipe.schedule == "cosine":
        return cosine(step, steps, recipe.lr)
    return recipe.lr


def one_cycle(step: int, steps: int, peak: float, warmup: float) -> float:
    """Return the one-cycle learning rate: Smith, Topin, arXiv:1708.07120.

    It rises to `peak` in the share `warmup` of the steps, then falls to almost nothing, both along
    cosines.
    """
    start = peak / START_DIVISOR
    peak_step = warmup * steps - 1
    if step > peak_step:
        progress = (step - peak_step) / max(steps - 1 - peak_step, 1)
        return _interpolate(peak, peak / (START_DIVISOR * END_DIVISOR), progress)
    if peak_step > 0:
        return _interpolate(start, peak, step / peak_step)
    return peak


def cosine(step: int, steps: int, peak: float) -> float:
    """Return the cosine learning rate, without restarts.

    Loshchilov, Hutter, arXiv:1608.03983, equation 5.
    """
    return _interpolate(peak, 0.0, step / steps)


def _interpolate(start: float, end: float, progress: float) -> float:
    """Return the value between `start` (progress 0) and `end` (progress 1), along half a cosine."""
    return end + (start - end) * (1 + cos(pi * progress)) / 2
