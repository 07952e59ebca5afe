"""defend train: a component without weights in, a weights file out."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from defend.cli.common import component
from defend.errors import BadParameter
from defend.files import checkout, writable
from defend.spec import Spec, Value, parse_single, read, write

if TYPE_CHECKING:
    from torch import Tensor

    from defend.dataset import Dataset
    from defend.learned import Learned

USAGE = "defend train [KIND] SPEC --dataset D"
LOST = {
    "accuracy": 0.0,
    "PSNR": 0.01,
}  # what 16 bits may cost on val: nothing; 0.01 dB, 0.2 % of the squared error


@click.command("train")
@click.argument("words", nargs=-1, required=True, metavar="[KIND] SPEC")
@click.option("--dataset", required=True, metavar="SPEC", help="The data set to train on.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Default: COMPONENT-DATASET.safetensors here.",
)
@click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the recipe, as epochs=20; may be repeated.",
)
@click.option("--seed", type=int, help="The same as -o seed=...")
@click.option(
    "--float32", is_flag=True, help="Store 32 bits even where 16 give the same accuracy on val."
)
@click.option("--overwrite", is_flag=True, help="Replace FILE where it exists.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|cuda:1")
@click.option(
    "--data-root",
    metavar="DIR",
    help="Where data sets lie. Default: DEFEND_DATA, else the user's cache folder.",
)
def train(
    words: tuple[str, ...],
    dataset: str,
    out: Path | None,
    options: tuple[str, ...],
    seed: int | None,
    float32: bool,
    overwrite: bool,
    device: str,
    data_root: str | None,
) -> None:
    """Train a learned defense or a classifier: fields in SPEC, the recipe in -o. Interrupted, the same command goes on where it was."""
    kind, text = component(words, USAGE)
    spec, recipe = trainable(parse_single(text, kind), kind), recipe_of(options, seed)
    out = out or Path(
        f"{spec.name.replace('/', '-')}-{parse_single(dataset, 'dataset').name.replace('/', '-')}.safetensors"
    )
    writable(out.parent, "--out")
    if out.exists() and not overwrite:
        raise BadParameter(
            f"{out} exists, and training takes long: give another --out, or --overwrite"
        )
    from defend.load import load, pick_device  # loads torch: not before the options are read

    data: Dataset = load(dataset, "dataset", **({"root": data_root} if data_root else {}))
    learner: Learned = load((spec,), kind, dataset=data, device=pick_device(device))
    if kind == "classifier":
        learner.check_fits(data.channels, data.size, data.classes, dataset)  # type: ignore[attr-defined]
    resume = out.with_name(out.name + ".resume")
    val = data.rows("val", 0, data.count("val"))
    learner.fit(source_of(data), val=val, resume=resume, **recipe)
    stored = store(
        learner,
        val,
        out,
        header_of(
            learner, kind, data, command_line(kind, text, dataset, out, recipe, float32), recipe
        ),
        float32,
    )
    resume.unlink(missing_ok=True)
    click.echo(f"wrote {out}: {stored}, trained on {learner.trained_on}", err=True)


def trainable(spec: Spec, kind: str) -> Spec:
    """The spec without weights. Raises BadParameter where there is nothing to learn."""
    from defend.learned import Learned
    from defend.registry import REGISTRY

    make = REGISTRY.entry(kind, spec.name).load()  # type: ignore[arg-type]
    if not (isinstance(make, type) and issubclass(make, Learned)):
        raise BadParameter(
            f"{kind} '{spec.name}' has nothing to learn; `defend train` takes learned defenses and classifiers"
        )
    bare, weights = spec.without("weights")
    if weights not in (None, "untrained"):
        raise BadParameter(f"{spec}: training starts from nothing; leave weights={weights} out")
    return Spec(bare.name, (*bare.params, ("weights", "untrained")))


def recipe_of(options: tuple[str, ...], seed: int | None) -> dict[str, Value]:
    """Raises BadParameter."""
    recipe: dict[str, Value] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key.strip().isidentifier():
            raise BadParameter(f"-o {option}: expected KEY=VALUE, as -o epochs=20")
        if key.strip() in recipe:
            raise BadParameter(f"-o {key.strip()} is given twice")
        recipe[key.strip()] = read(value)
    if seed is not None and recipe.setdefault("seed", seed) != seed:
        raise BadParameter(f"--seed {seed} contradicts -o seed={recipe['seed']}: give one")
    return recipe


def source_of(data: Dataset) -> Any:
    from defend.training.data import training_source

    return training_source(data)


def command_line(
    kind: str, spec: str, dataset: str, out: Path, recipe: dict[str, Value], float32: bool
) -> str:
    """What to type to train the same; where data and results lie is left to whoever types it."""
    options = [word for key, value in recipe.items() for word in ("-o", f"{key}={write(value)}")]
    return shlex.join(
        [
            "defend",
            "train",
            kind,
            spec,
            "--dataset",
            dataset,
            "--out",
            out.name,
            *options,
            *["--float32"] * float32,
        ]
    )


def header_of(
    learner: Learned, kind: str, data: Dataset, command: str, recipe: dict[str, Value]
) -> Any:
    from defend.load import dataset_name
    from defend.weights import Header

    fields = {key: value for key, value in learner.settings.items() if key != "weights"}
    seed = recipe.get("seed", 0)
    commit, changed = checkout("defend") or ("", False)
    return Header(
        kind=kind,
        component=learner.component,
        dataset=dataset_name(data),
        fields=fields,
        trained_on=learner.trained_on,
        command=command,
        seed=seed if isinstance(seed, int) else 0,
        commit=commit + "+" * changed,
    )


def store(
    learner: Learned, val: tuple[Tensor, Tensor], out: Path, header: Any, float32: bool
) -> str:
    """Write the file, in float16 where that loses no more than `LOST` on validation images. Returns what was stored and its score."""
    from defend import weights
    from defend.training.quality import quality

    net = learner.net  # type: ignore[attr-defined]
    full = {name: t.detach().clone() for name, t in net.state_dict().items()}
    name, best = quality(learner, *val)
    half = {
        key: t.half() if t.dtype.itemsize == 4 and t.is_floating_point() else t
        for key, t in full.items()
    }
    net.load_state_dict(half)
    score = quality(learner, *val)[1]
    small = not float32 and score >= best - LOST[name]
    net.load_state_dict(half if small else full)
    weights.save(out, half if small else full, header)
    return f"{'float16' if small else 'float32'}, {name} {score if small else best:.4f} on {len(val[0])} images of val"
