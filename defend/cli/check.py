"""defend check: the conformance kit on whatever is installed under a name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from defend.cli.common import component, console

_STYLES = {"pass": "green", "fail": "bold red"}


@click.command("check")
@click.argument("words", nargs=-1, metavar="[KIND] NAME")
@click.option("--dataset", metavar="NAME", help="What weights=auto looks for.")
@click.option(
    "--data-root",
    metavar="DIR",
    help="Where data sets lie. Default: DEFEND_DATA, else the user's cache folder.",
)
def check(words: tuple[str, ...], dataset: str | None, data_root: str | None) -> None:
    """Run the conformance kit on a defense, attack, classifier or data set; NAME may carry fields, as bitdepth:bits=2."""
    kind, spec = component(words, "defend check [KIND] NAME")
    from defend.load import load
    from defend.testing.runner import run_checks

    more: dict[str, Any] = {"root": data_root} if kind == "dataset" and data_root else {}
    made = load(spec, kind, dataset, **more)  # a wrong spec is the user's error, no failed check
    if kind == "dataset":
        made.rows("train", 0, 1)  # so is data that is not there
    results = run_checks(kind, lambda: load(spec, kind, dataset, **more))
    print_results(f"{kind} {spec}", results)
    if any(status == "fail" for _, status, _ in results):
        click.get_current_context().exit(1)


def print_results(title: str, results: Sequence[tuple[str, str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    for name, status, message in results:
        table.add_row(
            Text(status, style=_STYLES.get(status, "dim")),
            name.removeprefix("check_").replace("_", " "),
            message,
        )
    out = console()
    out.print(title, style="bold")
    out.print(table)
    counts = {
        status: sum(s == status for _, s, _ in results)
        for status in dict.fromkeys(s for _, s, _ in results)
    }
    out.print(", ".join(f"{n} {status}" for status, n in counts.items()))
