"""Records -> one number of the table: of one cell, or the worst case over several, image by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from defend.results.outcomes import Outcomes, Record, distinct, worst
from defend.results.table import Number
from defend.spec import canonical_spec
from defend.stats import interval, wilson

Read = Callable[[Record], Outcomes | None]
_GRADIENTS = {"declared": "declared", "identity": "BPDA", "learned": "learned"}


def clean_number(cells: Sequence[Record], read: Read) -> Number:
    sound = [r for r in cells if r["error"] is None]
    if not sound:
        return Number(accuracy=None, failed=cells[0]["error"])
    outcomes = read(sound[0]) if sound[0]["stochastic"] else None
    accuracy, n = sound[0]["clean_accuracy"], sound[0]["n"]
    low, high = (
        interval(outcomes.clean_score, sound[0]["seed"]) if outcomes else wilson(accuracy * n, n)
    )
    return Number(accuracy=accuracy, low=low, high=high)


def flags_of(cells: Sequence[Record]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f for r in cells for f in r["flags"]))


def number(cells: Sequence[Record], read: Read, name_single: bool = False) -> Number:
    """The worst case over these cells; failed ones are left to the list of failures, unless nothing else is there."""
    sound = [r for r in cells if r["error"] is None]
    if not sound:
        return Number(accuracy=None, failed=cells[0]["error"])
    flags = flags_of(sound)
    outcomes = [o for r in sound if (o := read(r)) is not None] if len(sound) > 1 else []
    whole = len(sound) > 1 and len(outcomes) == len(sound)
    single = len(sound) == 1 or (whole and len(distinct(outcomes)) == 1)
    note = _only(sound) if name_single and single else ""
    if single or not whole:
        low = min(sound, key=lambda r: float(r["robust_accuracy"]))
        return Number(
            accuracy=low["robust_accuracy"],
            low=low["ci_low"],
            high=low["ci_high"],
            note=note,
            bound=not single,
            flags=flags,
        )
    return _of_worst(outcomes, sound[0]["seed"], flags)


def _of_worst(outcomes: Sequence[Outcomes], seed: int, flags: tuple[str, ...]) -> Number:
    score = worst(outcomes)
    low, high = interval(score, seed)
    return Number(accuracy=float(score.mean()), low=low, high=high, flags=flags)


def _only(cells: Sequence[Record]) -> str:
    """A single gradient by its name, several that made the same images as equal; nothing where none could matter: no purifier to
    differentiate, an attack that takes no gradient, or eps 0, where each gives the clean image."""
    gradients = {r["gradient"] for r in cells}
    names = [name for gradient, name in _GRADIENTS.items() if gradient in gradients]
    if not names or cells[0]["eps"] == 0 or canonical_spec(cells[0]["defense"]) == "none":
        return ""
    return " = ".join(names) if len(names) > 1 else f"{names[0]} only"
