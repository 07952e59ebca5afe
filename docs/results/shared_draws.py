"""What the worst case of a stochastic purifier says where attacks share their draws, against the truth: the numbers of docs/adr/0004.

    python docs/results/shared_draws.py

Simulated as in tests/test_worst.py: 1,000 images, ten draws to choose and twenty to read off, the mean over 40 repetitions. Beside the worst case
stand the rules that were turned down: the best single attack, the bare share of right draws, and the noise taken from the shares.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from defend.results import outcomes

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from test_worst import candidates, margins

REPETITIONS = 40
ROWS = {  # the margins of the clean image and of the attacks
    "nine attacks, alike": lambda rng: margins(rng, 0.0),
    "nine attacks, sd .1": lambda rng: margins(rng, 0.1),
    "nine attacks, sd .3": lambda rng: margins(rng, 0.3),
    "nine attacks, sd .3, and ten null": lambda rng: margins(rng, 0.3, null=10),
    "nine attacks, sd 1": lambda rng: margins(rng, 1.0),
    "two attacks, sd .3": lambda rng: margins(rng, 0.3, attacks=2),
    "one attack, sd 1": lambda rng: margins(rng, 1.0, attacks=1),
    "one attack that leaves .8 p (0002)": lambda rng: one_attack(rng),
    "that attack, and ten null (0002)": lambda rng: one_attack(rng, null=10),
}


def one_attack(rng: np.random.Generator, null: int = 0) -> Any:
    p = rng.uniform(0.3, 0.9, 1000)
    return ndtri(np.stack([p, 0.8 * p, *([p] * null)]))


def of_shares(select: Any) -> Any:
    """The noise as page 2 has it: p (1 - p) / draws, as if no draw were shared."""
    share = select.mean(2)
    return (share * (1 - share)).mean(1) / (select.shape[2] - 1) * (1 - 1 / len(share))


def by(name: str, rule: Callable[[Any], Any], some: list[Any]) -> float:
    """The worst case with another rule in the place of one of its own."""
    kept = getattr(outcomes, name)
    setattr(outcomes, name, rule)
    try:
        return float(outcomes.worst(some).mean())
    finally:
        setattr(outcomes, name, kept)


def values(make: Callable[[Any], Any], shared: float, draws: int, seed: int) -> tuple[float, ...]:
    rng = np.random.default_rng(seed)
    margin = make(rng)
    right, some = ndtr(margin), candidates(rng, margin, shared, draws)
    bare = by("_estimated", lambda select: select.mean(2), some)
    return (
        right.min(0).mean(),
        right.mean(1).min(),
        bare,
        by("_noise", of_shares, some),
        float(outcomes.worst(some).mean()),
    )


def rows(draws: int = 10) -> Iterator[str]:
    yield f"| {draws} draws | shared | truth | best single | bare shares | noise of the shares | noise of the draws |\n|---|---|---|---|---|---|---|"
    for name, make in ROWS.items():
        for shared, said in ((1.0, "all"), (0.5, "half"), (0.0, "none")):
            means = np.mean(
                [values(make, shared, draws, seed) for seed in range(REPETITIONS)], axis=0
            )
            yield f"| {name} | {said} | " + " | ".join(f"{100 * m:.1f}" for m in means) + " |"


if __name__ == "__main__":
    for count in (10, 2):
        print("\n".join(rows(count)), end="\n\n")
