"""How to read the numbers of a table, and what they are of: lines below it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import sqrt

from defend.results.claims import IMAGES, card_of
from defend.results.outcomes import Record


def reading(records: Sequence[Record]) -> tuple[str, ...]:
    lines = [
        "Percent of all n images that are right. An accuracy under attack is an upper bound: a stronger attack can only lower it.",
        "Intervals are 95 % over images (Wilson; bootstrap where each image has several draws) and cover sampling alone.",
        *_dependent(records),
    ]
    if not all(r["stochastic"] for r in records):
        lines.append(
            "Behind a deterministic defense only images that are right as they are count as right under attack."
        )
    if any(r["knowledge"] == "adaptive" for r in records):
        lines.append(
            "worst: image by image, over the gradients that were run. BPDA: adaptive through the identity."
        )
    lines.append(
        "fwd+bwd: forward and backward passes of the pipeline for each image, of the dearest attack of the row."
    )
    if draws := sorted({r["draws"] for r in records if r["stochastic"]}):
        mean = f"mean over {' or '.join(map(str, draws))} draws of each image"
        lines.append(
            f"Stochastic defenses: {mean}; worst cases are chosen on other draws, and may lie a little above what they are chosen from."
        )
    if few := sorted({r["n"] for r in records if r["n"] < IMAGES}):
        lines.append(
            f"n = {', '.join(map(str, few))}: {'a smoke test' if few[0] <= 200 else 'below the 1,000 images of a claim'}."
        )
    return tuple(lines)


def _dependent(records: Sequence[Record]) -> Iterator[str]:
    """Where images show the same thing again, which the intervals take for news."""
    for dataset, split, n in dict.fromkeys((r["dataset"], r["split"], r["n"]) for r in records):
        if n > (distinct := distinct_of(dataset, split, n)):
            yield (
                f"The first {n:,} {split} images of {dataset} show {distinct:,} things, some again: they are not independent,"
                f" and intervals and p-values, which take them for it, are too narrow by up to {widening(n, distinct):.2f} times."
            )


def distinct_of(dataset: str, split: str, n: int) -> int:
    """How many things the first n images of a split show."""
    declared: Mapping[str, int] = getattr(card_of(dataset), "distinct", {})
    return min(n, declared.get(split, n))


def widening(n: int, distinct: int) -> float:
    """How much wider an interval is over n images that are `distinct` ones in turn, where each is right or wrong as its copies are."""
    each, more = divmod(n, distinct)
    return sqrt((more * (each + 1) ** 2 + (distinct - more) * each**2) / n)


def surrogates(records: Sequence[Record]) -> tuple[str, ...]:
    """What the transfer attacks on each defense were made on."""
    pairs = dict.fromkeys(
        (r["defense"], r["classifier"], r["surrogate"]) for r in records if r["surrogate"]
    )
    return tuple(
        f"{defense} before {classifier}: {surrogate}" for defense, classifier, surrogate in pairs
    )
