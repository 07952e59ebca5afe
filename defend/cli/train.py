"""defend train: train a component without weights, and write a file of weights."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from defend.cli.common import UserPath, data_root_option, device_option, resolve_component
from defend.cli.zoo import default_option, licence_option, plan_addition, report_addition
from defend.errors import BadParameter
from defend.files import checkout, ensure_writable
from defend.registry import REGISTRY, Kind
from defend.spec import Spec, Value, parse_single, read_value, write_value
from defend.weights.additions import add_weights

if TYPE_CHECKING:
    from defend.dataset import Dataset
    from defend.learned import Learned
    from defend.weights.header import Header

USAGE = "defend train [KIND] SPEC --dataset D"


@click.command("train")
@click.argument("words", nargs=-1, required=True, metavar="[KIND] SPEC")
@click.option("--dataset", required=True, metavar="SPEC", help="The data set to train on.")
@click.option(
    "--out",
    type=UserPath(dir_okay=False),
    metavar="FILE",
    help="The file to write. Default: COMPONENT-DATASET.safetensors in this folder.",
)
@click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the recipe, as in epochs=20. May be repeated.",
)
@click.option("--seed", type=int, help="The same as -o seed=...")
@click.option(
    "--float32",
    is_flag=True,
    help="Store 32 bits even if 16 bits give the same quality on validation images.",
)
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@click.option(
    "--zoo",
    type=UserPath(),
    metavar="DIR",
    help="Add the weights to the zoo.toml in this folder of a package, as `defend zoo add` does.",
)
@licence_option
@default_option
@device_option
@data_root_option
def train(
    words: tuple[str, ...],
    dataset: str,
    out: Path | None,
    options: tuple[str, ...],
    seed: int | None,
    float32: bool,
    overwrite: bool,
    zoo: Path | None,
    licence: str,
    default: bool,
    device: str,
    data_root: str | None,
) -> None:
    """Train a learned defense or a classifier, and write its weights.

    SPEC has the fields of the component, -o the options of the recipe. If training is interrupted,
    run the same command again to go on from there.
    """
    kind, text = resolve_component(words, USAGE)
    recipe = parse_recipe(options, seed)
    spec = spec_to_train(parse_single(text, kind), kind, recipe.get("start"))
    out = out or (zoo or Path()) / default_path(spec, dataset)
    addition = None
    if zoo or licence or default:
        addition = plan_addition(zoo, out, licence, default, overwrite)
        addition.check(kind, component_name(kind, text), component_name("dataset", dataset))
    check_output(out, overwrite)
    from defend.loading import load, pick_device  # loads torch, so only after the options are read
    from defend.training.store import store_weights

    data: Dataset = load(dataset, "dataset", **({"root": data_root} if data_root else {}))
    learner: Learned = load((spec,), kind, dataset=data, device=pick_device(device))
    check_options(learner, recipe)
    val = data.rows("val", 0, data.count("val"))
    resume = out.with_name(out.name + ".resume")
    used_recipe = fit(learner, data, dataset, val=val, resume=resume, **recipe)
    command = reproducing_command(kind, text, dataset, out, recipe, float32)
    header = make_header(learner, kind, data, command, recipe)
    summary = store_weights(learner, val, out, header, float32, used_recipe)
    resume.unlink(missing_ok=True)
    click.echo(f"wrote {out}: {summary}, trained on {learner.trained_on[0]}", err=True)
    if addition:
        add_weights(out, addition)
        report_addition(addition)


def component_name(kind: Kind, spec: str) -> str:
    """Return the name that weights carry for the component of a spec. Raises UnknownName."""
    return REGISTRY.entry(kind, parse_single(spec, kind).name).component


def spec_to_train(spec: Spec, kind: Kind, start: Value | None) -> Spec:
    """Return the spec with weights=untrained, or with the weights that training starts from.

    Raises BadParameter if the component cannot be trained, or if the spec names weights.
    """
    from defend.learned import Learned

    component_type = REGISTRY.entry(kind, spec.name).load()
    if not (isinstance(component_type, type) and issubclass(component_type, Learned)):
        raise BadParameter(
            f"{kind} '{spec.name}' has nothing to learn; give a learned defense or a classifier"
        )
    bare, weights = spec.without("weights")
    if weights not in (None, "untrained"):
        raise BadParameter(
            f"{spec}: training starts without weights; leave weights={weights} out, or write"
            f" -o start={weights} to go on from them"
        )
    return Spec(bare.name, (*bare.params, ("weights", str(start or "untrained"))))


def check_options(learner: Learned, recipe: dict[str, Value]) -> None:
    """Raise BadParameter for a wrong option, before the images are loaded."""
    from defend.training.recipe import Recipe, read_recipe

    if isinstance(learner.recipe, type) and issubclass(learner.recipe, Recipe):
        read_recipe(learner.recipe, dict(recipe), learner.component)


def parse_recipe(options: tuple[str, ...], seed: int | None) -> dict[str, Value]:
    """Return the recipe from -o and --seed. Raises BadParameter."""
    recipe: dict[str, Value] = {}
    for option in options:
        text, equals, value = option.partition("=")
        key = text.strip()
        if not equals or not key.isidentifier():
            raise BadParameter(f"-o {option}: expected KEY=VALUE, as -o epochs=20")
        if key in recipe:
            raise BadParameter(f"-o {key} is given twice; leave one out")
        recipe[key] = read_value(value)
    if seed is not None and recipe.setdefault("seed", seed) != seed:
        raise BadParameter(f"--seed {seed} contradicts -o seed={recipe['seed']}; leave one out")
    return recipe


def default_path(spec: Spec, dataset: str) -> Path:
    """Return COMPONENT-DATASET.safetensors."""
    names = (spec.name, parse_single(dataset, "dataset").name)
    return Path("-".join(name.replace("/", "-") for name in names) + ".safetensors")


def check_output(out: Path, overwrite: bool) -> None:
    """Raise BadParameter if the file cannot be written, or exists and may not be replaced."""
    ensure_writable(out.parent, "--out")
    if out.exists() and not overwrite:
        raise BadParameter(
            f"{out} exists, and training takes long; give another --out, or --overwrite"
        )


def fit(learner: Learned, data: Dataset, dataset: str, **options: Any) -> Any:
    """Train on the training images, and return the recipe.

    Raises Mismatch if a classifier does not fit the data set.
    """
    from defend.classifier import Classifier
    from defend.training.data import make_training_source

    if isinstance(learner, Classifier):
        learner.check_fits(data.channels, data.size, data.classes, dataset)
    return learner.fit(make_training_source(data), **options)


def reproducing_command(
    kind: Kind, spec: str, dataset: str, out: Path, recipe: dict[str, Value], float32: bool
) -> str:
    """Return the command that trains the same weights.

    It leaves out where the data sets are and in which folder the result goes.
    """
    words = ["defend", "train", kind, spec, "--dataset", dataset, "--out", out.name]
    for key, value in recipe.items():
        words += ["-o", f"{key}={write_value(value)}"]
    if float32:
        words.append("--float32")
    return shlex.join(words)


def make_header(
    learner: Learned, kind: Kind, data: Dataset, command: str, recipe: dict[str, Value]
) -> Header:
    """Return the header of the weights: component, data set, training, and the code's commit."""
    from defend.loading import dataset_name
    from defend.weights.header import Header

    fields = {key: value for key, value in learner.settings.items() if key != "weights"}
    seed = recipe.get("seed", 0)
    return Header(
        kind=kind,
        component=learner.component,
        architecture=learner.architecture or learner.component,
        dataset=dataset_name(data),
        fields=fields,
        trained_on=learner.trained_on[0],
        started_from=learner.started_from,
        package=package_of(learner, kind),
        command=command,
        seed=seed if isinstance(seed, int) else 0,
        commit=_commit(),
        uses=tuple(sorted(learner.uses)),
    )


def package_of(learner: Learned, kind: Kind) -> str:
    """Return the distribution that registers the component, with its version."""
    entry = REGISTRY.entry(kind, learner.component)
    return f"{entry.dist} {entry.version}"


def _commit() -> str:
    """Return the commit of the package, with "+" if its files differ from it; "" if unknown."""
    source = checkout("defend")
    if source is None:
        return ""
    commit, changed = source
    return f"{commit}+" if changed else commit
