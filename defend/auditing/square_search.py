"""The search without gradients, which goes on until more queries no longer help.

Behind a deterministic purifier it runs once. Its second half must break next to nothing, and it
must have lowered the margins. Behind a stochastic one it runs again with twice the steps, until the
margin no longer falls.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from defend.auditing.attempts import square_effort
from defend.auditing.comparison import Attempt
from defend.auditing.context import Context
from defend.auditing.margins import MarginsLowered, mean_margin
from defend.auditing.thresholds import THRESHOLDS
from defend.norms import per_image

FLAT_MARGIN = 0.05  # share of the clean margin by which twice the steps may still lower it
# Ours: its squares shrink on a schedule, so that the second half of a search always breaks little;
# it must also have lowered the mean margin by this share of the clean one.
MOVED_ENOUGH = 0.2
SURE_QUERIES = 1000  # of a deterministic purifier, from which on a flat search says something


class SquareSearch:
    """Square on the audited pipeline, and whether it has converged."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.steps, self.draws = square_effort(context)
        self.runs: list[int] = []  # the steps of each run
        self.margins = MarginsLowered()
        self.unfinished = ""  # why more queries would still gain something

    @property
    def inconclusive(self) -> str:
        """Return why the search is not judged; "" if it is."""
        return self.margins.standstill or self.unfinished

    def make_attempts(self) -> Iterator[Attempt]:
        """Yield the search."""
        yield self._search_longer if self._grows else self._search_once

    @property
    def _grows(self) -> bool:
        return self.context.stochastic and not self.context.noise_is_negligible

    @property
    def weakness(self) -> str:
        """Return why no verdict rests on this search; "" if one may."""
        if self.context.stochastic:
            return "behind noise it loses its way long before it ends"
        if self.steps < SURE_QUERIES:
            return f"{self.steps} queries say little"
        if self.margins.share < MOVED_ENOUGH:
            return f"it lowers the mean margin by only {100 * self.margins.share:.0f} %"
        return ""

    def _search(self, rows: Tensor, steps: int) -> tuple[Tensor, Tensor | None]:
        """Return the images, and after how many points each was broken (-1: never)."""
        target = self.context.target(rows, eot=self.draws)
        x_adv = self.context.attack(f"square:queries={steps}", target, rows)
        return x_adv, target.notes.get("wrong_after")

    def _search_once(self, rows: Tensor) -> Tensor:
        x_adv, wrong_after = self._search(rows, self.steps)
        self.runs = [self.steps]
        late = 0 if wrong_after is None else int((wrong_after > self.steps // 2).sum())
        points = 100 * late / len(self.context.x)
        if points > THRESHOLDS.converged.value:
            self.unfinished = f"the second half of its queries still breaks {points:.1f} points"
        clean = mean_margin(self.context, self.context.x[rows], rows)
        self.margins.add(clean, mean_margin(self.context, x_adv, rows))
        return x_adv

    def _search_longer(self, rows: Tensor) -> Tensor:
        """Return the better images of each run; twice the steps run until the margin is flat."""
        self.runs, steps = [], self.steps
        best = self.context.x[rows]
        margin = clean = mean_margin(self.context, best, rows)
        is_flat, longest = False, max(steps, self.context.budget.max_square_queries)
        while not is_flat and steps <= longest:
            x_adv, _ = self._search(rows, steps)
            self.runs.append(steps)
            candidate = mean_margin(self.context, x_adv, rows)
            gain = float((margin - candidate).clamp(min=0).sum())
            best = torch.where(per_image(candidate < margin, best), x_adv, best)
            margin = torch.minimum(margin, candidate)
            is_flat = len(self.runs) > 1 and gain <= FLAT_MARGIN * float(clean.abs().sum())
            steps *= 2
        if not is_flat:
            self.unfinished = "more queries still lower the margin"
        self.margins.add(clean, margin)
        return best

    def describe(self) -> str:
        """Return the number of steps and queries.

        Behind a stochastic purifier each step measures the incumbent image again, beside the
        candidate.
        """
        queries_per_step = 2 * self.draws if self.context.stochastic else 1
        steps = " and ".join(map(str, self.runs))
        return f", in {steps} steps, {sum(self.runs) * queries_per_step} queries an image"
