"""The search of `persist` through every gradient, compared with the same search through one."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from defend.auditing.comparison import MIN_GAP, compare_attempts
from defend.auditing.context import Context
from defend.auditing.declared import DeclaredAttack
from defend.auditing.session import Session
from defend.auditing.verdict import CheckResult, NotApplicable, NotTried
from defend.benchmarks.component_keys import is_undefended
from defend.search_moves import NEVER, Move


class PersistentSearch:
    """The search of one budget on the audited pipeline, and what broke the images."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.moves: Counter[str] = Counter()

    def through_declared(self, rows: Tensor) -> Tensor:
        """Return the images of the search through the declared gradient alone."""
        return self._search(rows, "declared")[0]

    def through_every(self, rows: Tensor) -> Tensor:
        """Return the images of the search through every gradient, and count what broke them."""
        x_adv, broken_by = self._search(rows, "every")
        is_broken = (broken_by != NEVER).all(1)
        self.moves = Counter(str(Move.of_numbers(*row)) for row in broken_by[is_broken].tolist())
        return x_adv

    def describe(self) -> str:
        """Return what broke most of the images that were left to this search."""
        if not self.moves:
            return ""
        move, count = self.moves.most_common(1)[0]
        return f", most by {move} ({count} of {self.moves.total()})"

    def _search(self, rows: Tensor, gradients: str) -> tuple[Tensor, Tensor]:
        budget = self.context.budget
        spec = (
            f"persist:gradients={gradients},steps={budget.alternative_steps},"
            f"targets={budget.targets},queries={budget.search_queries},"
            f"rounds={budget.search_rounds}"
        )
        target = self.context.target(rows, stream="persist")
        x_adv = self.context.attack(spec, target, rows)
        nothing = torch.full((len(rows), 3), NEVER)
        return x_adv, target.notes.get("broken_by", nothing)


def check_persistent_search(session: Session) -> CheckResult:
    """Return whether other gradients help a search that goes on.

    The same search through the declared gradient alone counts as one of its attacks, so that what
    is compared are the gradients. What it leaves is kept. Raises NotApplicable, NotTried.
    """
    context, declared = session.context, session.declared
    if not _has_other_gradients(session):
        raise NotApplicable("the declared gradient is the only one")
    if not context.budget.search_rounds:
        raise NotTried("left out of budget=quick")
    search, best = PersistentSearch(context), declared.best.copy()
    if 100 * best.accuracy >= MIN_GAP:
        best.run(search.through_declared)
        declared.searched = best
    return compare_attempts(
        best,
        lambda: [search.through_every],
        "the same search through the declared gradient",
        describe_cost=lambda: search.describe() + _describe_gain(declared),
    )


def _describe_gain(declared: DeclaredAttack) -> str:
    """Return how much the search through the declared gradient broke beyond its attacks."""
    if not declared.search_breaks_more:
        return ""
    return (
        f"; the search through the declared gradient breaks {declared.search_gain:.1f} points"
        " more than its attacks before"
    )


def _has_other_gradients(session: Session) -> bool:
    """Return True if the purifier can be differentiated in another way than it declares."""
    purifier = session.context.purifier
    if is_undefended(purifier):
        return False
    skips_purifier = purifier.card.gradient == "identity"
    return not skips_purifier or purifier.has_relaxation or bool(session.autograd.routes)
