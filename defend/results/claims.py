"""What a claim needs: the protocol `ladder-1` as a table of requirements, each a predicate on the records of one defense."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from defend.benchmarks.suite import DRAWS
from defend.errors import DefendError
from defend.protocols.ladder_1 import TARGETED_DLR
from defend.registry import REGISTRY
from defend.results.outcomes import Record
from defend.spec import Spec, parse, parse_single

IMAGES = 1000  # of the test split
SAME_EPS = 1e-9  # one may be typed 8/255, the other .031372549
ANY_CLASSES = 10**9  # where a record does not say how many there are: then everything is owed
EVERY_GRADIENT = ("declared", "identity", "learned")
STEPS = {"steps": 100}
Predicate = Callable[[Sequence[Record]], bool]


@dataclass(frozen=True)
class Requirement:
    """`met` sees the records of one (data set, classifier, defense, norm) that come nearest to a claim: see `evidence`."""

    name: str
    met: Predicate
    stochastic: bool | None = (
        None  # asked of stochastic purifiers alone, of deterministic ones alone, of all
    )
    classes: int = 2  # asked where there are at least so many
    sees: Literal["evidence", "defense"] = (
        "evidence"  # defense: at every eps and in every norm, failed or not
    )
    hopeless: Callable[[Sequence[Record]], str] = lambda _: ""  # why nobody can meet it here


def ran(
    attack: str,
    knowledge: str,
    gradients: Sequence[str | None] = (None,),
    *,
    eot: int = 1,
    at_least: Mapping[str, int] | None = None,
    **settings: Any,
) -> Predicate:
    """Was this attack run at this level, through each of these gradients (None: any)? Of targets no more are asked than there are."""

    def enough(r: Record) -> bool:
        mine, most = r["settings"].get("attack", {}), {"targets": _classes(r) - 1}
        as_set = all(mine.get(k) == v for k, v in settings.items())
        as_set = as_set and all(
            mine.get(k, 0) >= min(v, most.get(k, v)) for k, v in (at_least or {}).items()
        )
        return (
            as_set
            and r["eot"] >= eot
            and r["knowledge"] == knowledge
            and parse_single(r["attack"], "attack").name == attack
        )

    return lambda records: all(
        any(enough(r) and g in (None, r["gradient"]) for r in records)
        for g in gradients
        if g != "learned" or not _bare(records)
    )


def bare(defense: str) -> bool:
    """Is there no purifier, whose gradient could be learned?"""
    return not purifiers(parse(defense))


def purifiers(members: Sequence[Spec]) -> list[str]:
    """The names of those that do something."""
    return [m.name for m in members if m.name != "none"]


def _classes(r: Record) -> int:
    return int(r["settings"].get("classifier", {}).get("classes", ANY_CLASSES))


def _bare(records: Sequence[Record]) -> bool:
    return all(bare(r["defense"]) for r in records)


def _at_claim_eps(r: Record) -> bool:
    eps = claim_eps(r["dataset"]).get(r["norm"])
    return eps is not None and abs(r["eps"] - eps) < SAME_EPS


def _from_a_pipeline(r: Record) -> bool:
    """Of the same components before a classifier, trained anew or, where nothing is trained, with the same settings: images made for
    another purifier say little of this one. Behind none, any pipeline will do."""
    if r["knowledge"] != "transfer" or not r["surrogate"]:
        return False
    scored = r["settings"].get("defense")
    same = r["trained_on"] or r["settings"].get("attacked", {}).get("defense", scored) == scored
    return bare(r["defense"]) or bool(
        same and purifiers(parse(r["surrogate"])[:-1]) == purifiers(parse(r["defense"]))
    )


def _transferred(records: Sequence[Record]) -> bool:
    """By both attacks that the protocol transfers: one step from a pipeline tells little of what many steps from it do."""
    mine = [r for r in records if _from_a_pipeline(r)]
    return ran("apgd", "transfer", loss="ce", at_least=STEPS)(mine) and ran(
        "pgd", "transfer", at_least={"steps": 40}
    )(mine)


def _too_few(records: Sequence[Record]) -> str:
    """Where the whole test split has fewer images than a claim needs, which records of older runs do not say."""
    there = min(
        (r["images"] for r in records if r["split"] == "test" and "images" in r), default=IMAGES
    )
    return (
        f" ({parse_single(records[0]['dataset'], 'dataset').name} has {there:,})"
        if there < IMAGES
        else ""
    )


def _drawn(r: Record) -> bool:
    """By fewer draws a stochastic purifier's mean, and what its worst case is chosen by, are noise."""
    return not r["stochastic"] or r["draws"] >= DRAWS


def unbounded(records: Sequence[Record]) -> list[Record]:
    """PGD to any image at all, from the clean one, which no purifier with a gradient withstands: on as many images as the largest cell has,
    of the test split where a cell is of it."""
    sound = [r for r in records if r["error"] is None]
    sound = [r for r in sound if r["split"] == "test"] or sound
    most = max((r["n"] for r in sound), default=0)
    return [r for r in sound if r["n"] >= min(most, IMAGES) and _is_unbounded(r)]


def _is_unbounded(r: Record) -> bool:
    settings = r["settings"].get("attack", {})
    whole = r["norm"] == "Linf" and r["eps"] >= 1 and settings.get("random_start") is False
    return bool(
        whole and r["access"] == "gradient" and ran("pgd", "adaptive", at_least={"steps": 20})([r])
    )


