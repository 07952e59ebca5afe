"""Write the table of the persistent search in docs/ladder.md, and the same numbers as search.csv,
from folders of `defend bench --attack persist --knowledge adaptive --gradient declared`.

    python docs/results/search_page.py runs/search-digits-m runs/search-mnist ...

For each defense: the accuracy before the search and after each of its rounds, and what broke most
of the images. Of a defense that is in several folders, the run with the most images counts.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from defend.records import Record, read_records
from defend.results.searches import searches_every_gradient
from defend.results.training_knowledge import format_trained_on

HERE = Path(__file__).parent
PAGE = HERE.parent / "ladder.md"
BEGIN = "<!-- search: written by docs/results/search_page.py -->"
END = "<!-- /search -->"
COLUMNS = (
    "dataset",
    "classifier",
    "eps",
    "n",
    "defense",
    "clean",
    "left",
    "low",
    "high",
    "after each round",
    "ended",
    "broken by",
    "passes",
    "trained_on",
)
HEADINGS = ("purifier, before classifier", "n", "clean", "left", "after each round", "broken by")
LISTED_MOVES = 3


def main() -> None:
    records = choose_records([r for run in sys.argv[1:] for r in read_records(Path(run))])
    rows = [make_row(record) for record in records]
    with (HERE / "search.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    before, _, after = PAGE.read_text().partition(BEGIN)
    body = "\n".join(format_page(rows))
    PAGE.write_text(f"{before}{BEGIN}\n\n{body}\n{END}{after.partition(END)[2]}")
    print(f"wrote {len(rows)} rows")


def choose_records(records: Sequence[Record]) -> list[Record]:
    """Return the searches through every gradient, each pipeline once at each eps."""
    chosen: dict[tuple[str, ...], Record] = {}
    for record in records:
        if record.failed or not searches_every_gradient(record):
            continue
        key = (record.dataset, record.eps_text, record.classifier, record.defense)
        if key not in chosen or record.n > chosen[key].n:
            chosen[key] = record
    return [chosen[key] for key in sorted(chosen)]


def make_row(record: Record) -> dict[str, str]:
    """Return the values of COLUMNS, in percent."""
    rounds, number = record.rounds, record.number
    assert rounds and number
    evaluations = (record.forwards or 0) + (record.backwards or 0)
    values = (
        record.dataset,
        record.classifier,
        f"{record.norm} {record.eps_text}",
        str(record.n),
        record.defense,
        percent(record.clean_accuracy or 0),
        percent(number.value),
        percent(number.low),
        percent(number.high),
        ", ".join(map(percent, rounds.standing)),
        rounds.ended or "",
        "; ".join(f"{move} ({count})" for move, count in rounds.broken_by.items()),
        f"{evaluations:.0f}",
        format_trained_on(record.trained_on),
    )
    return dict(zip(COLUMNS, values, strict=True))


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def format_page(rows: Sequence[dict[str, str]]) -> Iterator[str]:
    for place in dict.fromkeys((row["dataset"], row["eps"]) for row in rows):
        yield f"### {place[0]}, {place[1]}\n"
        yield f"| {' | '.join(HEADINGS)} |"
        yield "| --- " * len(HEADINGS) + "|"
        for row in rows:
            if (row["dataset"], row["eps"]) == place:
                yield format_row(row)
        yield ""


def format_row(row: dict[str, str]) -> str:
    moves = row["broken by"].split("; ")
    cells = (
        f"`{row['defense']}`, `{row['classifier']}`",
        f"{int(row['n']):,}",
        row["clean"],
        f"{row['left']} ({row['low']} to {row['high']})",
        row["after each round"],
        "; ".join(moves[:LISTED_MOVES]) + ("; ..." if len(moves) > LISTED_MOVES else ""),
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
