"""defend diff: compare two runs cell by cell over the same images."""

from __future__ import annotations

import json
from pathlib import Path

import click

from defend.cli.common import UserPath

CHANGED = 1  # exit code


@click.command("diff")
@click.argument("old", type=UserPath(), metavar="RUN1")
@click.argument("new", type=UserPath(), metavar="RUN2")
@click.option(
    "--pair",
    "same",
    nargs=2,
    multiple=True,
    metavar="OF_RUN1 OF_RUN2",
    help="Take these two specs for one classifier, defense, attack or data set. May be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def diff(old: Path, new: Path, same: tuple[tuple[str, str], ...], as_json: bool) -> None:
    """Compare the cells that two runs have in common, paired over the same images.

    What differs in keys, code and weights is named. p-values are by Holm over all cells.
    Exit code 0: no significant difference. 1: some cell differs significantly, failed in one run
    alone, or is contradicted by its units. 2: no cell or no image is in both.
    """
    from defend.results.diff_text import diff_to_dict, format_diff
    from defend.results.run_diff import compare_runs

    comparison = compare_runs(old, new, same)
    if as_json:
        click.echo(json.dumps(diff_to_dict(comparison), allow_nan=False))
    else:
        click.echo(format_diff(comparison), nl=False)
    if not comparison.is_sound:
        click.get_current_context().exit(CHANGED)
