"""Learning rates as functions of the step alone, so that a resumed run needs no state of a scheduler."""

from __future__ import annotations

from math import cos, pi

from defend.training.recipe import Recipe

FIRST, LAST = 25.0, 1e4  # one-cycle: starts at peak / FIRST and ends at peak / (FIRST LAST)


def one_cycle(step: int, steps: int, peak: float, warmup: float) -> float:
    """Smith, Topin, arXiv:1708.07120: up to `peak` in the first share of the steps, then down to almost nothing, along cosines."""
    top = warmup * steps - 1  # the step of the peak
    if step <= top:
        return _cosine(peak / FIRST, peak, step / top) if top > 0 else peak
    return _cosine(peak, peak / (FIRST * LAST), (step - top) / max(steps - 1 - top, 1))


def cosine(step: int, steps: int, peak: float) -> float:
    """Loshchilov, Hutter, arXiv:1608.03983, equation 5, without restarts."""
    return _cosine(peak, 0.0, step / steps)


def rate(step: int, steps: int, recipe: Recipe) -> float:
    if recipe.schedule == "one-cycle":
        return one_cycle(step, steps, recipe.lr, recipe.warmup)
    return cosine(step, steps, recipe.lr) if recipe.schedule == "cosine" else recipe.lr


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + cos(pi * share)) / 2
