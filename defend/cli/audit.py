"""defend audit: run the audit, print its verdict and its checks, write its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from defend.cli.common import UserPath, data_root_option, device_option, make_console
from defend.cli.names import check_names
from defend.errors import BadParameter
from defend.files import ensure_writable

if TYPE_CHECKING:
    from rich.table import Table

    from defend.auditing import AuditReport

UNRELIABLE, NOT_JUDGED = 3, 4  # exit codes
# By weight: what stands above its rows.
_HEADINGS = {
    "attack": "another attack against the declared gradient's best",
    "required": "required",
    "sign": "a sign, which does not decide",
}
_TABLE_WIDTH = 118  # also in a log, whose lines are not cut to a terminal
_STYLES = {"pass": "green", "flag": "yellow", "not run": "dim", "not judged": "yellow"}


@click.command("audit")
@click.argument("spec", metavar="SPEC")
@click.option("--dataset", required=True, metavar="SPEC", help="The data set.")
@click.option(
    "--classifier", required=True, metavar="SPEC", help="The classifier behind the defense."
)
@click.option(
    "--budget",
    default="standard",
    show_default=True,
    metavar="quick|standard|thorough",
    help="How many images are attacked, by how many steps.",
)
@click.option(
    "--split",
    default="test",
    show_default=True,
    metavar="test|val",
    help="Use val to choose recipes and thresholds, test for claims.",
)
@click.option(
    "--eps",
    metavar="E",
    help="The L-inf budget, as 0.1 or 8/255. Default: the claim eps of the data set.",
)
@click.option(
    "-n",
    "--n",
    type=int,
    help="The number of images, from the first of the split. Default: by the budget.",
)
@click.option(
    "--surrogate",
    "surrogates",
    multiple=True,
    metavar="SPEC",
    help="Another pipeline to transfer attacks from: C, or DEFENSE+C. May be repeated.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@device_option
@data_root_option
@click.option(
    "--out",
    type=UserPath(dir_okay=False),
    metavar="FILE.html",
    help="Also write the report as one HTML page that works offline.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout instead.")
def audit(
    spec: str, dataset: str, classifier: str, out: Path | None, as_json: bool, **options: Any
) -> None:
    """Check whether the robust accuracy under a defense's declared gradient can be trusted.

    Exit code 0: no sign of gradient masking. Exit code 3: the evaluation is unreliable. Exit code
    4: not judged, since no attack that could have found masking ran to its end.
    """
    if out is not None:
        check_page_path(out)
    check_names({"defense": spec, "dataset": dataset, "classifier": classifier, **options})
    from defend.auditing import (
        audit as run_audit,
    )  # loads torch, so only after the options are read
    from defend.auditing.page import write_page

    report = run_audit(spec, dataset, classifier, progress=True, **options)
    error = None
    if out is not None:  # before anything is printed, since nobody may be there to read it
        try:
            write_page(report, out)
        except BadParameter as e:
            error = e
        else:
            click.echo(f"wrote {out}", err=True)
    if as_json:
        click.echo(json.dumps(report.as_dict(), allow_nan=False))
    else:
        print_report(report)
    if error is not None:
        raise error
    if is_unreliable(report):
        click.get_current_context().exit(UNRELIABLE)
    if is_not_judged(report):
        click.get_current_context().exit(NOT_JUDGED)


def check_page_path(out: Path) -> None:
    """Raise BadParameter if no HTML page can be written to this path."""
    if out.suffix != ".html":
        raise BadParameter(
            f"--out {out}: expected a name that ends in .html, as {out.with_suffix('.html')}; for"
            " JSON give --json and redirect it"
        )
    ensure_writable(out.parent, make=False)


def is_unreliable(report: AuditReport) -> bool:
    """Return True if any check makes the evaluation unreliable."""
    return any(check.turns for check in report.checks)


def is_not_judged(report: AuditReport) -> bool:
    """Return True if no attack that could have found masking ran to its end."""
    from defend.auditing import verdict

    return report.verdict == verdict.NOT_JUDGED


def print_report(report: AuditReport) -> None:
    """Print the verdict, its reasons, the checks, and the advice of flags that do not decide it."""
    from defend.auditing.page import summarise

    console = make_console()
    console.print(report.headline, style=_style_of(report))
    console.print(summarise(report))
    for reason in report.reasons:
        console.print(f"- {reason}", soft_wrap=True)
    console.print(f"broke most: {report.broke_most}", style="dim", soft_wrap=True)
    if report.rests_on:
        console.print(f"rests on: {'; '.join(report.rests_on)}", style="dim", soft_wrap=True)
    console.print(_make_table(report))
    for check in report.checks:
        if check.verdict == "flag" and not check.turns:
            console.print(f"{check.name}: {check.advice}.", style="dim", soft_wrap=True)


def _style_of(report: AuditReport) -> str:
    if is_unreliable(report):
        return "bold red"
    return "bold yellow" if is_not_judged(report) else "bold green"


def _make_table(report: AuditReport) -> Table:
    """Return one row for each check, by weight; those that make the evaluation unreliable are
    bold.
    """
    from rich.table import Table
    from rich.text import Text

    from defend.auditing.page import rows_to_print

    width = min(_TABLE_WIDTH, make_console().width)
    table = Table(box=None, pad_edge=False, header_style="dim", width=width)
    table.add_column("")
    for column in ("check", "measured", "passes if"):
        table.add_column(column, overflow="fold")
    rows = rows_to_print(report)
    for weight, heading in _HEADINGS.items():
        table.add_row("", Text(heading, style="dim"))
        for check in rows:
            if check.weight == weight:
                style = "bold red" if check.turns else _STYLES[check.verdict]
                verdict = Text(check.verdict, style=style)
                table.add_row(verdict, check.name, check.measured, check.threshold)
    return table
