"""Turn the folder of a UNet2DModel of `diffusers` into weights of `two-stage` and `diffpure`.

    python docs/import_diffusers.py FOLDER DATASET OUT.safetensors
    python docs/import_diffusers.py FOLDER DATASET OUT.safetensors --trained-on clean

A folder can be used as it is, by weights=FOLDER. The file that this writes can also be shipped in a
zoo, where it is the default of DATASET, and it holds the mean colour of the training images of
DATASET, from which colorization may start. Nothing in the folder says what the network was trained
on: the file says "unknown", unless you know and declare it by --trained-on (clean, corrupted or
adversarial images). --command is what trained the network. Its layers must be those that the fields
of `two-stage` describe: down and up blocks, with or without attention, in heads of 8 channels.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from defend.dataset import Dataset
from defend.defenses.ddpm_recipe import DdpmRecipe
from defend.defenses.diffusion_prior import Prior, build_unet
from defend.defenses.diffusion_purifier import DiffusionPurifier
from defend.errors import BadWeights, DefendError, Mismatch
from defend.loading import dataset_name, load
from defend.spec import write_value
from defend.trained_on import TrainedOn
from defend.training.data import make_training_source
from defend.weights.header import Header, save_weights


def main() -> None:
    """Convert one folder."""
    parser = argparse.ArgumentParser(description="see the first lines of this file")
    parser.add_argument("folder")
    parser.add_argument("dataset", help="whose images the network draws, as cifar10")
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    kinds = ("unknown", "clean", "corrupted", "adversarial")
    parser.add_argument("--trained-on", choices=kinds, default="unknown")
    parser.add_argument("--command", default="none: imported", help="what trained the network")
    options = parser.parse_args()
    trained_on = TrainedOn(kind=options.trained_on)
    try:
        convert(options.folder, options.dataset, options.out, trained_on, options.command)
    except DefendError as e:
        sys.exit(f"Error: {e}")


def convert(
    folder: str,
    dataset: str,
    out: Path,
    trained_on: TrainedOn | None = None,
    command: str = "none: imported",
) -> None:
    """Write the weights file, of unknown training where `trained_on` is not declared.

    Raise BadWeights for a network of other layers, Mismatch for one of other channels than DATASET.
    """
    purifier: DiffusionPurifier = load(f"two-stage:weights={write_value(folder)}")
    check_layers(folder, purifier)
    data: Dataset = load(dataset, "dataset")
    check_channels(folder, purifier, dataset, data)
    prior: Any = purifier.net
    DdpmRecipe().initialise(prior, make_training_source(data))
    settings = {name: value for name, value in purifier.settings.items() if name != "weights"}
    header = Header(
        kind="defense",
        component=purifier.component,
        architecture=purifier.architecture,
        dataset=dataset_name(data),
        fields=settings,
        trained_on=trained_on or TrainedOn(kind="unknown"),
        command=command,
        seed=0,
        commit="",
        uses=tuple(sorted(purifier.uses)),
    )
    save_weights(out, {key: t.half() for key, t in prior.state_dict().items()}, header)
    print(f"wrote {out}")


def check_channels(folder: str, purifier: DiffusionPurifier, dataset: str, data: Dataset) -> None:
    """Raise Mismatch unless the network takes the channels of the data set's images."""
    if purifier.channels != data.channels:
        raise Mismatch(
            f"{folder}: the network takes {purifier.channels} channels, images of {dataset} have"
            f" {data.channels}; give the data set that the network was trained on"
        )


def check_layers(folder: str, purifier: DiffusionPurifier) -> None:
    """Raise BadWeights unless the fields describe the configuration of the network."""
    prior: Any = purifier.net
    assert isinstance(prior, Prior)
    fields = purifier.channels, purifier.size, purifier.blocks, purifier.layers
    own: Any = build_unet(*fields)
    for key, value in own.config.items():
        received = prior.unet.config.get(key)
        if key[0] != "_" and as_list(received) != as_list(value):
            raise BadWeights(
                f"{folder}: expected {key}={value}, as blocks={purifier.blocks} describes it, got"
                f" {received}; use the folder by weights=FOLDER"
            )


def as_list(value: Any) -> Any:
    """Return tuples as the lists that JSON has."""
    return list(value) if isinstance(value, tuple) else value


if __name__ == "__main__":
    main()
