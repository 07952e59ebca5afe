"""defend tune: choose the scale of a defense on validation images."""

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
    from collections.abc import Sequence

    from rich.table import Table

    from defend.benchmarks.tune import ScaleResult


@click.command("tune")
@click.argument("spec", metavar="SPEC")
@click.option("--dataset", required=True, metavar="SPEC", help="The data set.")
@click.option(
    "--classifier", required=True, metavar="SPEC", help="The classifier behind the defense."
)
@click.option(
    "--scales", default="2,4,8", show_default=True, metavar="LIST", help="The scales to measure."
)
@click.option(
    "--attack",
    default="pgd",
    show_default=True,
    metavar="SPEC",
    help="The attack on the bare classifier.",
)
@click.option("--eps", metavar="E", help="As 0.1 or 4/255. Default: the data set's claim eps.")
@click.option(
    "-n", "--n", type=int, default=100, show_default=True, help="The number of validation images."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--out",
    "sheet",
    type=UserPath(dir_okay=False),
    default=Path("tune.png"),
    show_default=True,
    metavar="FILE.png",
    help="The sheet of images: clean, attacked, then both restored at each scale.",
)
@device_option
@data_root_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each scale.")
def tune(spec: str, scales: str, sheet: Path, as_json: bool, **options: Any) -> None:
    """Measure the defense SPEC at several scales, and write a sheet of restored images.

    Accuracy is measured on validation images, clean and attacked; the attack does not know the
    defense. Then look at the sheet: is a feature that matters gone, or is there one that was not?
    """
    numbers = parse_scales(scales)
    check_names({"defense": spec, **options})
    if sheet.suffix != ".png":
        raise BadParameter(f"--out {sheet}: expected a name that ends in .png; give another one")
    ensure_writable(sheet.parent)
    from defend.benchmarks.tune import TuningRequest
    from defend.benchmarks.tune import tune as run  # loads torch, so after the options are read

    results = run(TuningRequest(spec=spec, scales=numbers, sheet=sheet, **options), progress=True)
    if as_json:
        for result in results:
            click.echo(json.dumps(result.as_dict()))
    else:
        make_console().print(make_table(results))
    click.echo(f"wrote {sheet}", err=True)


def parse_scales(text: str) -> list[int]:
    """Return whole numbers joined by commas. Raise BadParameter for another text."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words) or len(set(words)) != len(words):
        raise BadParameter(
            f"--scales {text}: expected different whole numbers joined by commas; write 2,4,8"
        )
    return [int(word) for word in words]


def make_table(results: Sequence[ScaleResult]) -> Table:
    """Return one row for each scale; accuracies in % with their 95 % intervals."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("scale", "clean", "attacked", "PSNR of clean"):
        table.add_column(column, justify="right")
    for result in results:
        table.add_row(
            "no defense" if result.scale is None else str(result.scale),
            _percent(result.clean, result.clean_interval),
            _percent(result.attacked, result.attacked_interval),
            "" if result.psnr is None else f"{result.psnr:.2f} dB",
        )
    return table


def _percent(share: float, limits: tuple[float, float]) -> str:
    low, high = limits
    return f"{100 * share:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
