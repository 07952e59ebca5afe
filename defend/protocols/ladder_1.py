"""The protocol ladder-1: every attack that a claim needs, with its settings, for one norm. `tables/claims.py` checks that they were run."""

from __future__ import annotations

from dataclasses import dataclass

from defend.benchmarks.suite import Eps
from defend.losses import CLASSES

EOT = 20
TARGETED_DLR = CLASSES[
    "dlr-targeted"
]  # classes below which it has no denominator: arXiv:2003.01690, equation 7
UNBOUNDED = Eps(text="1", value=1.0)  # in L-inf: any image at all


@dataclass(frozen=True)
class Step:
    """One attack at one level, through every gradient where the level is `adaptive`."""

    attack: str
    knowledge: str
    eps: Eps | None = None  # None: the claim eps


def ladder_1(norm: str, stochastic: bool, classes: int, unbounded: bool = True) -> list[Step]:
    """In the order in which the table prints them. unbounded: with PGD to any image at all, once for all norms."""
    with_norm = "" if norm == "Linf" else f"norm={norm},"
    apgd, pgd = f"apgd:loss=ce,{with_norm}steps=100", f"pgd:{with_norm}steps=40"
    targeted = (
        [Step(f"apgd:loss=dlr-targeted,{with_norm}steps=100", "adaptive")]
        if classes >= TARGETED_DLR
        else []
    )
    pgd_eot = [Step(f"pgd:{with_norm}steps=200", "adaptive")] if stochastic else []
    blind = [Step(attack, level) for attack in (apgd, pgd) for level in ("oblivious", "transfer")]
    square = f"square:{with_norm}queries={1000 if stochastic else 5000}"  # a stochastic one is measured over EOT draws at each query
    anywhere = [Step("pgd:random_start=false,steps=40", "adaptive", UNBOUNDED)] if unbounded else []
    return [*blind, Step(apgd, "adaptive"), *targeted, *pgd_eot, Step(square, "query"), *anywhere]
