"""Print how often two purifiers that are equally good are called different, if one is right or
wrong on each image and the other is right in k of 20 draws: the table of docs/adr/0005.

    python docs/results/shares_compared.py

It compares the paired permutation test alone, a bootstrap of the differences, and `stats.compare`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from defend.stats import compare, permutation

RUNS, DRAWS = 300, 20
# Images, and the share that both get right.
CASES = (
    (32, 0.03),
    (50, 0.02),
    (50, 0.5),
    (100, 0.02),
    (200, 0.01),
    (200, 0.3),
    (1000, 0.003),
    (1000, 0.01),
)
HEADINGS = (
    "images",
    "right, %",
    "permutation alone: p < .05, %",
    "bootstrap of differences: holds 0, %",
    "p < .05, %",
    "interval holds 0, %",
)
Floats = NDArray[np.float64]


def main() -> None:
    print(f"| {' | '.join(HEADINGS)} |")
    print("| --- " * len(HEADINGS) + "|")
    for n, p in CASES:
        rng = np.random.default_rng(0)
        runs = [compare_once(*sample_outcomes(rng, n, p), seed) for seed in range(RUNS)]
        shares = " | ".join(f"{100 * share:.0f}" for share in np.mean(runs, 0))
        print(f"| {n:,} | {100 * p:g} | {shares} |")


def sample_outcomes(rng: np.random.Generator, n: int, p: float) -> tuple[Floats, Floats]:
    """Return outcomes (n, 1) and (n, 20) of mean p.

    An image's chance under noise is Beta(1, 1 / p - 1): small nearly everywhere if p is small.
    """
    chance = rng.beta(1, 1 / p - 1, (n, 1))
    deterministic = (rng.random((n, 1)) < p).astype(float)
    return deterministic, (rng.random((n, DRAWS)) < chance).astype(float)


def compare_once(
    deterministic: Floats, stochastic: Floats, seed: int
) -> tuple[bool, bool, bool, bool]:
    """Return whether each test calls them different, and whether each interval holds 0."""
    first, second = deterministic.mean(1), stochastic.mean(1)
    resampled = np.random.default_rng(seed).choice(first - second, (2000, len(first))).mean(1)
    low, high = np.quantile(resampled, (0.025, 0.975))
    comparison = compare(deterministic, stochastic, seed)
    return (
        permutation(first, second, seed) < 0.05,
        bool(low <= 0 <= high),
        comparison.p < 0.05,
        comparison.low <= 0 <= comparison.high,
    )


if __name__ == "__main__":
    main()
