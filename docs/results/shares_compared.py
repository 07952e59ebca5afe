"""How often two purifiers that are equally good are called different: one right or wrong on each image, the other right in k of 20 draws.

    python docs/results/shares_compared.py

Prints the table of docs/adr/0005: the paired permutation test alone, a bootstrap of the differences, and what `stats.compare` does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from defend.stats import compare, permutation

RUNS, DRAWS = 300, 20
CASES = (
    (32, 0.03),
    (50, 0.02),
    (50, 0.5),
    (100, 0.02),
    (200, 0.01),
    (200, 0.3),
    (1000, 0.003),
    (1000, 0.01),
)  # images, and the share that both get right
Outcomes = NDArray[np.float64]


def main() -> None:
    print(
        "| images | right, % | permutation alone: p < .05, % | bootstrap of differences: holds 0, % | p < .05, % | interval holds 0, % |"
    )
    print("| --- " * 6 + "|")
    for n, p in CASES:
        rng = np.random.default_rng(0)
        print(
            f"| {n:,} | {100 * p:g} | "
            + " | ".join(
                f"{100 * v:.0f}"
                for v in np.mean(
                    [logits_after_purify(*drawn(rng, n, p), i) for i in range(RUNS)], 0
                )
            )
            + " |"
        )


def drawn(rng: np.random.Generator, n: int, p: float) -> tuple[Outcomes, Outcomes]:
    """Outcomes (n, 1) and (n, 20) of mean p. An image's chance under noise is Beta(1, 1 / p - 1): small nearly everywhere, where p is."""
    chance = rng.beta(1, 1 / p - 1, (n, 1))
    return (rng.random((n, 1)) < p).astype(float), (rng.random((n, DRAWS)) < chance).astype(float)


def logits_after_purify(
    right: Outcomes, draws: Outcomes, seed: int
) -> tuple[bool, bool, bool, bool]:
    first, second = right.mean(1), draws.mean(1)
    resampled = np.random.default_rng(seed).choice(first - second, (2000, len(first))).mean(1)
    low, high = np.quantile(resampled, (0.025, 0.975))
    c = compare(right, draws, seed)
    return (
        permutation(first, second, seed) < 0.05,
        low <= 0 <= high,
        c.p < 0.05,
        c.low <= 0 <= c.high,
    )


if __name__ == "__main__":
    main()
