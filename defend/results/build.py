"""Records -> table: the levels of one attack side by side, the worst case over gradients, and what must be said below."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from defend.benchmarks.controls import is_control
from defend.records import identity
from defend.results.claims import at_claim, claim, weak_imitation
from defend.results.diagnostics import find, marked, name_of
from defend.results.footnotes import reading, surrogates
from defend.results.masking_signs import doubts
from defend.results.numbers import clean_number, number
from defend.results.outcomes import (
    HOW,
    SECTION,
    Reader,
    Record,
    bare_attack,
    frame_of,
    of_claim,
    pipeline_of,
    purifier_of,
    section_of,
    spelled_alike,
)
from defend.results.significance import Beats, image_by_image
from defend.results.table import Number, Row, Section, Table
from defend.results.table import claims as is_claim
from defend.results.worst_case import claimed, comparisons, outdone, worst_cases

K = TypeVar("K", bound=Hashable)
Claims = Mapping[tuple[str, ...], str]
Lines = dict[tuple[str, ...], str]  # of a claim: see `of_claim`


def table(
    records: Sequence[Record],
    run_dirs: Sequence[Path] = (),
    beside: Sequence[Record] = (),
    read: Reader | None = None,
) -> Table:
    """Of one or several runs. Where the units are not in `run_dirs`, a worst case over several cells is a bound: their minimum.

    beside: other cells of the same folders. They are not shown, but no claim stands that they refute.
    read: of the same folders, where some units have been read.
    """
    read, shown = read or Reader(run_dirs), {identity(r) for r in records}
    beats = image_by_image(read)
    every = spelled_alike([*records, *(r for r in beside if identity(r) not in shown)])
    plain = every[: len(records)]
    records = marked(plain, beats)
    claims, signs = _claims(records, read, beats)
    if len(every) > len(plain):
        _refute(claims, signs, *_claims(marked(every, beats), read, beats))
    sections = tuple(
        _section(rows, claims, read) for rows in _grouped(records, section_of).values()
    )
    return Table(
        sections=sections,
        claims=tuple(dict.fromkeys(row.claim for s in sections for row in s.rows)),
        surrogates=surrogates(records),
        signs=tuple(signs.values()),
        comparisons=comparisons(sections, records, read),
        queries=_queries(records),
        findings=tuple(find(records, beats)),
        flags=_flags(plain),
        failures=_failures(records),
        reading=reading(records),
    )


def _refute(claims: Lines, signs: Lines, claims_of_all: Lines, signs_of_all: Lines) -> None:
    """What may be claimed by what is shown is claimed as far as all cells of the folders allow; they make nothing up for it."""
    for key in [key for key, line in claims.items() if is_claim(line)]:
        claims[key] = claims_of_all[key]
        signs |= {key: signs_of_all[key]} if key in signs_of_all else {}


def _claims(records: Sequence[Record], read: Reader, beats: Beats) -> tuple[Lines, Lines]:
    """The claim of each defense in each norm, with its value; and a line for each that shows a sign of masking."""
    claims, signs = {}, {}
    families = _grouped(records, lambda r: of_claim(r)[:-1])
    groups, pipelines = _grouped(records, of_claim), _grouped(records, pipeline_of)
    for key, kin in groups.items():
        relatives = [r for r in families[key[:-1]] if r["norm"] != key[-1]]
        seen = [
            *doubts(kin, relatives, beats),
            *filter(None, [outdone(kin, pipelines[pipeline_of(kin[0])], read)]),
        ]
        line, which = claim(kin, relatives, seen), _which(key, groups)
        claims[key] = (
            line
            if line.startswith("no claim")
            else f"{line}, {claimed(at_claim(kin), read)}{weak_imitation(at_claim(kin))}"
        ) + which
        if seen:
            signs[key] = f"{key[2]} before {key[1]}, {key[0]}, {key[-1]}{which}: {'; '.join(seen)}."
    return claims, signs


def _which(key: tuple[str, ...], others: Iterable[tuple[str, ...]]) -> str:
    """What tells it from others of the same names: seed, precision, layout, or settings and weights. A precision other than float32 always."""
    alike = [other for other in others if (*other[:3], other[-1]) == (*key[:3], key[-1])]
    names = (*HOW, "classifier", "purifier")
    unlike = {name for i, name in enumerate(names, 3) if len({other[i] for other in alike}) > 1} | (
        {"precision"} if key[4] != "float32" else set()
    )
    told = [f"{name} {key[i]}" for i, name in enumerate(names, 3) if name in unlike]
    return f"; of {', '.join(told)}" if told else ""


def _section(records: Sequence[Record], claims: Claims, read: Reader) -> Section:
    rank = {
        spec: i
        for i, spec in enumerate(
            dict.fromkeys(text for r in records for text in (r["defense"], bare_attack(r)))
        )
    }
    series = _grouped(
        [r for r in records if not is_control(r["attack"])] or records,
        lambda r: (r["defense"], purifier_of(r), r["draws"]),
    ).values()
    rows = [_row(cells, claims, read) for same in series for cells in _cells(same)]
    ordered = sorted(
        rows, key=lambda row: (rank[row.defense], row.draws, rank[row.attack], row.eps)
    )
    first = records[0]
    return Section(
        **{k: first[k] for k in SECTION},
        frame=frame_of(first),
        rows=tuple(ordered),
        worst=worst_cases(records, claims, read),
    )


def _cells(records: Sequence[Record]) -> Iterable[list[Record]]:
    """Those of one attack at one eps."""
    found: dict[tuple[str, float], list[Record]] = {}
    for r in records:
        found.setdefault((bare_attack(r), r["eps"]), []).append(r)
    return found.values()


def _row(cells: Sequence[Record], claims: Claims, read: Reader) -> Row:
    first = cells[0]
    dearest = max(cells, key=lambda r: (r["forwards"] or 0) + (r["backwards"] or 0))
    return Row(
        defense=first["defense"],
        attack=bare_attack(first),
        eps=first["eps"],
        eps_text=first["eps_text"],
        numbers=_numbers(cells, read),
        trained_on=first["trained_on"],
        stochastic=first["stochastic"],
        draws=first["draws"],
        forwards=dearest["forwards"],
        backwards=dearest["backwards"],
        claim=claims[of_claim(first)],
    )


def _numbers(cells: Sequence[Record], read: Reader) -> dict[str, Number]:
    by_column: dict[str, list[Record]] = {}
    for r in cells:
        by_column.setdefault(column_of(r), []).append(r)
    adaptive = [r for r in cells if r["knowledge"] == "adaptive"]
    numbers = {"clean": clean_number(cells, read)}
    numbers |= {
        column: number(same, read) for column, same in by_column.items() if column != "worst"
    }
    return numbers | ({"worst": number(adaptive, read, name_single=True)} if adaptive else {})


def column_of(r: Record) -> str:
    """Its level; for `adaptive` the gradient, and `worst` alone for an attack that takes none."""
    return str(r["knowledge"] if r["knowledge"] != "adaptive" else r["gradient"] or "worst")


def _flags(records: Iterable[Record]) -> tuple[str, ...]:
    """Each flag of a series once, with its eps."""
    series: dict[tuple[str, str], list[str]] = {}
    for r in records:
        for flag in r["flags"] or ():
            series.setdefault((name_of(r), flag), []).append(r["eps_text"])
    return tuple(f"{name}, eps {_listed(eps)}: {flag}" for (name, flag), eps in series.items())


def _queries(records: Sequence[Record]) -> tuple[str, ...]:
    """Accuracy after so many queries, where an attack says when it broke an image."""
    lines = []
    searches: dict[object, Record] = {}
    for r in records:  # at adaptive it is the same search as at query
        searches.setdefault(tuple(r["units"]) or name_of(r), r)
    for r in searches.values():
        if after := r.get("accuracy_after"):
            numbers = ", ".join(
                "not run" if v is None else f"{100 * v:.1f}" for v in after.values()
            )
            lines.append(
                f"{name_of(r)}, eps {r['eps_text']}: {numbers} after {', '.join(f'{int(q):,}' for q in after)} queries"
            )
    return tuple(lines)


def _failures(records: Iterable[Record]) -> tuple[str, ...]:
    series: dict[tuple[str, str], list[str]] = {}
    for r in records:
        if r["error"] is not None:
            series.setdefault((name_of(r), r["error"]), []).append(r["eps_text"])
    return tuple(f"{name}, eps {_listed(eps)}: {error}" for (name, error), eps in series.items())


def _listed(eps: Sequence[str]) -> str:
    some = list(dict.fromkeys(eps))
    return ", ".join(some) if len(some) <= 4 else f"{some[0]} to {some[-1]} ({len(some)} values)"


def _grouped(records: Sequence[Record], key: Callable[[Record], K]) -> Mapping[K, list[Record]]:
    found: dict[K, list[Record]] = {}
    for r in records:
        found.setdefault(key(r), []).append(r)
    return found
