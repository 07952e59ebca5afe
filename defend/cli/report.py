"""defend report: one HTML page that works offline, and a CSV file, from run folders."""

from __future__ import annotations

from pathlib import Path

import click

from defend.cli.common import UserPath


@click.command("report")
@click.argument("run_dirs", nargs=-1, required=True, type=UserPath(), metavar="RUN_DIR...")
def report(run_dirs: tuple[Path, ...]) -> None:
    """Write report.html and results.csv into the first RUN_DIR, from the records of all."""
    from defend.results.report import write_report

    for path in write_report(list(run_dirs)):
        click.echo(path)
