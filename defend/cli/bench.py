"""defend bench: run a suite, print its table, write its report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from defend.cli.common import UserPath, data_root_option, device_option, make_console
from defend.cli.names import check_names
from defend.errors import DefendError, count_of

if TYPE_CHECKING:
    from defend.records import Record

# Each option replaces the suite's key that has the name of its parameter.
_SUITE_OPTIONS: list[Callable[[Any], Any]] = [
    click.option(
        "--task",
        metavar="SPEC",
        help="classification, identification, verification or reconstruction. Default: the first.",
    ),
    click.option("--dataset", metavar="SPEC", help="The data set."),
    click.option(
        "--split",
        metavar="test|val",
        help="Use val to choose recipes and thresholds, test for claims.",
    ),
    click.option(
        "--classifier",
        "classifiers",
        multiple=True,
        metavar="SPEC",
        help="A classifier. This option and the next five may be repeated.",
    ),
    click.option(
        "--defense",
        "defenses",
        multiple=True,
        metavar="SPEC",
        help="A defense as name:key=value,key=value; a chain is joined by '+'.",
    ),
    click.option(
        "--attack",
        "attacks",
        multiple=True,
        metavar="SPEC",
        help="An attack; eps=... in it is used instead of --eps.",
    ),
    click.option(
        "--knowledge",
        multiple=True,
        metavar="LEVEL",
        help="What the attacker knows: oblivious, transfer, query, adaptive, bpda, or all.",
    ),
    click.option(
        "--gradient",
        "gradients",
        multiple=True,
        metavar="G",
        help="The purifier's gradient in adaptive attacks: declared, identity, learned,"
        " autograd, or relaxed (:temperature=0.3; without it 0.1, 0.3 and 1).",
    ),
    click.option(
        "--surrogate",
        "surrogates",
        multiple=True,
        metavar="SPEC",
        help="A pipeline to transfer attacks from: C, or DEFENSE+C.",
    ),
    click.option(
        "--protocol",
        metavar="NAME",
        help="ladder-2: everything that a claim needs, or the weaker ladder-1; --attack adds"
        " attacks to it.",
    ),
    click.option(
        "--eps",
        metavar="LIST",
        help="0.1, 8/255, 0,8/255 or 0:0.3:0.02. Default: the claim eps of the data set.",
    ),
    click.option("-n", "--n", type=int, help="The number of images, from the first of the split."),
    click.option("--seed", type=int, help="The seed of attacks and of stochastic defenses."),
    click.option(
        "--draws", type=int, help="Purifications of each image that score a stochastic defense."
    ),
    click.option(
        "--eot", type=int, help="EOT copies that average the gradient of a stochastic defense."
    ),
]
# A protocol decides these keys of the embedded suite; n is then as large as a claim needs.
_DECIDED_BY_PROTOCOL = ("attacks", "eps", "eot", "n")


def _add_suite_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_SUITE_OPTIONS):
        command = option(command)
    return command


@click.command("bench")
@click.argument("suite", required=False, type=UserPath(), metavar="[SUITE.toml]")
@_add_suite_options
@device_option
@click.option(
    "--workers",
    type=int,
    help="The number of processes. Default: one for each core, or for each GPU.",
)
@data_root_option
@click.option(
    "--out",
    type=UserPath(),
    metavar="DIR",
    help="The run folder; results that are in it are not computed again. Default: runs/SUITE.",
)
@click.option(
    "--trust", is_flag=True, help="Run the files of code that SUITE.toml names, ./FILE.py:NAME."
)
@click.option(
    "--save-images",
    type=int,
    default=0,
    metavar="N",
    help="Keep the clean, adversarial and purified images of the first N of each cell, as PNG and"
    " safetensors in DIR/images.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one record per line as JSON, and no table."
)
def bench(
    suite: Path | None,
    device: str,
    workers: int | None,
    data_root: str | None,
    out: Path | None,
    trust: bool,
    save_images: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Run a suite, print its table and write its report.

    SUITE is a TOML file or the name of a suite that ships; without it, the embedded suite is run.
    Options replace the keys of the suite.
    """
    in_use = options_in_use(options)
    check_names(in_use)
    keys = suite_keys(suite, in_use, trust)
    from defend.benchmarks.run import available_images  # loads torch: after the options
    from defend.benchmarks.run import bench as run_bench
    from defend.benchmarks.suite import make_suite

    validated = make_suite(keys)
    if suite is None and "dataset" in in_use and "n" in keys.keys() - in_use.keys():
        keys["n"] = available_images(validated, data_root)
    out = out or Path("runs") / validated.name
    try:
        records = run_bench(
            keys,
            out=out,
            workers=workers,
            device=device,
            data_root=data_root,
            progress=True,
            save_images=save_images,
        )
    except KeyboardInterrupt:
        click.echo(
            f"finished units are stored in {out}; run the same command again to go on from there",
            err=True,
        )
        raise
    publish(records, out, as_json)
    if any(record.failed for record in records):
        click.get_current_context().exit(1)


