"""The search of `persist` through every gradient, compared with the same search through one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from torch import Tensor

from defend.auditing.comparison import MIN_GAP, compare_attempts
from defend.auditing.context import Context
from defend.auditing.declared import DeclaredAttack
from defend.auditing.session import Session
from defend.auditing.thresholds import THRESHOLDS
from defend.auditing.verdict import CheckResult, NotApplicable, NotTried
from defend.benchmarks.component_keys import is_undefended
from defend.search_moves import NEVER, Move


class PersistentSearch:
    """The search of one budget on the audited pipeline, and what broke the images."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.moves: Counter[str] = Counter()
        self.broken_last = 0  # images that the last round through every gradient broke

    @property
    def inconclusive(self) -> str:
        """Return that more rounds would break more; "" if the last one broke next to nothing."""
        points = 100 * self.broken_last / len(self.context.x)
        if points <= THRESHOLDS.converged.value:
            return ""
        return f"its last round still broke {points:.1f} points"

    def through_declared(self, rows: Tensor) -> Tensor:
        """Return the images of the search through the declared gradient alone."""
        return self._search(rows, "declared")[0]

    def through_every(self, rows: Tensor) -> Tensor:
        """Return the images of the search through every gradient, and count what broke them."""
        x_adv, notes = self._search(rows, "every")
        if "broken_by" not in notes:
            return x_adv
        broken_in, broken_by = notes["broken_in_round"], notes["broken_by"]
        if (broken_in == NEVER).any():  # otherwise nothing is left for another round
            self.broken_last += int((broken_in == notes["rounds"]).sum())
        is_broken = (broken_by != NEVER).all(1)
        self.moves = Counter(str(Move.of_numbers(*row)) for row in broken_by[is_broken].tolist())
        return x_adv

    def describe(self) -> str:
        """Return what broke most of the images that were left to this search."""
        if not self.moves:
            return ""
        count = self.moves[self.strongest_move]
        return f", most by {self.strongest_move} ({count} of {self.moves.total()})"

    @property
    def strongest_move(self) -> str:
        """Return the move that broke most images through every gradient; "" if none did."""
        return next((move for move, _ in self.moves.most_common(1)), "")

    def _search(self, rows: Tensor, gradients: str) -> tuple[Tensor, dict[str, Tensor]]:
        budget = self.context.budget
        spec = (
            f"persist:gradients={gradients},steps={budget.alternative_steps},"
            f"targets={budget.targets},queries={budget.search_queries},"
            f"rounds={budget.search_rounds}"
        )
        target = self.context.target(rows, stream="persist")
        x_adv = self.context.attack(spec, target, rows)
        return x_adv, target.notes


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
    best.alternatives = []  # a comparison by itself
    if 100 * best.accuracy >= MIN_GAP:
        best.run(search.through_declared)
        declared.searched = best
    result = compare_attempts(
        best,
        lambda: [search.through_every],
        "the same search through the declared gradient",
        describe_cost=lambda: search.describe() + _describe_gain(declared),
    )
    return replace(result, inconclusive=search.inconclusive, move=search.strongest_move)


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
