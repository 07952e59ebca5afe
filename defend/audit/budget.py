"""How much the audit does: images and steps for each budget, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from defend.benchmarks.bpda_network import is_undefended
from defend.benchmarks.purifier_checks import SELECT
from defend.errors import BadParameter, near
from defend.purifier import Purifier

BUDGETS = ("quick", "standard", "thorough")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Steps are gradients for each image that still stands."""

    n: int
    curve: tuple[
        int, ...
    ]  # steps of the declared gradient's APGD; what stands behind `sure` runs while the accuracy still falls
    sure: int
    targets: int  # of targeted DLR
    target_steps: int
    rival: int  # steps of every other gradient
    queries: int  # of Square
    spsa_steps: int  # of the attack by finite differences
    spsa_pairs: int
    noises: int  # draws of random signs
    eot: int  # copies for a gradient; 1 where the purifier is deterministic
    eot_most: int  # doubled up to this
    draws: int  # by which a stochastic purifier is scored
    some: int  # images for checks of state and of gradients
    inner: int  # points inside the ball, of the active test
    active: int  # images of the active test
    images: int  # training images that the learned gradient is fitted on; 0: left out

    def fits(self, purifier: Purifier) -> bool:
        """Is a network fitted for its learned gradient?"""
        return bool(self.images) and not is_undefended(purifier)

    def cost(self, pipelines: int = 0) -> tuple[float, float]:
        """(gradients, forwards) if no attack breaks anything: the most that it can take. The fit of the learned gradient is not in it."""
        declared = sum(self.curve) + 40 + self.targets * self.target_steps + 40
        doubled = 40 * (2 * self.eot_most if self.eot > 1 else 0)
        rivals = (self.rival + min(40, self.rival)) * (
            1 + bool(self.images)
        ) + 160 * pipelines  # the identity, and the learned one
        rest = 100 + 40 * (self.some + self.active) / self.n
        spsa = 2 * self.spsa_pairs * self.spsa_steps + self.queries * (
            2 * self.eot if self.eot > 1 else 1
        )
        scoring = (self.draws + SELECT if self.eot > 1 else 1) * (30 + self.noises) + (
            self.inner * self.active + 60 * self.some
        ) / self.n
        return self.n * (self.eot * (declared + rivals + rest) + doubled), self.n * (spsa + scoring)


_QUICK = Budget(
    n=100,
    curve=(10, 40, 100),
    sure=40,
    targets=3,
    target_steps=20,
    rival=40,
    queries=300,
    spsa_steps=8,
    spsa_pairs=16,
    noises=10,
    eot=1,
    eot_most=1,
    draws=1,
    some=32,
    inner=100,
    active=12,
    images=0,
)
_STANDARD = Budget(
    n=256,
    curve=(10, 40, 100, 400),
    sure=40,
    targets=3,
    target_steps=50,
    rival=100,
    queries=1000,
    spsa_steps=15,
    spsa_pairs=20,
    noises=20,
    eot=1,
    eot_most=1,
    draws=1,
    some=64,
    inner=200,
    active=32,
    images=2000,
)
_THOROUGH = Budget(
    n=1000,
    curve=(10, 40, 100, 400),
    sure=100,
    targets=9,
    target_steps=100,
    rival=200,
    queries=5000,
    spsa_steps=40,
    spsa_pairs=30,
    noises=50,
    eot=1,
    eot_most=1,
    draws=1,
    some=256,
    inner=999,
    active=128,
    images=10000,
)
_PLANS = {"quick": _QUICK, "standard": _STANDARD, "thorough": _THOROUGH}
_STOCHASTIC = {  # each step costs `eot` gradients, and each outcome `draws` forwards
    "quick": replace(
        _QUICK,
        n=64,
        curve=(10, 40),
        targets=1,
        target_steps=10,
        rival=20,
        queries=30,
        spsa_steps=5,
        eot=5,
        eot_most=10,
        draws=10,
    ),
    "standard": replace(
        _STANDARD,
        n=160,
        curve=(10, 40, 100),
        targets=1,
        target_steps=20,
        rival=40,
        queries=100,
        spsa_steps=8,
        eot=10,
        eot_most=40,
        draws=20,
    ),
    "thorough": replace(
        _THOROUGH,
        n=500,
        curve=(10, 40, 200),
        targets=3,
        target_steps=40,
        queries=1000,
        eot=20,
        eot_most=80,
        draws=20,
    ),
}


def budget_for(budget: str, stochastic: bool, n: int | None) -> Budget:
    """Raises BadParameter."""
    if budget not in BUDGETS:
        raise BadParameter(
            f"budget {budget!r}: expected {', '.join(BUDGETS)}.{near(str(budget), BUDGETS)}"
        )
    plan = (_STOCHASTIC if stochastic else _PLANS)[budget]
    if n is None:
        return plan
    if isinstance(n, bool) or not isinstance(n, int) or n < 16:
        raise BadParameter(f"n = {n!r}: expected a whole number >= 16: fewer images show nothing")
    return replace(plan, n=n, some=min(plan.some, n), active=min(plan.active, n))
