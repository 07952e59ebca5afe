"""Turn the folder of a UNet2DModel of `diffusers` into weights of `two-stage` and `diffpure`.

    python docs/import_diffusers.py FOLDER DATASET OUT.safetensors [COMMAND]

A folder can be used as it is, by weights=FOLDER. The file that this writes also says what the
network was trained on, holds the mean colour of the training images of DATASET, from which
colorization may start, and can be shipped in a zoo. COMMAND is what trained the network. Its
layers must be those that the fields of `two-stage` describe: down and up blocks, with or without
attention, in heads of 8 channels.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from defend.defenses.ddpm_recipe import DdpmRecipe
from defend.defenses.diffusion_prior import Prior, build_unet
from defend.defenses.diffusion_purifier import DiffusionPurifier
from defend.errors import BadWeights, DefendError
from defend.loading import dataset_name, load
from defend.trained_on import TrainedOn
from defend.training.data import make_training_source
from defend.weights.header import Header, save_weights


def main() -> None:
    """Convert one folder."""
    if len(sys.argv) not in (4, 5):
        sys.exit("usage: python docs/import_diffusers.py FOLDER DATASET OUT.safetensors [COMMAND]")
    folder, dataset, out = sys.argv[1:4]
    try:
        convert(folder, dataset, Path(out), *sys.argv[4:])
    except DefendError as e:
        sys.exit(f"Error: {e}")


def convert(folder: str, dataset: str, out: Path, command: str = "none: imported") -> None:
    """Write the weights file. Raise BadWeights for a network of other layers."""
    purifier: DiffusionPurifier = load(f"two-stage:weights={folder}")
    check_layers(folder, purifier)
    data = load(dataset, "dataset")
    source = make_training_source(data)
    prior: Any = purifier.net
    DdpmRecipe().initialise(prior, source)
    settings = {name: value for name, value in purifier.settings.items() if name != "weights"}
    header = Header(
        kind="defense",
        component=purifier.component,
        architecture=purifier.architecture,
        dataset=dataset_name(data),
        fields=settings,
        trained_on=TrainedOn(kind="clean"),
        command=command,
        seed=0,
        commit="",
        uses=tuple(sorted(purifier.uses)),
    )
    save_weights(out, {key: t.half() for key, t in prior.state_dict().items()}, header)
    print(f"wrote {out}")


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
