"""Print what the worst case of a stochastic purifier is where attacks share their draws, beside the
truth: the numbers of docs/adr/0004.

    python docs/results/shared_draws.py

Simulated as in tests/test_candidates.py: 1,000 images, ten draws to choose and twenty to read off,
the mean over 40 repetitions. Beside the worst case stand the rules that were turned down: the best
single attack, the bare share of right draws, and the noise taken from the shares.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from defend.results import candidates as worst_case_rule
from defend.results.outcomes import Bits, Outcomes

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from test_candidates import candidates, margins

REPETITIONS = 40
Floats = NDArray[np.float64]
MakeMargins = Callable[[np.random.Generator], Any]
SHARED = {1.0: "all", 0.5: "half", 0.0: "none"}
HEADINGS = (
    "shared",
    "truth",
    "best single",
    "bare shares",
    "noise of the shares",
    "noise of the draws",
)


def one_attack(rng: np.random.Generator, null: int = 0) -> Any:
    """Return the margins of an attack that leaves .8 p, and of null attacks."""
    p = rng.uniform(0.3, 0.9, 1000)
    return ndtri(np.stack([p, 0.8 * p, *([p] * null)]))


# The margins of the clean image and of the attacks.
ROWS: dict[str, MakeMargins] = {
    "nine attacks, alike": lambda rng: margins(rng, 0.0),
    "nine attacks, sd .1": lambda rng: margins(rng, 0.1),
    "nine attacks, sd .3": lambda rng: margins(rng, 0.3),
    "nine attacks, sd .3, and ten null": lambda rng: margins(rng, 0.3, null=10),
    "nine attacks, sd 1": lambda rng: margins(rng, 1.0),
    "two attacks, sd .3": lambda rng: margins(rng, 0.3, attacks=2),
    "one attack, sd 1": lambda rng: margins(rng, 1.0, attacks=1),
    "one attack that leaves .8 p (0002)": one_attack,
    "that attack, and ten null (0002)": lambda rng: one_attack(rng, null=10),
}


def variance_of_shares(select: Bits) -> Floats:
    """Return the noise as docs/adr/0002 has it: p (1 - p) / draws, as if no draw were shared."""
    share = select.mean(2)
    variance = (share * (1 - share)).mean(1) / (select.shape[2] - 1)
    return np.asarray(variance * (1 - 1 / len(share)))


def bare_shares(select: Bits) -> Floats:
    """Return the shares of right draws as they are."""
    return np.asarray(select.mean(2))


def worst_mean(attacks: list[Outcomes]) -> float:
    return float(worst_case_rule.worst_outcomes(attacks).mean())


def worst_mean_with(name: str, rule: Callable[[Bits], Floats], attacks: list[Outcomes]) -> float:
    """Return the worst case with another rule in the place of one of its own."""
    original = getattr(worst_case_rule, name)
    setattr(worst_case_rule, name, rule)
    try:
        return worst_mean(attacks)
    finally:
        setattr(worst_case_rule, name, original)


def simulate(make_margins: MakeMargins, shared: float, draws: int, seed: int) -> tuple[float, ...]:
    """Return the truth and the numbers of each rule."""
    rng = np.random.default_rng(seed)
    margin = make_margins(rng)
    right = ndtr(margin)
    attacks = candidates(rng, margin, shared, draws)
    return (
        right.min(0).mean(),
        right.mean(1).min(),
        worst_mean_with("_estimate_shares", bare_shares, attacks),
        worst_mean_with("_sampling_variance", variance_of_shares, attacks),
        worst_mean(attacks),
    )


def format_rows(draws: int = 10) -> Iterator[str]:
    yield f"| {draws} draws | {' | '.join(HEADINGS)} |"
    yield "|---" * (len(HEADINGS) + 1) + "|"
    for name, make_margins in ROWS.items():
        for shared, label in SHARED.items():
            runs = [simulate(make_margins, shared, draws, seed) for seed in range(REPETITIONS)]
            means = " | ".join(f"{100 * mean:.1f}" for mean in np.mean(runs, axis=0))
            yield f"| {name} | {label} | {means} |"


if __name__ == "__main__":
    for count in (10, 2):
        print("\n".join(format_rows(count)), end="\n\n")
