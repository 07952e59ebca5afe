"""Records -> table: the levels of one attack side by side, the worst case over gradients, and what must be said below."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from defend.benchmarks.stats import interval, wilson
from defend.benchmarks.tables.claims import IMAGES, claim
from defend.benchmarks.tables.findings import find, name_of
from defend.benchmarks.tables.model import Number, Row, Section, Table
from defend.benchmarks.tables.outcomes import Outcomes, Record, distinct, read_outcomes, worst
from defend.spec import canonical, parse_single

_SECTION = ("dataset", "classifier", "norm", "n", "split", "seed")
_CLAIM = ("dataset", "classifier", "defense", "norm")  # a claim is of one defense, from all that was run against it
_ONLY = {"declared": "declared only", "identity": "BPDA only", "learned": "learned only"}
Claims = Mapping[tuple[object, ...], str]


def table(records: Sequence[Record], run_dirs: Sequence[Path] = ()) -> Table:
    """Of one or several runs. Where the units are not in `run_dirs`, a worst case over several cells is a bound: their minimum."""
    claims = {key: claim(kin) for key, kin in _grouped(records, _CLAIM).items()}
    sections = tuple(_section(rows, claims, run_dirs) for rows in _grouped(records, _SECTION).values())
    return Table(
        sections=sections,
        claims=tuple(dict.fromkeys(row.claim for s in sections for row in s.rows)),
        findings=tuple(find(records)),
        flags=_flags(records),
        failures=_failures(records),
        reading=_reading(records),
    )


def _section(records: Sequence[Record], claims: Claims, run_dirs: Sequence[Path]) -> Section:
    rank = {spec: i for i, spec in enumerate(dict.fromkeys(text for r in records for text in (r["defense"], bare_attack(r))))}
    series = _grouped(records, ("defense", "draws")).values()
    rows = [_row(cells, claims, run_dirs) for same in series for cells in _cells(same)]
    ordered = sorted(rows, key=lambda row: (rank[row.defense], row.draws, rank[row.attack], row.eps))
    first = records[0]
    return Section(**{k: first[k] for k in _SECTION}, rows=tuple(ordered))


def _cells(records: Sequence[Record]) -> Iterable[list[Record]]:
    """Those of one attack at one eps."""
    found: dict[tuple[str, float], list[Record]] = {}
    for r in records:
        found.setdefault((bare_attack(r), r["eps"]), []).append(r)
    return found.values()


def _row(cells: Sequence[Record], claims: Claims, run_dirs: Sequence[Path]) -> Row:
    first = cells[0]
    dearest = max(cells, key=lambda r: (r["forwards"] or 0) + (r["backwards"] or 0))
    return Row(
        defense=first["defense"],
        attack=bare_attack(first),
        eps=first["eps"],
        eps_text=first["eps_text"],
        numbers=_numbers(cells, run_dirs),
        trained_on=first["trained_on"],
        stochastic=first["stochastic"],
        draws=first["draws"],
        forwards=dearest["forwards"],
        backwards=dearest["backwards"],
        claim=claims[tuple(first[k] for k in _CLAIM)],
    )


def _numbers(cells: Sequence[Record], run_dirs: Sequence[Path]) -> dict[str, Number]:
    by_column: dict[str, list[Record]] = {}
    for r in cells:
        by_column.setdefault(column_of(r), []).append(r)
    adaptive = [r for r in cells if r["knowledge"] == "adaptive"]
    numbers = {"clean": _clean(cells, run_dirs)}
    numbers |= {column: _number(same, run_dirs) for column, same in by_column.items() if column != "worst"}
    return numbers | ({"worst": _number(adaptive, run_dirs, name_single=True)} if adaptive else {})


def column_of(r: Record) -> str:
    """Its level; for `adaptive` the gradient, and `worst` alone for an attack that takes none."""
    return str(r["knowledge"] if r["knowledge"] != "adaptive" else r["gradient"] or "worst")


def bare_attack(r: Record) -> str:
    """The attack without its eps, so that pgd:eps=8/255 and pgd:eps=16/255 are one series."""
    return str(parse_single(r["attack"], "attack").without("eps")[0])


def _clean(cells: Sequence[Record], run_dirs: Sequence[Path]) -> Number:
    sound = [r for r in cells if r["error"] is None]
    if not sound:
        return Number(accuracy=None, failed=cells[0]["error"])
    outcomes = read_outcomes(sound[0], run_dirs) if sound[0]["stochastic"] else None
    accuracy, n = sound[0]["clean_accuracy"], sound[0]["n"]
    low, high = interval(outcomes.clean_score, sound[0]["seed"]) if outcomes else wilson(accuracy * n, n)
    return Number(accuracy=accuracy, low=low, high=high)


def _number(cells: Sequence[Record], run_dirs: Sequence[Path], name_single: bool = False) -> Number:
    """The worst case over these cells; failed ones are left to the list of failures, unless nothing else is there."""
    sound = [r for r in cells if r["error"] is None]
    if not sound:
        return Number(accuracy=None, failed=cells[0]["error"])
    flags = tuple(dict.fromkeys(f for r in sound for f in r["flags"]))
    outcomes = [o for r in sound if (o := read_outcomes(r, run_dirs)) is not None] if len(sound) > 1 else []
    read = len(sound) > 1 and len(outcomes) == len(sound)
    single = len(sound) == 1 or (read and len(distinct(outcomes)) == 1)
    note = _only(sound) if name_single and single else ""
    if single or not read:
        low = min(sound, key=lambda r: float(r["robust_accuracy"]))
        return Number(accuracy=low["robust_accuracy"], low=low["ci_low"], high=low["ci_high"], note=note, bound=not single, flags=flags)
    return _of_worst(outcomes, sound[0]["seed"], flags)


def _of_worst(outcomes: Sequence[Outcomes], seed: int, flags: tuple[str, ...]) -> Number:
    score = worst(outcomes)
    low, high = interval(score, seed)
    return Number(accuracy=float(score.mean()), low=low, high=high, flags=flags)


def _only(cells: Sequence[Record]) -> str:
    """What a single gradient is called; nothing where there is no purifier to differentiate, or an attack that takes no gradient."""
    gradients = [r["gradient"] for r in cells if r["gradient"]]
    if not gradients or canonical(cells[0]["defense"]) == "none":
        return ""
    return _ONLY["declared" if "declared" in gradients else gradients[0]]


def _flags(records: Iterable[Record]) -> tuple[str, ...]:
    """Each flag of a series once, with its eps."""
    series: dict[tuple[str, str], list[str]] = {}
    for r in records:
        for flag in r["flags"] or ():
            series.setdefault((name_of(r), flag), []).append(r["eps_text"])
    return tuple(f"{name}, eps {_listed(eps)}: {flag}" for (name, flag), eps in series.items())


def _failures(records: Iterable[Record]) -> tuple[str, ...]:
    series: dict[tuple[str, str], list[str]] = {}
    for r in records:
        if r["error"] is not None:
            series.setdefault((name_of(r), r["error"]), []).append(r["eps_text"])
    return tuple(f"{name}, eps {_listed(eps)}: {error}" for (name, error), eps in series.items())


def _listed(eps: Sequence[str]) -> str:
    some = list(dict.fromkeys(eps))
    return ", ".join(some) if len(some) <= 4 else f"{some[0]} to {some[-1]} ({len(some)} values)"


def _reading(records: Sequence[Record]) -> tuple[str, ...]:
    lines = [
        "Percent of all n images that are right. An accuracy under attack is an upper bound: a stronger attack can only lower it.",
        "Intervals are 95 % over images (Wilson; bootstrap where each image has several draws) and cover sampling alone.",
    ]
    if any(r["knowledge"] == "adaptive" for r in records):
        lines.append("worst: image by image, over the gradients that were run. BPDA: adaptive through the identity.")
    lines.append("fwd+bwd: forward and backward passes of the pipeline for each image, of the dearest attack of the row.")
    if draws := sorted({r["draws"] for r in records if r["stochastic"]}):
        lines.append(f"Stochastic defenses: mean over {' or '.join(map(str, draws))} draws of each image; worst cases are chosen on other draws.")
    if few := sorted({r["n"] for r in records if r["n"] < IMAGES}):
        lines.append(f"n = {', '.join(map(str, few))}: {'a smoke test' if few[0] <= 200 else 'below the 1,000 images of a claim'}.")
    return tuple(lines)


def _grouped(records: Sequence[Record], keys: Sequence[str]) -> Mapping[tuple[object, ...], list[Record]]:
    found: dict[tuple[object, ...], list[Record]] = {}
    for r in records:
        found.setdefault(tuple(r[k] for k in keys), []).append(r)
    return found
