"""How much the audit does: images and steps for each budget."""

from __future__ import annotations

from dataclasses import dataclass, replace

from defend.benchmarks.component_keys import is_undefended
from defend.errors import BadParameter, suggest_names
from defend.purifier import Purifier

BUDGETS = ("quick", "standard", "thorough")
MIN_IMAGES = 16  # fewer show nothing


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Images, steps and draws of an audit. A step is one gradient for each image still correct."""

    n: int

    # The declared gradient's attacks
    curve_steps: tuple[int, ...]  # of APGD, one run each
    sure_steps: int  # longer runs take place only while the accuracy still falls
    targets: int  # of targeted DLR
    target_steps: int

    # Alternative attacks
    alternative_steps: int  # of each other gradient
    square_queries: int
    max_square_queries: int  # of one run behind a stochastic purifier, where more still help
    search_rounds: int  # of the persistent search; 0: left out
    search_queries: int  # of its random search in each round
    spsa_steps: int  # SPSA: the attack by finite differences
    spsa_pairs: int
    random_draws: int  # of random signs
    fit_images: int  # training images for the learned gradient's network; 0: left out

    # Stochastic purifiers; 1 each for a deterministic one
    eot: int  # copies for a gradient
    max_eot: int  # eot is doubled up to this
    score_draws: int

    # Diagnostics
    probe_images: int  # for checks of gradients and of state
    active_images: int  # of the active test
    inner_points: int  # of the active test, inside the ball around each image

    def fits_network(self, purifier: Purifier) -> bool:
        """Return True if a network is fitted for this purifier's learned gradient."""
        return self.fit_images > 0 and not is_undefended(purifier)

    @property
    def is_stochastic(self) -> bool:
        """Return True if gradients are averaged over copies."""
        return self.eot > 1


_QUICK = Budget(
    n=100,
    curve_steps=(10, 40, 100),
    sure_steps=40,
    targets=3,
    target_steps=20,
    alternative_steps=40,
    square_queries=300,
    max_square_queries=300,
    search_rounds=0,
    search_queries=30,
    spsa_steps=8,
    spsa_pairs=16,
    random_draws=10,
    fit_images=0,
    eot=1,
    max_eot=1,
    score_draws=1,
    probe_images=32,
    active_images=12,
    inner_points=100,
)
_STANDARD = Budget(
    n=256,
    curve_steps=(10, 40, 100, 400),
    sure_steps=40,
    targets=3,
    target_steps=50,
    alternative_steps=100,
    square_queries=1000,
    max_square_queries=1000,
    search_rounds=2,
    search_queries=100,
    spsa_steps=15,
    spsa_pairs=20,
    random_draws=20,
    fit_images=2000,
    eot=1,
    max_eot=1,
    score_draws=1,
    probe_images=64,
    active_images=32,
    inner_points=200,
)
_THOROUGH = Budget(
    n=1000,
    curve_steps=(10, 40, 100, 400),
    sure_steps=100,
    targets=9,
    target_steps=100,
    alternative_steps=200,
    square_queries=5000,
    max_square_queries=5000,
    search_rounds=6,
    search_queries=500,
    spsa_steps=40,
    spsa_pairs=30,
    random_draws=50,
    fit_images=10000,
    eot=1,
    max_eot=1,
    score_draws=1,
    probe_images=256,
    active_images=128,
    inner_points=999,
)
_DETERMINISTIC = {"quick": _QUICK, "standard": _STANDARD, "thorough": _THOROUGH}
_STOCHASTIC = {  # each step costs `eot` gradients, and each score `score_draws` forwards
    "quick": replace(
        _QUICK,
        n=64,
        curve_steps=(10, 40, 100),
        targets=1,
        target_steps=10,
        alternative_steps=20,
        search_queries=10,
        square_queries=30,
        max_square_queries=120,
        spsa_steps=5,
        eot=5,
        max_eot=10,
        score_draws=10,
    ),
    "standard": replace(
        _STANDARD,
        n=160,
        curve_steps=(10, 40, 100),
        targets=1,
        target_steps=20,
        alternative_steps=40,
        search_queries=20,
        square_queries=100,
        max_square_queries=400,
        spsa_steps=8,
        eot=10,
        max_eot=40,
        score_draws=20,
    ),
    "thorough": replace(
        _THOROUGH,
        n=500,
        curve_steps=(10, 40, 200),
        targets=3,
        target_steps=40,
        search_queries=100,
        square_queries=1000,
        max_square_queries=2000,
        eot=20,
        max_eot=80,
        score_draws=20,
    ),
}


def budget_for(name: str, stochastic: bool, n: int | None) -> Budget:
    """Return the budget of this name, with n images if n is given. Raises BadParameter."""
    if name not in BUDGETS:
        raise BadParameter(
            f"budget {name!r}: expected {', '.join(BUDGETS)}.{suggest_names(str(name), BUDGETS)}"
        )
    budget = (_STOCHASTIC if stochastic else _DETERMINISTIC)[name]
    if n is None:
        return budget
    if isinstance(n, bool) or not isinstance(n, int) or n < MIN_IMAGES:
        raise BadParameter(
            f"n = {n!r}: expected a whole number >= {MIN_IMAGES}: fewer images show nothing"
        )
    return replace(
        budget,
        n=n,
        probe_images=min(budget.probe_images, n),
        active_images=min(budget.active_images, n),
    )
