"""defend zoo: ship weights with a package, and measure what zoo.toml says about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from defend.cli.common import UserPath, data_root_option, device_option
from defend.errors import BadParameter, BadWeights, UnknownName, suggest_names
from defend.registry import Kind
from defend.spec import Spec, parse_single
from defend.weights.additions import (
    Addition,
    add_weights,
    check_registered,
    find_loader,
    is_installed,
    set_measured,
    zoo_folder_of,
)
from defend.weights.header import read_header
from defend.weights.rows import format_value
from defend.weights.zoo import GROUP, ZooEntry, read_folder, read_zoos

folder_option = click.option(
    "--package",
    "folder",
    type=UserPath(),
    metavar="DIR",
    help="The folder that holds zoo.toml. Default: that of the component's package.",
)
licence_option = click.option(
    "--licence", default="", metavar="NAME", help="The licence of the weights, as in MIT."
)
default_option = click.option(
    "--default", is_flag=True, help="Load these weights where a spec names none (weights=auto)."
)


@click.group("zoo", invoke_without_command=True)
@click.pass_context
def zoo(ctx: click.Context) -> None:
    """Ship weights with a package.

    A package lists its weights in a zoo.toml. These commands write it.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@zoo.command("add", short_help="Copy FILE into a package, and write its row of zoo.toml.")
@click.argument("file", type=UserPath())
@click.option("--name", metavar="NAME", help="Default: the name of FILE without its ending.")
@licence_option
@default_option
@click.option("--surrogate", is_flag=True, help="Retrained weights, for transfer attacks alone.")
@click.option("--overwrite", is_flag=True, help="Replace the row and the file of that name.")
@folder_option
def add(
    file: Path,
    name: str | None,
    licence: str,
    default: bool,
    surrogate: bool,
    overwrite: bool,
    folder: Path | None,
) -> None:
    """Copy a weights file into a package, and write its row of zoo.toml.

    The row comes from the header of FILE, which `defend train` wrote.
    """
    header = read_header(file)
    check_registered(file, header)
    addition = Addition(
        folder=folder or zoo_folder_of(header),
        name=name or file.stem,
        licence=licence,
        default=default,
        surrogate=surrogate,
        replace=overwrite,
    )
    add_weights(file, addition)
    report_addition(addition)


def plan_addition(
    folder: Path | None, out: Path, licence: str, default: bool, overwrite: bool
) -> Addition:
    """Return the addition of a file that is trained next. Raises BadParameter without a folder."""
    if folder is None:
        raise BadParameter(
            "--licence and --default belong to a zoo, got no --zoo; name the folder of a package "
            "with --zoo DIR"
        )
    return Addition(
        folder=folder, name=out.stem, licence=licence, default=default, replace=overwrite
    )


def report_addition(addition: Addition) -> None:
    """Print what was added, and what a package needs before the row is read."""
    entry = read_folder(addition.folder, "")[addition.name]
    use = f"the {entry.kind} {entry.component} on {entry.dataset}"
    role = f"the default of {use}" if entry.default else f"for {use}, as weights={entry.name}"
    click.echo(f"added {entry.name} to {addition.folder / 'zoo.toml'}: {role}", err=True)
    if not is_installed(addition.folder):
        click.echo(
            f"note: no installed package names {addition.folder} as a folder of weights, so that "
            f"it is not read. Its pyproject.toml needs an entry point of the group {GROUP}, and "
            "*.toml and *.safetensors in its package data; then install it again.",
            err=True,
        )


@zoo.command("measure", short_help="Measure weights on the test split, and write the numbers.")
@click.argument("name")
@click.option("--classifier", metavar="SPEC", help="The classifier behind which a defense is.")
@click.option("--n", type=int, metavar="N", help="The first N images of test. Default: all.")
@folder_option
@device_option
@data_root_option
def measure(
    name: str,
    classifier: str | None,
    n: int | None,
    folder: Path | None,
    device: str,
    data_root: str | None,
) -> None:
    """Measure weights on the test split, and write the numbers into their row of zoo.toml.

    For a classifier the accuracy on clean images. For a defense the PSNR in dB of purified clean
    images, and the accuracy of --classifier behind it. Other numbers of the row stay. A data set
    that scales its images gives them in the size of the weights.
    """
    entry = find_entry(name, folder)
    if entry.kind == "defense" and classifier is None:
        raise BadParameter(
            f"expected a classifier whose accuracy behind {name} is measured, got none; give "
            f"--classifier, as in --classifier {suggest_classifier(entry.dataset)}"
        )
    if entry.kind == "classifier" and classifier is not None:
        raise BadParameter(f"--classifier: {name} is a classifier itself; leave the option out")
    kind, spec = what_to_load(entry)
    from defend.loading import load, pick_device, takes_size
    from defend.training.measuring import (
        measure_component,  # loads torch, after the options are read
    )

    options: dict[str, Any] = {"root": data_root} if data_root else {}
    data_spec = parse_single(entry.dataset, "dataset")
    if "size" in entry.fields and "size" not in dict(data_spec.params) and takes_size(data_spec):
        options["size"] = entry.fields["size"]
    data = load(data_spec, "dataset", **options)
    target = pick_device(device)
    component = load(spec, kind, data, target)
    component.run_as("float32", "contiguous")  # so that a number depends on no timing
    judge = load(classifier, "classifier", data, target) if classifier else None
    measured = measure_component(component, judge, data, n)
    set_measured(entry, measured)
    click.echo(f"{name}: measured {format_value(measured)}", err=True)


def find_entry(name: str, folder: Path | None) -> ZooEntry:
    """Return the row of that name: in this folder, or in any installed package.

    Raises UnknownName.
    """
    entries = read_folder(folder, "") if folder else read_zoos()
    if name not in entries:
        place = f" in {folder / 'zoo.toml'}" if folder else ""
        raise UnknownName(
            f"unknown weights '{name}'{place}.{suggest_names(name, entries)}"
            " `defend list weights` shows those of installed packages."
        )
    return entries[name]


def what_to_load(entry: ZooEntry) -> tuple[Kind, Spec]:
    """Return the kind and the spec that load the file of a row.

    Raises BadWeights if no component does.
    """
    check_registered(entry.file, read_header(entry.file))
    loader = find_loader(entry.kind, entry.component, entry.architecture)
    if loader is None:
        raise BadWeights(
            f"{entry.name}: expected the {entry.kind} of the file's header in its row, got "
            f"'{entry.component}'; add the file again with `defend zoo add`"
        )
    return loader.kind, Spec(loader.full_name, (("weights", str(entry.file)),))


def suggest_classifier(dataset: str) -> str:
    """Return the spec of a classifier that ships for a data set."""
    entries = read_zoos().values()
    names = [e.component for e in entries if (e.kind, e.dataset) == ("classifier", dataset)]
    return names[0] if names else "convnet:weights=FILE"
