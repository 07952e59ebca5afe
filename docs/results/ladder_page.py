"""The table of docs/ladder.md, and the same numbers as ladder.csv, from run folders of `defend bench --protocol ladder-1`.

    python docs/results/ladder_page.py runs/ladder-digits-m runs/ladder-mnist ...

For each defense, norm and data set: the lowest cell at each level, the worst case over everything image by image, and what may be claimed.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from defend.benchmarks.records import read_records

HERE = Path(__file__).parent
PAGE, BEGIN, END = HERE.parent / "ladder.md", "<!-- ladder: written by docs/results/ladder_page.py -->", "<!-- /ladder -->"
LEVELS = ("oblivious", "transfer", "query", "adaptive")
COLUMNS = ("dataset", "classifier", "norm", "eps", "n", "defense", "trained_on", "clean", *LEVELS, "worst", "low", "high", "claim")
Row = Mapping[str, Any]


def main() -> None:
    table = [row for run in map(Path, sys.argv[1:]) for row in rows(run)]
    with (HERE / "ladder.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + "\n\n" + "\n".join(lines(table)) + "\n" + END + rest.partition(END)[2])
    print(f"wrote {len(table)} rows")


def rows(run: Path) -> Iterator[dict[str, Any]]:
    """One for each worst case: its number is that of `summary.json`, its levels are the lowest of their cells."""
    records = read_records(run)
    for worst in json.loads((run / "summary.json").read_text())["worst"]:
        mine = [r for r in records if matches(r, worst)]
        first = mine[0]
        yield {
            **{key: first[key] for key in ("dataset", "classifier", "norm", "n", "defense")},
            "eps": worst["eps_text"], "trained_on": first["trained_on"] or "", "clean": percent(worst["clean"]["accuracy"]),
            **{level: lowest([r for r in mine if r["knowledge"] == level]) for level in LEVELS},
            "worst": ("<= " if worst["number"]["bound"] else "") + percent(worst["number"]["accuracy"]),
            "low": percent(worst["number"]["low"]), "high": percent(worst["number"]["high"]), "claim": worst["claim"],
        }  # fmt: skip


def matches(r: Row, worst: Row) -> bool:
    place = f"{r['dataset']} | {r['classifier']} | {r['norm']} |"
    return worst["section"].startswith(place) and (r["defense"], r["eps_text"]) == (worst["defense"], worst["eps_text"])


def lowest(records: list[Row]) -> str:
    done = [r["robust_accuracy"] for r in records if r["error"] is None]
    return percent(min(done)) if done else ""


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def lines(table: list[dict[str, Any]]) -> Iterator[str]:
    for place in dict.fromkeys(section(row) for row in table):
        some = [row for row in table if section(row) == place]
        yield f"### {place}\n"
        yield "| purifier | clean | " + " | ".join(LEVELS) + " | worst of all | trained on | claim |"
        yield "| --- " * (len(LEVELS) + 5) + "|"
        for row in some:
            numbers = " | ".join(row[key] for key in ("clean", *LEVELS))
            yield f"| `{row['defense']}` | {numbers} | **{row['worst']}** ({row['low']} to {row['high']}) | {row['trained_on']} | {short(row['claim'])} |"
        yield ""


def section(row: Row) -> str:
    return f"{row['dataset']}, {row['classifier']}, {row['norm']} {row['eps']}, n = {row['n']:,}"


def short(claim: str) -> str:
    return claim if claim.startswith("no claim") else "yes"


if __name__ == "__main__":
    main()
