"""How far a run is, and its learning rate: functions of the step, or of the time that it took.

A resumed run needs no scheduler state beyond these.
"""

from __future__ import annotations

import time
from math import cos, pi

from defend.training.options import LoopOptions

START_DIVISOR = 25.0  # one-cycle: the first learning rate is peak / START_DIVISOR
END_DIVISOR = 1e4  # one-cycle: the last learning rate is the first one / END_DIVISOR
VIRTUAL_STEPS = 10_000  # of a schedule by wall clock, whose number of steps is not known


class Schedule:
    """The course of a run of so many steps, or of as many as fit into `minutes` of wall clock.

    By wall clock everything counts, validation too; at least one step is taken.
    """

    def __init__(self, options: LoopOptions, steps: int) -> None:
        self._options = options
        self._steps = steps  # where no minutes are given
        self._start = time.perf_counter()
        self.earlier_seconds = 0.0  # that earlier parts of a resumed run took

    @property
    def seconds(self) -> float:
        """The seconds that the run has taken, over all of its parts."""
        return self.earlier_seconds + time.perf_counter() - self._start

    def share(self, step: int) -> float:
        """Return the share of the run, 0 to 1, that is over after this number of steps."""
        if self._options.minutes:
            return min(1.0, self.seconds / (60 * self._options.minutes))
        return step / self._steps

    def is_over(self, step: int) -> bool:
        """Return True if a run that has taken this number of steps takes no more."""
        return step >= 1 and self.share(step) >= 1

    def learning_rate(self, step: int, share: float) -> float:
        """Return the learning rate of the step, before which this share is over."""
        if self._options.minutes:
            return learning_rate(share * VIRTUAL_STEPS, VIRTUAL_STEPS, self._options)
        return learning_rate(step, self._steps, self._options)

    def total_steps(self, step: int) -> int:
        """Return the steps of the whole run; by wall clock as many as its speed so far foretells.

        They are 0 where nothing is known yet.
        """
        if not self._options.minutes:
            return self._steps
        return round(step / self.share(step)) if step else 0


def learning_rate(step: float, steps: int, recipe: LoopOptions) -> float:
    """Return the learning rate of step 0 <= step < steps by the recipe's schedule."""
    if recipe.schedule == "one-cycle":
        return one_cycle(step, steps, recipe.lr, recipe.warmup)
    if recipe.schedule == "cosine":
        return cosine(step, steps, recipe.lr)
    return recipe.lr


def one_cycle(step: float, steps: int, peak: float, warmup: float) -> float:
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


def cosine(step: float, steps: int, peak: float) -> float:
    """Return the cosine learning rate, without restarts.

    Loshchilov, Hutter, arXiv:1608.03983, equation 5.
    """
    return _interpolate(peak, 0.0, step / steps)


def _interpolate(start: float, end: float, progress: float) -> float:
    """Return the value between `start` (progress 0) and `end` (progress 1), along half a cosine."""
    return end + (start - end) * (1 + cos(pi * progress)) / 2
