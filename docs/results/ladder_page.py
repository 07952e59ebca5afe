"""Write the table of docs/ladder.md, the same numbers as ladder.csv, and all pairs as
ladder_pairs.csv, from folders of `defend bench --protocol ladder-1`.

    python docs/results/ladder_page.py runs/ladder-digits-m runs/ladder-mnist ...

For each defense, norm and data set: the worst case image by image at each level, the worst case
over everything, and what may be claimed.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from defend.eps import Eps
from defend.protocols.protocol import GRADIENTS
from defend.records import Claim, Record, read_records
from defend.results.build import table
from defend.results.claim_text import format_claim, name_claim
from defend.results.footnotes import widening
from defend.results.model import Compared, Worst
from defend.results.numbers import worst_number
from defend.results.outcomes import OutcomeReader
from defend.results.table_text import format_bound, format_percent
from defend.results.training_knowledge import format_trained_on
from defend.stats import holm
from defend.threat_models import LEVELS

HERE = Path(__file__).parent
PAGE = HERE.parent / "ladder.md"
BEGIN = "<!-- ladder: written by docs/results/ladder_page.py -->"
END = "<!-- /ladder -->"
PLACE_COLUMNS = ("dataset", "classifier", "norm", "eps", "n", "defense", "trained_on", "clean")
COLUMNS = (*PLACE_COLUMNS, *LEVELS, *GRADIENTS, "worst", "low", "high", "claim")
PAIR_COLUMNS = tuple(field.name for field in fields(Compared))


@dataclass(frozen=True, kw_only=True)
class LadderRow:
    """What one defense withstands; accuracies are texts in percent."""

    dataset: str
    classifier: str
    norm: str
    eps: str
    n: int
    distinct_images: int
    counts_once: bool  # of images that show the same thing; False in older records
    defense: str
    trained_on: str
    clean: str
    by_level: Mapping[str, str]
    by_gradient: Mapping[str, str]
    worst: str
    low: str
    high: str
    claim: Claim

    @property
    def place(self) -> tuple[str, ...]:
        """Return what defenses are compared on, but for the number of images."""
        return self.dataset, self.classifier, self.norm, self.eps

    @property
    def heading(self) -> str:
        """Return the heading of the rows over the same images."""
        text = f"{self.dataset}, {self.classifier}, {self.norm} {self.eps}, n = {self.n:,}"
        if self.distinct_images >= self.n:
            return text
        if self.counts_once:
            return f"{text} ({self.distinct_images:,} distinct: each counts once)"
        factor = widening(self.n, self.distinct_images)
        return (
            f"{text} ({self.distinct_images:,} distinct:"
            f" intervals are too narrow by up to {factor:.2f} times)"
        )

    def to_columns(self) -> dict[str, Any]:
        """Return the values of COLUMNS."""
        values = {name: getattr(self, name) for name in (*PLACE_COLUMNS, "worst", "low", "high")}
        return {**values, **self.by_level, **self.by_gradient, "claim": format_claim(self.claim)}


def main() -> None:
    rows: list[LadderRow] = []
    pairs: list[Compared] = []
    for run in map(Path, sys.argv[1:]):
        run_rows, run_pairs = read_run(run)
        rows += run_rows
        pairs += run_pairs
    rows = choose_rows(rows)
    write_csv("ladder.csv", COLUMNS, [row.to_columns() for row in rows])
    adjusted = holm([pair.p for pair in pairs])  # over all pairs that are listed there
    listed = [replace(pair, p_holm=p) for pair, p in zip(pairs, adjusted, strict=True)]
    write_csv("ladder_pairs.csv", PAIR_COLUMNS, [asdict(pair) for pair in listed])
    before, _, after = PAGE.read_text().partition(BEGIN)
    body = "\n".join(format_page(rows))
    PAGE.write_text(f"{before}{BEGIN}\n\n{body}\n{END}{after.partition(END)[2]}")
    print(f"wrote {len(rows)} rows")


def choose_rows(rows: Iterable[LadderRow]) -> list[LadderRow]:
    """Return each defense once, with the most images; "none" stands beside each number of images.

    Of a defense that is in several runs the last one counts, as in a report.
    """
    latest = {(row.heading, row.defense): row for row in rows}
    most: dict[tuple[str, ...], int] = {}
    for row in latest.values():
        key = (*row.place, row.defense)
        most[key] = max(row.n, most.get(key, 0))
    return [
        row
        for row in latest.values()
        if row.defense == "none" or row.n == most[(*row.place, row.defense)]
    ]


def write_csv(name: str, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    with (HERE / name).open("w", newline="") as f:
        writer = csv.DictWriter(f, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_run(run: Path) -> tuple[list[LadderRow], list[Compared]]:
    """Return a row for each worst case of a run's table, and the pairs of purifiers."""
    reader = OutcomeReader([run])
    model = table(read_records(run), [run], reader=reader)
    rows = []
    for section in model.sections:
        rows += [make_row(worst, reader) for worst in section.worst]
    return rows, list(model.comparisons)


def make_row(worst: Worst, reader: OutcomeReader) -> LadderRow:
    first, number = worst.cells[0], worst.number
    adaptive = [r for r in worst.cells if r.knowledge == "adaptive"]
    by_level = {}
    for level in LEVELS:
        by_level[level] = format_worst([r for r in worst.cells if r.knowledge == level], reader)
    by_gradient = {}
    for gradient in GRADIENTS:  # of attacks that stay with one, as a search in rounds does not
        by_gradient[gradient] = format_worst(
            [r for r in adaptive if r.gradient == gradient and r.rounds is None], reader
        )
    return LadderRow(
        dataset=first.dataset,
        classifier=first.classifier,
        norm=first.norm,
        eps=Eps.of(worst.eps).text,
        n=first.n,
        distinct_images=first.distinct_images,
        counts_once=first.sample is not None,
        defense=first.defense,
        trained_on=format_trained_on(first.trained_on),
        clean=format_percent(worst.clean.value),
        by_level=by_level,
        by_gradient=by_gradient,
        worst=format_bound(number) + format_percent(number.value),
        low=format_percent(number.low),
        high=format_percent(number.high),
        claim=worst.claim,
    )


def format_worst(records: Sequence[Record], reader: OutcomeReader) -> str:
    """Return the worst case of each image over these attacks."""
    if not records:
        return ""
    number, _ = worst_number(records, reader)
    if number.value is None:
        return ""
    return format_bound(number) + format_percent(number.value)


def format_page(rows: Sequence[LadderRow]) -> Iterator[str]:
    headings = " | ".join(("purifier", "clean", *LEVELS, "worst of all", "trained on", "claim"))
    for heading in dict.fromkeys(row.heading for row in rows):
        yield f"### {heading}\n"
        yield f"| {headings} |"
        yield "| --- " * (len(LEVELS) + 5) + "|"
        for row in rows:
            if row.heading == heading:
                yield format_row(row)
        yield ""


def format_row(row: LadderRow) -> str:
    """Return the line of a row.

    A number is bold if it may be claimed at the eps that the field claims at, and nowhere else.
    """
    numbers = " | ".join([row.clean, *row.by_level.values()])
    worst, claim = row.worst, format_claim(row.claim)
    if row.claim.ranks:
        worst = f"**{worst}**"
    if row.claim.stands:
        eps = f"{row.claim.norm} {row.claim.eps_text}"
        claim = f"{name_claim(row.claim)}: {row.claim.protocol}, {eps}"  # its value is in the row
    cells = [
        f"`{row.defense}`",
        numbers,
        f"{worst} ({row.low} to {row.high})",
        row.trained_on,
        claim,
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
