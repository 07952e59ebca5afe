"""defend verify: confirm the records of a run folder by its units."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from defend.cli.common import UserPath
from defend.errors import count_of

NOT_CONFIRMED = 1  # exit code


@click.command("verify")
@click.argument("run_dir", type=UserPath(), metavar="RUN_DIR")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def verify(run_dir: Path, as_json: bool) -> None:
    """Compute every record of a run again from its unit files, and check their checksums.

    What is missing, damaged, edited or added is named. No image is attacked again, and nothing is
    written. Exit code 0: all is confirmed. 1: something is not.
    """
    from defend.results.verify import verify_run

    result = verify_run(run_dir)
    if as_json:
        click.echo(json.dumps(asdict(result)))
    else:
        for problem in result.problems:
            click.echo(f"{problem.code}: {problem.subject}: {problem.text}")
        words = [f"{count_of(result.confirmed, 'cell')} confirmed"]
        if result.failed:
            words.append(f"{count_of(result.failed, 'failed cell')} without numbers")
        if result.unused:
            words.append(
                f"{count_of(result.unused, 'unit')} of earlier commands, on which no record rests"
            )
        words.append(count_of(len(result.problems), "problem") if result.problems else "no problem")
        click.echo("; ".join(words))
    if result.problems:
        click.get_current_context().exit(NOT_CONFIRMED)
