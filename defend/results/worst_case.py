"""The worst case of each image over everything that was run, for each defense; and defenses compared, worst case against worst case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median

from defend.benchmarks.controls import is_control
from defend.results.claims import SAME_EPS, at_claim, bare, claim_eps
from defend.results.diagnostics import way_of
from defend.results.footnotes import distinct_of, widening
from defend.results.numbers import clean_number, flags_of, number
from defend.results.outcomes import (
    HOW,
    SECTION,
    Bits,
    Reader,
    Record,
    bare_attack,
    distinct,
    how_of,
    of_claim,
    purifier_of,
    section_of,
    worst,
)
from defend.results.table import Compared, Number, Section, Worst
from defend.stats import LEVEL, compare, holm, interval

Claims = Mapping[tuple[str, ...], str]


def worst_cases(records: Sequence[Record], claims: Claims, read: Reader) -> tuple[Worst, ...]:
    """One for each defense of a section, at the eps that `comparable` names."""
    eps = comparable(records)
    found = (
        _worst_case(_of(records, *series, eps), claims, read)
        for series in dict.fromkeys((r["defense"], purifier_of(r), r["draws"]) for r in records)
    )
    return tuple(w for w in found if w is not None)


def comparable(records: Sequence[Record]) -> float:
    """The claim eps where a cell was run at it; else the largest at which most defenses have a cell: eps 1 is a check, no budget."""
    first = records[0]
    claim = claim_eps(first["dataset"]).get(first["norm"])
    epsilons = {float(r["eps"]) for r in records}
    if claim is not None and (near := [e for e in epsilons if abs(e - claim) < SAME_EPS]):
        return near[0]
    inside = [e for e in epsilons if first["norm"] != "Linf" or e < 1] or list(epsilons)
    return max(inside, key=lambda e: (len({r["defense"] for r in records if r["eps"] == e}), e))


def claimed(records: Sequence[Record], read: Reader) -> str:
    """The value of a claim: the worst case over everything at its eps."""
    found, _ = worst_over(_candidates(records), read)
    if found.accuracy is None or found.low is None or found.high is None:
        return "no value"
    at = f"{records[0]['norm']} eps {records[0]['eps_text']}"
    value = f"{found.at_most}{100 * found.accuracy:.1f} % right{' (unconverged)' if found.unconverged else ''}"
    return f"{value} ({100 * found.low:.1f} to {100 * found.high:.1f}) in the worst case at {at}{_repeats(records[0])}"


def outdone(records: Sequence[Record], every: Sequence[Record], read: Reader) -> str:
    """Where a cell that is no part of the claim (fewer images or draws, another split, seed or precision, a smaller ball inside the claim's)
    lies below its interval. every: of the same pipeline."""
    kept = _candidates(at_claim(records))
    low = worst_over(kept, read)[0].low if kept else None
    there = {id(r) for r in kept}
    others = [
        r
        for r in _candidates(every)
        if r["error"] is None
        and id(r) not in there
        and any(r["eps"] <= k["eps"] + SAME_EPS for k in kept)
    ]
    stronger = [r for r in others if low is not None and r["ci_high"] < low]
    if not stronger:
        return ""
    least = min(stronger, key=lambda r: float(r["robust_accuracy"]))
    unlike = [
        f"{name} {value}"
        for name, value, mine in zip(HOW, how_of(least), how_of(kept[0]), strict=True)
        if value != mine
    ]
    where = ", ".join(
        [f"eps {least['eps_text']}", f"n = {least['n']:,} of {least['split']}", *unlike]
    )
    return f"a stronger attack: {way_of(least)}, {where}, leaves {100 * least['robust_accuracy']:.1f} %"


def _repeats(r: Record) -> str:
    distinct = distinct_of(r["dataset"], r["split"], r["n"])
    return (
        f", of {distinct:,} distinct images, so that the interval is too narrow by up to {widening(r['n'], distinct):.2f} times"
        if distinct < r["n"]
        else ""
    )


def worst_over(cells: Sequence[Record], read: Reader) -> tuple[Number, Bits | None]:
    """The number, and outcomes (n, K) where the units of all cells are at hand; without them, their minimum as a bound."""
    sound = [r for r in cells if r["error"] is None]
    outcomes = [o for r in sound if (o := read(r)) is not None]
    if not sound or len(outcomes) < len(sound) or len({o.score.shape for o in outcomes}) > 1:
        return number(cells, lambda _: None), None
    score = worst(outcomes)
    low, high = interval(score, sound[0]["seed"])
    return Number(accuracy=float(score.mean()), low=low, high=high, flags=flags_of(sound)), score


def comparisons(
    sections: Sequence[Section], records: Sequence[Record], read: Reader
) -> tuple[Compared, ...]:
    """All pairs of defenses of each section whose units are at hand; Holm's adjustment is over all of them."""
    made = [pair for section in sections for pair in _pairs(section, records, read)]
    adjusted = holm([c.p for c in made])
    return tuple(Compared(**{**vars(c), "p_holm": p}) for c, p in zip(made, adjusted, strict=True))


def _pairs(section: Section, records: Sequence[Record], read: Reader) -> list[Compared]:
    found = []
    for w in section.worst:
        cells = cells_of(w, section, records)
        _, score = worst_over(cells, read)
        if score is not None:
            found.append((w, score, {_attack(r) for r in cells}))
    made = []
    for (a, score_a, attacks_a), (b, score_b, attacks_b) in combinations(found, 2):
        c = compare(score_a, score_b, section.seed)
        made.append(
            Compared(
                title=section.title,
                a=a.defense,
                b=b.defense,
                eps_text=a.eps_text,
                difference=c.difference,
                low=c.low,
                high=c.high,
                p=c.p,
                p_holm=c.p,
                test=c.test,
                same_attacks=_alike(a.defense, attacks_a, b.defense, attacks_b),
            )
        )
    return made


def cells_of(w: Worst, section: Section, records: Sequence[Record]) -> list[Record]:
    """What this worst case of the section was taken over; null controls are no part of it."""
    where = (*(getattr(section, k) for k in SECTION), *section.frame)
    return _candidates(
        _of([r for r in records if section_of(r) == where], w.defense, w.purifier, w.draws, w.eps)
    )


def _worst_case(cells: Sequence[Record], claims: Claims, read: Reader) -> Worst | None:
    candidates, controls = (
        _candidates(cells),
        [r for r in cells if is_control(r["attack"]) and r["error"] is None],
    )
    if not any(r["error"] is None for r in candidates):
        return None
    first = candidates[0]
    found, score = worst_over(candidates, read)
    outcomes = [o for r in candidates if (o := read(r)) is not None]
    draws = score if first["stochastic"] else None
    speeds = [r["purify_images_per_second"] for r in cells if r["purify_images_per_second"]]
    return Worst(
        defense=first["defense"],
        purifier=purifier_of(first),
        eps=first["eps"],
        eps_text=first["eps_text"],
        number=found,
        clean=clean_number(candidates, read),
        candidates=len(distinct(outcomes))
        if score is not None
        else sum(r["error"] is None for r in candidates),
        draws=first["draws"],
        all_draws=None if draws is None else float((draws.min(1) == 1).mean()),
        majority=None if draws is None else float((draws.mean(1) > 0.5).mean()),
        control=worst_over(controls, read)[0] if controls else None,
        controls=len(controls),
        passes=(
            sum(r["forwards"] or 0 for r in candidates),
            sum(r["backwards"] or 0 for r in candidates),
        ),
        purify_ms=1000 / median(speeds) if speeds else None,
        claim=claims[of_claim(first)],
    )


def _of(
    records: Sequence[Record], defense: str, purifier: str, draws: int, eps: float
) -> list[Record]:
    return [
        r
        for r in records
        if (r["defense"], purifier_of(r), r["draws"]) == (defense, purifier, draws)
        and abs(r["eps"] - eps) < SAME_EPS
    ]


def _candidates(records: Sequence[Record]) -> list[Record]:
    return [r for r in records if not is_control(r["attack"])]


def _attack(r: Record) -> tuple[str, ...]:
    """What was run, whatever stands for the other pipeline."""
    return bare_attack(r), r["knowledge"], str(r["gradient"])


def _alike(
    a: str, attacks_a: set[tuple[str, ...]], b: str, attacks_b: set[tuple[str, ...]]
) -> bool:
    """Behind no purifier nothing is learned."""
    alone = bare(a) or bare(b)
    return {t for t in attacks_a if not (alone and t[-1] == "learned")} == {
        t for t in attacks_b if not (alone and t[-1] == "learned")
    }


def said(c: Compared) -> str:
    """jpeg against median, eps 8/255: +3.0 points (1.2 to 4.8), p = 0.004."""
    points = f"{100 * c.difference:+.1f} points ({100 * c.low:+.1f} to {100 * c.high:+.1f})"
    verdict = (
        f"p = {c.p_holm:.2g}"
        if c.significant
        else f"no significant difference (p = {c.p_holm:.2g})"
    )
    unlike = "" if c.same_attacks else "; not under the same attacks"
    return f"{c.a} against {c.b}, eps {c.eps_text}: {points}, {verdict}, {c.test}{unlike}"


def heading(compared: Sequence[Compared]) -> str:
    return f"Pairs, worst case against worst case (p-values by Holm over {len(compared)}, differences with {100 * LEVEL:.0f} % intervals, each by itself):"