def options_in_use(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the command line that have a value, tuples as lists."""
    in_use: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, tuple):
            value = list(value) or None
        if value is not None:
            in_use[key] = value
    return in_use


def suite_keys(
    suite: Path | None, overrides: dict[str, Any], trust: bool = False
) -> dict[str, Any]:
    """Return the keys of the suite, replaced by the overrides. Raises BadParameter."""
    from defend.benchmarks.suite import load_suite

    keys = load_suite(suite, trust)
    if suite is None and overrides:
        keys["name"] = "adhoc"
        for key in _outdated_keys(overrides):
            keys.pop(key, None)
        if "task" in overrides:
            keys = _keys_of_task(overrides["task"], keys)
    return {**keys, **overrides}


def _keys_of_task(task_spec: str, keys: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of the embedded suite with the attacks of a task, at the claim eps.

    Without the classifier if the task takes none. The embedded suite is of the default task, which
    changes nothing. Raises BadParameter, BadSpec.
    """
    from defend.tasks.registry import DEFAULT, load_task

    task = load_task(task_spec)
    if str(task) == DEFAULT:
        return keys
    other_keys = {k: v for k, v in keys.items() if k not in ("eps", "attacks")}
    if not task.needs_classifier:
        other_keys.pop("classifiers", None)
    return {**other_keys, "attacks": list(task.default_attacks)}


def _outdated_keys(overrides: dict[str, Any]) -> set[str]:
    """Return the keys of the embedded suite that were chosen for what the overrides replace."""
    outdated: set[str] = set()
    if "protocol" in overrides:
        outdated.update(_DECIDED_BY_PROTOCOL)
    if overrides.keys() & {"dataset", "attacks"}:
        outdated.add("eps")  # chosen for the data set and the norm; another pair has its claim eps
    if overrides.keys() & {"dataset", "classifiers", "defenses", "attacks"}:
        outdated.add("eot")  # half of the default, to take minutes on two cores: a weaker attack
    return outdated


def publish(records: Sequence[Record], out: Path, as_json: bool) -> None:
    """Write the report, print the records as a table or as JSON, name failed cells on stderr.

    Files come first, since nobody may be there to read the table. Raises DefendError if the report
    could not be written, after the table is printed.
    """
    from defend.records import read_records
    from defend.results import print_table

    all_records = read_records(out)
    error = _write_report(records, out)
    if as_json:
        for record in records:
            click.echo(record.to_json())
    else:
        print_table(records, make_console(), [out], all_records)
    n_earlier = len(all_records) - len(records)
    if n_earlier:
        click.echo(
            f"{out} also holds {count_of(n_earlier, 'cell')} of earlier commands; `defend report"
            f" {out}` shows all",
            err=True,
        )
    for record in records:
        if record.failed:
            click.echo(_describe_failure(record), err=True)
    if error is not None:
        raise error


def _write_report(records: Sequence[Record], out: Path) -> DefendError | None:
    """Write the report and name its files; return the error if that could not be done."""
    from defend.results.report import write_report

    try:
        paths = write_report([out], records=records)
    except DefendError as e:
        return e
    for path in paths:
        click.echo(f"wrote {path}", err=True)
    return None


def _describe_failure(record: Record) -> str:
    from defend.results.diagnostics import describe_cell

    return (
        f"failed: {describe_cell(record)}, before {record.classifier}, eps {record.eps_text}:"
        f" {record.error}"
    )
