"""The table of docs/ladder.md, the same numbers as ladder.csv and every pair as ladder_pairs.csv, from folders of `defend bench --protocol ladder-1`.

    python docs/results/ladder_page.py runs/ladder-digits-m runs/ladder-mnist ...

For each defense, norm and data set: the worst case image by image at each level, the worst case over everything image by image, and what may be claimed.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from defend.benchmarks.suite import Eps
from defend.records import read_records
from defend.results.build import table
from defend.results.claims import EVERY_GRADIENT
from defend.results.footnotes import distinct_of, widening
from defend.results.outcomes import Reader, Record, spelled_alike
from defend.results.table import Compared, Worst, claims, percent
from defend.results.worst_case import cells_of, worst_over
from defend.stats import holm

HERE = Path(__file__).parent
PAGE, BEGIN, END = (
    HERE.parent / "ladder.md",
    "<!-- ladder: written by docs/results/ladder_page.py -->",
    "<!-- /ladder -->",
)
LEVELS = ("oblivious", "transfer", "query", "adaptive")
COLUMNS = (
    "dataset",
    "classifier",
    "norm",
    "eps",
    "n",
    "defense",
    "trained_on",
    "clean",
    *LEVELS,
    *EVERY_GRADIENT,
    "worst",
    "low",
    "high",
    "claim",
)
PAIRS = tuple(f.name for f in fields(Compared))


def main() -> None:
    listed, pairs = [], []
    for run in map(Path, sys.argv[1:]):
        found, compared = of(run)
        listed += found
        pairs += compared
    listed = list(
        {(section(r), r["defense"]): r for r in listed}.values()
    )  # of one that is in several runs the last counts, as in a report
    listed = [
        r
        for r in listed
        if r["defense"] == "none"
        or r["n"] == max(other["n"] for other in listed if of_one(other) == of_one(r))
    ]
    write("ladder.csv", COLUMNS, listed)
    adjusted = holm([p["p"] for p in pairs])
    write(
        "ladder_pairs.csv",
        PAIRS,
        [pair | {"p_holm": p} for pair, p in zip(pairs, adjusted, strict=True)],
    )  # over all that are listed there
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(
        before + BEGIN + "\n\n" + "\n".join(lines(listed)) + "\n" + END + rest.partition(END)[2]
    )
    print(f"wrote {len(listed)} rows")


def of_one(r: dict[str, Any]) -> tuple[Any, ...]:
    """Of several numbers of images the most are shown; no defense stands beside each."""
    return tuple(r[key] for key in ("dataset", "classifier", "norm", "eps", "defense"))


def write(name: str, columns: Sequence[str], listed: list[dict[str, Any]]) -> None:
    with (HERE / name).open("w", newline="") as f:
        writer = csv.DictWriter(f, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(listed)


def of(run: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row for each worst case of a run's table, with that of each level beside it, and one for each pair of purifiers."""
    records, read = spelled_alike(read_records(run)), Reader([run])
    made = table(records, [run])
    rows = [
        row(worst, cells_of(worst, section, records), read)
        for section in made.sections
        for worst in section.worst
    ]
    return rows, [vars(pair) for pair in made.comparisons]


def row(worst: Worst, cells: list[Record], read: Reader) -> dict[str, Any]:
    number, first = worst.number, cells[0]
    return {
        **{key: first[key] for key in ("dataset", "classifier", "norm", "n", "defense")},
        "eps": Eps.of(worst.eps).text,
        "trained_on": first["trained_on"] or "",
        "clean": percent(worst.clean.accuracy),
        **{level: lowest([r for r in cells if r["knowledge"] == level], read) for level in LEVELS},
        **{
            way: lowest(
                [r for r in cells if r["knowledge"] == "adaptive" and r["gradient"] == way], read
            )
            for way in EVERY_GRADIENT
        },
        "worst": number.at_most + percent(number.accuracy),
        "low": percent(number.low),
        "high": percent(number.high),
        "claim": worst.claim,
    }


def lowest(records: list[Record], read: Reader) -> str:
    """The worst case of each image over these attacks."""
    found = worst_over(records, read)[0] if records else None
    return (
        "" if found is None or found.accuracy is None else found.at_most + percent(found.accuracy)
    )


def lines(listed: list[dict[str, Any]]) -> Iterator[str]:
    for place in dict.fromkeys(section(r) for r in listed):
        yield f"### {place}\n"
        yield (
            "| purifier | clean | " + " | ".join(LEVELS) + " | worst of all | trained on | claim |"
        )
        yield "| --- " * (len(LEVELS) + 5) + "|"
        yield from (line(r) for r in listed if section(r) == place)
        yield ""


def line(r: dict[str, Any]) -> str:
    """Bold where it may be claimed, and nowhere else."""
    mark = "**" * claims(r["claim"])
    numbers = " | ".join(r[key] for key in ("clean", *LEVELS))
    claim = (
        r["claim"].partition(",")[0] if claims(r["claim"]) else r["claim"]
    )  # the rest stands in the row
    return f"| `{r['defense']}` | {numbers} | {mark}{r['worst']}{mark} ({r['low']} to {r['high']}) | {r['trained_on']} | {claim} |"


def section(r: dict[str, Any]) -> str:
    distinct = distinct_of(r["dataset"], "test", r["n"])
    again = (
        f" ({distinct:,} distinct: intervals are too narrow by up to {widening(r['n'], distinct):.2f} times)"
        if distinct < r["n"]
        else ""
    )
    return f"{r['dataset']}, {r['classifier']}, {r['norm']} {r['eps']}, n = {r['n']:,}{again}"


if __name__ == "__main__":
    main()
