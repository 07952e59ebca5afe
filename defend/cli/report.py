"""defend report: the results of run folders as a page that works offline, or as a table."""

from __future__ import annotations

from pathlib import Path

import click

from defend.cli.common import UserPath
from defend.errors import BadParameter

FORMATS = ("html", "csv", "latex", "markdown")


@click.command("report")
@click.argument("run_dirs", nargs=-1, required=True, type=UserPath(), metavar="RUN_DIR...")
@click.option(
    "--format",
    "chosen_format",
    type=click.Choice(FORMATS),
    default="html",
    show_default=True,
    help="html: a page with data files beside it. The others: one table for a paper, whose columns"
    " are levels of knowledge.",
)
@click.option(
    "--out",
    type=UserPath(),
    metavar="PATH",
    help="The folder of the page, by default that of a single RUN_DIR, or a new one in the current"
    " directory; the file of a table, by default stdout.",
)
@click.option(
    "--per-image", is_flag=True, help="With --format csv: a line for each image of each cell."
)
@click.option("--overwrite", is_flag=True, help="Replace what lies at --out.")
def report(
    run_dirs: tuple[Path, ...],
    chosen_format: str,
    out: Path | None,
    per_image: bool,
    overwrite: bool,
) -> None:
    """Write the results of all RUN_DIRs as report.html and results.csv, or as one table.

    The page of one run goes into its folder and takes the place of its earlier page. That of
    several runs goes into a new folder. Two versions of one component are labelled by run.
    """
    if per_image and chosen_format != "csv":
        raise BadParameter("--per-image: expected --format csv beside it; add --format csv")
    if chosen_format == "html":
        _write_page(run_dirs, out, overwrite)
        return
    from defend.results.formats.image_csv import format_images
    from defend.results.text_report import format_report

    if out is not None:
        check_new_file(out, overwrite)
    text = format_images(run_dirs) if per_image else format_report(run_dirs, chosen_format)
    if out is None:
        click.echo(text, nl=False)
    else:
        write_text(out, text)
        click.echo(out)


def _write_page(run_dirs: tuple[Path, ...], out: Path | None, overwrite: bool) -> None:
    from defend.results.report import write_report

    for path in write_report(list(run_dirs), out, overwrite=overwrite):
        click.echo(path)


def check_new_file(out: Path, overwrite: bool) -> None:
    """Raise BadParameter if a file cannot be written here, or if one is there unasked."""
    from defend.files import ensure_writable

    if out.is_dir():
        raise BadParameter(f"--out {out}: expected a file, got a folder; give a name in it")
    if out.exists() and not overwrite:
        raise BadParameter(
            f"--out {out}: there is such a file; give another name, or --overwrite to replace it"
        )
    ensure_writable(out.parent, make=False)


def write_text(out: Path, text: str) -> None:
    """Write a complete file. Raises BadParameter if it cannot be written."""
    from defend.files import write_file

    try:
        write_file(out, text)
    except OSError as e:
        raise BadParameter(f"--out {out}: cannot be written: {e.strerror}") from None