def _was_unbounded(records: Sequence[Record]) -> bool:
    return ran("pgd", "adaptive", EVERY_GRADIENT)(unbounded(records))


LADDER_1 = (
    Requirement("oblivious APGD-CE", ran("apgd", "oblivious", loss="ce", at_least=STEPS)),
    Requirement("oblivious PGD-40", ran("pgd", "oblivious", at_least={"steps": 40})),
    Requirement(
        "adaptive APGD-CE through every gradient",
        ran("apgd", "adaptive", EVERY_GRADIENT, loss="ce", at_least=STEPS),
    ),
    Requirement(
        "adaptive targeted APGD-DLR through every gradient",
        ran(
            "apgd",
            "adaptive",
            EVERY_GRADIENT,
            loss="dlr-targeted",
            at_least={**STEPS, "targets": 9},
        ),
        classes=TARGETED_DLR,
    ),
    Requirement(
        "PGD-EOT (200 steps x 20) through every gradient",
        ran("pgd", "adaptive", EVERY_GRADIENT, eot=20, at_least={"steps": 200}),
        stochastic=True,
    ),
    Requirement(
        "APGD-EOT through every gradient",
        ran("apgd", "adaptive", EVERY_GRADIENT, eot=20, loss="ce", at_least=STEPS),
        stochastic=True,
    ),
    Requirement(
        "transfer from a pipeline with the same purifier, by APGD-CE and PGD-40", _transferred
    ),
    Requirement(
        "Square 5,000", ran("square", "query", at_least={"queries": 5000}), stochastic=False
    ),
    Requirement(
        "Square 1,000 x 20",
        ran("square", "query", eot=20, at_least={"queries": 1000}),
        stochastic=True,
    ),
    Requirement(
        "PGD at eps 1 from the clean image, through every gradient", _was_unbounded, sees="defense"
    ),
    Requirement(f"{DRAWS} draws", lambda records: all(map(_drawn, records)), stochastic=True),
    Requirement("claim eps", lambda records: all(map(_at_claim_eps, records))),
    Requirement("test split", lambda records: all(r["split"] == "test" for r in records)),
    Requirement(
        f"n >= {IMAGES:,}",
        lambda records: all(r["n"] >= IMAGES for r in records),
        hopeless=_too_few,
    ),
    Requirement(
        "run as protocol ladder-1",
        lambda records: bool(records) and all(r["protocol"] == "ladder-1" for r in records),
    ),
)


def claim_eps(dataset: str) -> Mapping[str, float]:
    """Norm -> the eps of a claim; empty where the data set has none or is not installed here."""
    return getattr(card_of(dataset), "claim", {})


@cache
def card_of(dataset: str) -> object:
    """What the data set says of itself; None where it is not installed here."""
    try:
        return getattr(
            REGISTRY.entry("dataset", parse_single(dataset, "dataset").name).load(), "card", None
        )
    except DefendError:
        return None


def at_claim(records: Sequence[Record]) -> list[Record]:
    """The records that a claim could rest on: without failures, and at the claim eps, of the test split, with enough images and draws,
    each as far as there are such records."""
    found = [r for r in records if r["error"] is None]
    for wanted in (
        _at_claim_eps,
        lambda r: r["split"] == "test",
        lambda r: r["n"] >= IMAGES,
        _drawn,
    ):
        found = [r for r in found if wanted(r)] or found
    return found


def evidence(records: Sequence[Record]) -> list[Record]:
    """Of those, what the protocol asked for: attacks beside it take nothing away."""
    found = at_claim(records)
    return [r for r in found if r["protocol"] is not None] or found


def missing(
    records: Sequence[Record],
    relatives: Sequence[Record] = (),
    protocol: Sequence[Requirement] = LADDER_1,
) -> list[str]:
    """What keeps the records of one (data set, classifier, defense, norm) from a claim, in the protocol's order.

    relatives: the same defense's in other norms.
    """
    seen = {"evidence": evidence(records), "defense": [*records, *relatives]}
    stochastic = any(r["stochastic"] for r in records)
    classes = min(map(_classes, records), default=ANY_CLASSES)
    owed = [q for q in protocol if q.stochastic in (None, stochastic) and classes >= q.classes]
    return [q.name + q.hopeless(seen[q.sees]) for q in owed if not q.met(seen[q.sees])]


def weak_imitation(records: Sequence[Record]) -> str:
    """What must stand beside a claim whose learned gradient is of a network that is no nearer to the purifier than the identity is."""
    errors = [r.get("gradient_error", 0.0) for r in records if r["gradient"] == "learned"]
    wild, far = None in errors, max((e for e in errors if e is not None), default=0.0)
    said = "no number" if wild else f"{far:.2f}, the identity's is 1"
    return f"; the learned gradient says little (its error is {said})" if wild or far > 1 else ""


def claim(
    records: Sequence[Record], relatives: Sequence[Record] = (), doubts: Sequence[str] = ()
) -> str:
    """The line that stands for every row of these records. doubts: what was seen, as masking, that no claim survives."""
    lacking = missing(records, relatives)
    reasons = [*([f"missing: {', '.join(lacking)}"] if lacking else []), *doubts]
    return f"no claim ({'; '.join(reasons)})" if reasons else "claim: ladder-1"
