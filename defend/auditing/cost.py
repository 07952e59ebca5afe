"""How many evaluations an audit takes at most: if no attack breaks anything.

The numbers are counted from the checks: tests/test_audit_cost.py counts them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from defend.auditing.budget import Budget
from defend.benchmarks.scoring import SELECT_DRAWS

AVERAGED = 2.5  # of the persistent search: five points, half of the steps; none behind noise
SEARCHED_LOSSES = 3  # that it climbs through each gradient in a round
JUDGED_DRAWS = 20  # behind noise: of each of two points, twice, and of the best after a round
STEPS_OF_TRANSFER = 2 * (40 + 1)  # of both attacks, for each gradient of a surrogate
COMPARISONS = 10  # of other attacks with the declared gradient's best; each scores clean images
DIAGNOSTIC_GRADIENTS = 144  # for each probe image and copy: two traces of 40 and 80, and probes
DIAGNOSTIC_FORWARDS = 98  # for each probe image: indicators 23, state 73, flags 2
SLOPE_IMAGES = 16  # at most
SLOPE_FORWARDS = 40  # for each probe image and copy: the sign "slope"
GROUND_FORWARDS = 320  # for each image on which grounds are measured, and copy
SINGLE_IMAGES = 16  # probe images that are purified one by one, and beside copies, too
FEW_COPIES = 3  # that are tried side by side whatever the budget
PROBE_BATCHES = 3  # clean images, random points, and the images of an attack
ACTIVE_STEPS = 100
UNBOUNDED_STEPS = 100


class Cost(NamedTuple):
    """Evaluations of one image each."""

    gradients: float = 0.0  # through the declared gradient
    identity_gradients: float = 0.0  # past the purifier, which is evaluated without a gradient
    bare_gradients: float = 0.0  # of the classifier alone
    forwards: float = 0.0

    def plus(self, other: Cost) -> Cost:
        """Return the sum of two costs."""
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, factor: float) -> Cost:
        """Return the cost of so many images."""
        return Cost(*(factor * value for value in self))


@dataclass(frozen=True)
class AuditCost:
    """The cost of an audit, by what decides how many images are attacked."""

    declared: Cost  # the declared gradient's attacks, which come first
    alternatives: Cost  # the other attacks; images that the first ones broke cost little
    grounds: Cost  # of what a verdict rests on; none where next to nothing is left
    diagnostics: Cost  # on the same images whatever breaks

    @property
    def total(self) -> Cost:
        """Return the cost if no attack breaks anything."""
        return self.declared.plus(self.rest(1))

    def rest(self, share: float) -> Cost:
        """Return the cost behind the declared attacks if they left this share of the images."""
        grounds = self.grounds.times(share > 0)
        return self.alternatives.times(share).plus(grounds).plus(self.diagnostics)


def copies_side_by_side(budget: Budget) -> list[int]:
    """Return the numbers of copies of one image that stand side by side in attacks, and a few."""
    return sorted({FEW_COPIES, budget.eot, budget.max_eot} - {1})


def count_evaluations(budget: Budget, surrogates: int = 0, gradients: int = 0) -> AuditCost:
    """Return the most that an audit evaluates.

    surrogates: pipelines to transfer from. gradients: through the purifier, beside the declared
    one. The fit of the learned gradient is not included.
    """
    return AuditCost(
        _count_declared(budget).times(budget.n),
        _count_alternatives(budget, surrogates, gradients).times(budget.n),
        _count_grounds(budget),
        _count_diagnostics(budget),
    )


def _draws_of_score(budget: Budget) -> int:
    """Return the forwards that score one attempt on one image."""
    return budget.score_draws + SELECT_DRAWS if budget.is_stochastic else 1


def _count_declared(budget: Budget) -> Cost:
    """Return the cost for each image: the curve of APGD, PGD, targeted DLR, and doubled copies."""
    steps = sum(budget.curve_steps) + len(budget.curve_steps) + 41
    steps += budget.targets * (budget.target_steps + 1)
    gradients, attempts = float(budget.eot * steps), len(budget.curve_steps) + 2
    copies = 2 * budget.eot
    while budget.is_stochastic and copies <= budget.max_eot:
        gradients, attempts, copies = gradients + 40 * copies, attempts + 1, 2 * copies
    clean = 1
    return Cost(gradients=gradients, forwards=(attempts + clean) * _draws_of_score(budget))


def _count_alternatives(budget: Budget, surrogates: int, gradients: int) -> Cost:
    """Return the cost for each image that is attacked."""
    draws = _draws_of_score(budget)
    eot = budget.eot
    steps = budget.alternative_steps + 1 + min(40, budget.alternative_steps) + 1
    replaced_gradients = 1 + (budget.fit_images > 0)
    search = _count_search(budget, gradients)
    return Cost(
        # Relaxed gradients go through the purifier, and so do two attacks of one step.
        # Each has an attack at twice eps, and is compared with differences in eight ways.
        gradients=eot * (STEPS_OF_TRANSFER * 2 * surrogates + 2)
        + budget.max_eot * (steps + min(40, budget.alternative_steps) + 1 + 8) * gradients
        + search.gradients,
        identity_gradients=budget.max_eot * steps * replaced_gradients + search.identity_gradients,
        # Oblivious, twice for 8-bit images, and the starts of the persistent search.
        bare_gradients=eot * STEPS_OF_TRANSFER * 3 + search.bare_gradients,
        forwards=search.forwards
        + _count_queries(budget)
        + draws * _count_attempts(budget, surrogates, gradients),
    )


def _count_search(budget: Budget, gradients: int) -> Cost:
    """Return the cost of the persistent search for each image: through the declared gradient alone,
    and through every one. gradients: beside the declared one and the identity.
    """
    per_path, targets = budget.search_rounds * (budget.alternative_steps + 1), budget.targets
    averaged = 0 if budget.is_stochastic else AVERAGED
    declared_alone = SEARCHED_LOSSES + targets + averaged
    # Targets are climbed through the two best gradients, of which one may be the identity.
    every = SEARCHED_LOSSES * (1 + gradients) + targets * (1 + (gradients > 0)) + averaged
    past_purifier = SEARCHED_LOSSES + targets * (gradients == 0)
    ascents = declared_alone + every + past_purifier
    queries = budget.search_queries * (2 * budget.eot if budget.is_stochastic else 1)
    judged = (ascents + 2) * (budget.eot + 4 * JUDGED_DRAWS if budget.is_stochastic else 2)
    return Cost(
        gradients=budget.eot * per_path * (declared_alone + every),
        identity_gradients=budget.eot * per_path * past_purifier,
        bare_gradients=budget.eot * 2 * per_path,
        forwards=budget.search_rounds * (2 * queries + judged),
    )


def _count_queries(budget: Budget) -> int:
    """Return the forwards of SPSA and Square for each image."""
    draws = SELECT_DRAWS if budget.is_stochastic else 1
    margins = 2 * draws  # of clean images, and of an attack's
    spsa = budget.spsa_steps * (2 * budget.spsa_pairs + 1) + margins
    if not budget.is_stochastic:
        return spsa + budget.square_queries + 1 + margins
    square, steps = SELECT_DRAWS, budget.square_queries  # the margins of clean images
    while steps <= budget.max_square_queries:
        square += steps * 2 * budget.eot + SELECT_DRAWS
        steps *= 2
    return spsa + square + 1


def _count_attempts(budget: Budget, surrogates: int, gradients: int) -> int:
    """Return how often each image is scored by an alternative attack."""
    replaced = 1 + (budget.fit_images > 0) + gradients
    by_gradient = 2 * replaced + 2  # identity, learned, relaxed, autograd; one step
    others = 2 + 2 + 4 * surrogates + budget.random_draws  # SPSA, Square; oblivious
    rounded = len(budget.curve_steps) + 2 + 1 + 2 + 2  # the declared attacks; oblivious, twice
    return by_gradient + others + rounded + COMPARISONS + (gradients > 0)


def _count_grounds(budget: Budget) -> Cost:
    """Return the cost of slopes, and of the attack at twice eps, through the declared gradient."""
    slopes = Cost(forwards=budget.eot * GROUND_FORWARDS)
    control = Cost(gradients=budget.max_eot * (min(40, budget.alternative_steps) + 1))
    return slopes.times(min(SLOPE_IMAGES, budget.probe_images)).plus(control.times(budget.n))


def _count_diagnostics(budget: Budget) -> Cost:
    """Return the cost of checks of the gradient and of state."""
    is_stochastic = budget.is_stochastic
    every_image = Cost(
        # The unbounded attack, and the one on frozen noise.
        gradients=budget.eot * (UNBOUNDED_STEPS + 1) + (40 if is_stochastic else 0),
        # Unbounded 3, drift 2, re-keyed 2, transfer failure; an attack's whole batch, three times.
        forwards=8 * budget.score_draws + 2 + 3 * budget.eot,
    )
    probe = Cost(
        gradients=budget.eot * DIAGNOSTIC_GRADIENTS + 4,
        identity_gradients=2 * budget.eot,
        forwards=DIAGNOSTIC_FORWARDS
        + budget.eot * SLOPE_FORWARDS
        + (2 * SELECT_DRAWS if is_stochastic else 0),
    )
    active = Cost(
        gradients=budget.eot * ACTIVE_STEPS,
        forwards=2 * budget.inner_points + 5,
    )
    copies = Cost(forwards=2 * PROBE_BATCHES * sum(copies_side_by_side(budget)))
    cost = every_image.times(budget.n)
    cost = cost.plus(copies.times(min(SINGLE_IMAGES, budget.probe_images)))
    cost = cost.plus(probe.times(budget.probe_images))
    return cost.plus(active.times(budget.active_images))
