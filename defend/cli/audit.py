"""defend audit: options to one call, the verdict on top, a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from defend.cli.common import console
from defend.errors import BadParameter
from defend.files import writable

if TYPE_CHECKING:
    from defend.audit import AuditReport

UNRELIABLE = 3
_STYLES = {"pass": "green", "flag": "yellow", "not run": "dim"}


@click.command("audit")
@click.argument("spec", metavar="SPEC")
@click.option("--dataset", required=True, metavar="SPEC", help="A data set.")
@click.option("--classifier", required=True, metavar="SPEC", help="What the defense stands before.")
@click.option(
    "--budget",
    default="standard",
    show_default=True,
    metavar="quick|standard|thorough",
    help="How many images and steps.",
)
@click.option(
    "--split",
    default="test",
    show_default=True,
    metavar="test|val",
    help="val for choosing recipes and thresholds, test for claims.",
)
@click.option(
    "--eps", metavar="E", help="L-inf, as 0.1 or 8/255. Default: the claim eps of the data set."
)
@click.option(
    "-n", "--n", type=int, help="Images, from the first of the split. Default: the budget's."
)
@click.option(
    "--surrogate",
    "surrogates",
    multiple=True,
    metavar="SPEC",
    help="Another pipeline to transfer from: C, or DEFENSE+C. May be repeated.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|cuda:1")
@click.option(
    "--data-root",
    metavar="DIR",
    help="Where data sets lie. Default: DEFEND_DATA, else the user's cache folder.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.html",
    help="The report as one page that works offline.",
)
@click.option("--json", "as_json", is_flag=True, help="One object on stdout, nothing else.")
def audit(
    spec: str,
    dataset: str,
    classifier: str,
    budget: str,
    split: str,
    eps: str | None,
    n: int | None,
    surrogates: tuple[str, ...],
    seed: int,
    device: str,
    data_root: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Is what the declared gradient of a defense reports real? Exit code 0: no sign of masking; 3: unreliable."""
    if out is not None:
        if out.suffix != ".html":
            raise BadParameter(
                f"--out {out}: expected a name that ends in .html, as {out.with_suffix('.html')}; for JSON give --json and redirect it"
            )
        writable(out.parent, make=False)
    from defend.audit import audit as run  # loads torch: not before the options are read
    from defend.audit.page import write_page

    report = run(
        spec,
        dataset,
        classifier,
        budget,
        n=n,
        split=split,
        eps=eps,
        surrogates=surrogates,
        seed=seed,
        device=device,
        data_root=data_root,
        progress=True,
    )
    if as_json:
        click.echo(json.dumps(report.as_dict(), allow_nan=False))
    else:
        print_report(report)
    if out is not None:
        write_page(report, out)
        click.echo(f"wrote {out}", err=True)
    if any(c.turns for c in report.checks):
        click.get_current_context().exit(UNRELIABLE)


def print_report(report: AuditReport) -> None:
    """The verdict, its reasons, then the checks: those that turn it first in bold."""
    from rich.table import Table
    from rich.text import Text

    from defend.audit.page import summary

    out = console()
    unreliable = any(c.turns for c in report.checks)
    out.print(report.headline, style="bold red" if unreliable else "bold green")
    out.print(summary(report))
    for reason in report.reasons:
        out.print(f"- {reason}", soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", "check", "counts as", "measured", "wanted"):
        table.add_column(column, overflow="fold")
    for c in report.checks:
        table.add_row(
            Text(c.verdict, style="bold red" if c.turns else _STYLES[c.verdict]),
            c.name,
            c.weight,
            c.measured,
            c.threshold,
        )
    out.print(table)
    for c in report.checks:
        if c.verdict == "flag" and not c.turns:
            out.print(f"{c.name}: {c.advice}.", style="dim", soft_wrap=True)
