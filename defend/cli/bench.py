"""defend bench: options to keyword arguments, one call, a table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from defend.cli.common import console

_KEYS: list[Callable[[Any], Any]] = [  # each replaces the suite's key of its parameter's name
    click.option("--dataset", metavar="SPEC", help="A data set."),
    click.option(
        "--split",
        metavar="test|val",
        help="val for choosing recipes and thresholds, test for claims.",
    ),
    click.option(
        "--classifier",
        "classifiers",
        multiple=True,
        metavar="SPEC",
        help="May be repeated, as may the next six.",
    ),
    click.option(
        "--defense",
        "defenses",
        multiple=True,
        metavar="SPEC",
        help="name:key=value,key=value; chained by '+'.",
    ),
    click.option(
        "--attack",
        "attacks",
        multiple=True,
        metavar="SPEC",
        help="eps=... in it comes before --eps.",
    ),
    click.option(
        "--knowledge",
        multiple=True,
        metavar="LEVEL",
        help="oblivious, transfer, query, adaptive, bpda, or all.",
    ),
    click.option(
        "--gradient", "gradients", multiple=True, metavar="G", help="declared, identity or learned."
    ),
    click.option(
        "--surrogate",
        "surrogates",
        multiple=True,
        metavar="SPEC",
        help="What transfer attacks: C, or DEFENSE+C.",
    ),
    click.option(
        "--protocol",
        metavar="NAME",
        help="ladder-1: all that a claim needs, in one option; --attack then adds to it.",
    ),
    click.option(
        "--eps",
        metavar="LIST",
        help="0.1, 8/255, 0,8/255 or 0:0.3:0.02. Default: the claim eps of the data set.",
    ),
    click.option("-n", "--n", type=int, help="Images, from the first of the split."),
    click.option("--seed", type=int),
    click.option(
        "--draws", type=int, help="Purifications by which a stochastic defense is scored."
    ),
    click.option(
        "--eot", type=int, help="Copies over which a stochastic defense's gradient is averaged."
    ),
]


def _with_keys(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_KEYS):
        command = option(command)
    return command


@click.command("bench")
@click.argument("suite", required=False, type=click.Path(path_type=Path), metavar="[SUITE.toml]")
@_with_keys
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|cuda:1")
@click.option("--workers", type=int, help="Processes. Default: the cores, or the GPUs.")
@click.option(
    "--data-root",
    metavar="DIR",
    help="Where data sets lie. Default: DEFEND_DATA, else the user's cache folder.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="What is there is not computed again. Default: runs/SUITE.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="One record per line on stdout, nothing else."
)
def bench(
    suite: Path | None,
    device: str,
    workers: int | None,
    data_root: str | None,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Run a suite and print its table. Without SUITE, the embedded one; options replace its keys."""
    given = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in options.items()
        if value not in (None, ())
    }
    keys = suite_keys(suite, given)
    from defend import benchmarks  # loads torch: not before the options are read

    out = out or Path("runs") / benchmarks.suite.make_suite(keys).name
    try:
        records = benchmarks.bench(
            keys, out=out, workers=workers, device=device, data_root=data_root, progress=True
        )
    except KeyboardInterrupt:
        click.echo(
            f"what was finished is kept in {out}: the same command goes on with it", err=True
        )
        raise
    publish(records, out, as_json)
    if any(r["error"] for r in records):
        click.get_current_context().exit(1)


def suite_keys(suite: Path | None, given: dict[str, Any]) -> dict[str, Any]:
    """The suite's keys, replaced by those given. Raises BadParameter."""
    from defend.benchmarks.suite import load_suite

    base = load_suite(suite)
    if suite is None and given:
        base["name"] = "adhoc"
    if suite is None and "protocol" in given:
        base = {
            k: v for k, v in base.items() if k not in ("attacks", "eps", "eot", "n")
        }  # which the protocol decides; n: as a claim needs
    if suite is None and given.keys() & {"dataset", "attacks"}:
        base.pop(
            "eps", None
        )  # chosen for the embedded data set and its norm: another has a claim eps of its own
    if suite is None and given.keys() & {"dataset", "classifiers", "defenses", "attacks"}:
        base.pop("eot", None)  # half of the default, for minutes on two cores: a weaker attack
    return base | given


def publish(records: list[dict[str, Any]], out: Path, as_json: bool) -> None:
    from defend.records import read_records
    from defend.results import print_table
    from defend.results.diagnostics import name_of
    from defend.results.report import write_report

    there = read_records(out)
    if as_json:
        for record in records:
            click.echo(json.dumps(record, allow_nan=False))
    else:
        print_table(records, console(), [out], there)
    for path in write_report([out], records=records):
        click.echo(f"wrote {path}", err=True)
    if more := len(there) - len(records):
        click.echo(
            f"{more} cells of earlier commands lie in {out} too: `defend report {out}` shows all",
            err=True,
        )
    for record in records:
        if record["error"]:
            click.echo(
                f"failed: {name_of(record)}, before {record['classifier']}, eps {record['eps_text']}: {record['error']}",
                err=True,
            )
