"""What a claim needs: the protocol `ladder-1` as a table of requirements, each a predicate on the records of one defense."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from defend.benchmarks.tables.outcomes import Record
from defend.errors import DefendError
from defend.registry import REGISTRY
from defend.spec import parse, parse_single

IMAGES = 1000  # of the test split
EVERY_GRADIENT = ("declared", "identity", "learned")
Predicate = Callable[[Sequence[Record]], bool]


@dataclass(frozen=True)
class Requirement:
    """`met` sees the records of one (data set, classifier, defense, norm) that come nearest to a claim: see `evidence`."""

    name: str
    met: Predicate
    stochastic: bool | None = None  # asked of stochastic purifiers alone, of deterministic ones alone, of all


def ran(
    attack: str, knowledge: str, gradients: Sequence[str | None] = (None,), *, eot: int = 1, at_least: Mapping[str, int] | None = None, **settings: Any
) -> Predicate:
    """Was this attack run at this level, through each of these gradients (None: any)?"""

    def enough(r: Record) -> bool:
        mine = r["settings"].get("attack", {})
        as_set = all(mine.get(k) == v for k, v in settings.items()) and all(mine.get(k, 0) >= v for k, v in (at_least or {}).items())
        return as_set and r["eot"] >= eot and r["knowledge"] == knowledge and parse_single(r["attack"], "attack").name == attack

    return lambda records: all(any(enough(r) and g in (None, r["gradient"]) for r in records) for g in gradients)


def _at_claim_eps(r: Record) -> bool:
    eps = claim_eps(r["dataset"]).get(r["norm"])
    return eps is not None and abs(r["eps"] - eps) < 1e-9  # one may be typed 8/255, the other .031372549


def _from_a_pipeline(r: Record) -> bool:
    return r["knowledge"] == "transfer" and bool(r["surrogate"]) and len(parse(r["surrogate"])) > 1


LADDER_1 = (
    Requirement("oblivious APGD-CE", ran("apgd", "oblivious", loss="ce")),
    Requirement("oblivious PGD-40", ran("pgd", "oblivious", at_least={"steps": 40})),
    Requirement("adaptive APGD-CE through every gradient", ran("apgd", "adaptive", EVERY_GRADIENT, loss="ce", at_least={"steps": 100})),
    Requirement("adaptive targeted APGD-DLR through every gradient", ran("apgd", "adaptive", EVERY_GRADIENT, loss="dlr-targeted")),
    Requirement("PGD-EOT (200 steps x 20)", ran("pgd", "adaptive", eot=20, at_least={"steps": 200}), stochastic=True),
    Requirement("APGD-EOT", ran("apgd", "adaptive", eot=20), stochastic=True),
    Requirement("transfer from a pipeline", lambda records: any(map(_from_a_pipeline, records))),
    Requirement("Square 5,000", ran("square", "query", at_least={"queries": 5000}), stochastic=False),
    Requirement("Square 1,000 x 20", ran("square", "query", eot=20, at_least={"queries": 1000}), stochastic=True),
    Requirement("claim eps", lambda records: any(map(_at_claim_eps, records))),
    Requirement("test split", lambda records: any(r["split"] == "test" for r in records)),
    Requirement(f"n >= {IMAGES:,}", lambda records: any(r["n"] >= IMAGES for r in records)),
    Requirement("run as protocol ladder-1", lambda records: bool(records) and all(r["protocol"] == "ladder-1" for r in records)),
)


@cache
def claim_eps(dataset: str) -> Mapping[str, float]:
    """Norm -> the eps of a claim; empty where the data set has none or is not installed here."""
    try:
        card = getattr(REGISTRY.entry("dataset", parse_single(dataset, "dataset").name).load(), "card", None)
    except DefendError:
        return {}
    return getattr(card, "claim", {})


def evidence(records: Sequence[Record]) -> list[Record]:
    """The records that a claim could rest on: without failures, and at the claim eps, of the test split, with enough images,
    each as far as there are such records."""
    found = [r for r in records if r["error"] is None]
    for wanted in (_at_claim_eps, lambda r: r["split"] == "test", lambda r: r["n"] >= IMAGES):
        found = [r for r in found if wanted(r)] or found
    return found


def missing(records: Sequence[Record], protocol: Sequence[Requirement] = LADDER_1) -> list[str]:
    """What keeps the records of one (data set, classifier, defense, norm) from a claim, in the protocol's order."""
    found = evidence(records)
    stochastic = any(r["stochastic"] for r in records)
    return [q.name for q in protocol if q.stochastic in (None, stochastic) and not q.met(found)]


def claim(records: Sequence[Record], protocol: Sequence[Requirement] = LADDER_1) -> str:
    """The line that stands for every row of these records."""
    lacking = missing(records, protocol)
    return f"no claim (missing: {', '.join(lacking)})" if lacking else "claim: ladder-1"
