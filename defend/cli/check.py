"""defend check: the conformance kit on a component that is installed under a name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import click

from defend.cli.common import (
    data_root_option,
    make_console,
    resolve_component,
    weights_dataset_option,
)

_STYLES = {"pass": "green", "fail": "bold red"}


@click.command("check")
@click.argument("words", nargs=-1, metavar="[KIND] NAME")
@weights_dataset_option
@data_root_option
def check(words: tuple[str, ...], dataset: str | None, data_root: str | None) -> None:
    """Run the conformance kit on a defense, attack, classifier or data set.

    NAME may carry fields, as in bitdepth:bits=2.
    """
    kind, spec = resolve_component(words, "defend check [KIND] NAME")
    from defend.loading import load
    from defend.testing.runner import run_checks

    options: dict[str, Any] = {}
    if kind == "dataset" and data_root:
        options["root"] = data_root

    def make() -> Any:
        return load(spec, kind, dataset, **options)

    # A wrong spec and missing data are errors of the user (exit code 2), not failed checks (1).
    component = make()
    if kind == "dataset":
        component.rows(component.splits[0], 0, 1)
    results = run_checks(kind, make, first=component)
    print_results(f"{kind} {spec}", results)
    if any(status == "fail" for _, status, _ in results):
        click.get_current_context().exit(1)


def print_results(title: str, results: Sequence[tuple[str, str, str]]) -> None:
    """Print (name, status, message) of each check, then how many had each status."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    for name, status, message in results:
        check_name = name.removeprefix("check_").replace("_", " ")
        table.add_row(Text(status, style=_STYLES.get(status, "dim")), check_name, message)
    console = make_console()
    console.print(title, style="bold")
    console.print(table)
    counts = Counter(status for _, status, _ in results)
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()))
