"""The attack whose gradient is measured by finite differences of the loss."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from defend.auditing.comparison import Attempt
from defend.auditing.context import Context
from defend.auditing.margins import MarginsLowered, mean_margin
from defend.auditing.spsa import spsa


class FiniteDifferences:
    """SPSA on the audited pipeline, and whether it moved anything."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.margins = MarginsLowered()

    def make_attempts(self) -> Iterator[Attempt]:
        """Yield the attack."""
        yield self._attack

    def _attack(self, rows: Tensor) -> Tensor:
        context, budget, x = self.context, self.context.budget, self.context.x[rows]
        x_adv = spsa(
            context.target(rows, stream="spsa"),
            x,
            context.y[rows],
            context.eps,
            context.noise.take(rows).fork("spsa"),
            budget.spsa_steps,
            budget.spsa_pairs,
        )
        self.margins.add(mean_margin(context, x, rows), mean_margin(context, x_adv, rows))
        return x_adv

    @property
    def inconclusive(self) -> str:
        """Return why the attack is not judged; "" if it is."""
        return self.margins.standstill

    def describe(self) -> str:
        """Return the number of steps and queries."""
        steps, pairs = self.context.budget.spsa_steps, self.context.budget.spsa_pairs
        return f", in {steps} steps, {2 * pairs * steps} queries an image"
