"""The network of a diffusion prior: a UNet2DModel of `diffusers`, ours or one of another library.

`diffusers` is an extra, imported when a network is built.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from defend.defenses.diffusion import FIRST_BETA, LAST_BETA, TIMESTEPS
from defend.errors import BadWeights, one_line
from defend.files import user_path
from defend.weights.third_party import find_in_cache, import_extra, load_pretrained
from defend.weights.zoo import read_zoos

EXTRA = "defend-purifiers[diffusion]"
HEAD = 8  # channels of a head of attention; each level has a multiple of them
MAX_GROUPS = 32  # of a group norm
GREY = 0.5
SCHEDULER = "scheduler_config.json"
PROCESS = {  # what the configuration of a scheduler has to say
    "num_train_timesteps": TIMESTEPS,
    "beta_start": FIRST_BETA,
    "beta_end": LAST_BETA,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}
_LEVEL = re.compile(r"([1-9]\d*)(a?)")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_OTHER_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


class Prior(nn.Module):
    """A network that predicts the noise in images, with the mean colour of its training images."""

    mean: Tensor

    def __init__(self, unet: nn.Module, channels: int, size: int) -> None:
        super().__init__()
        self.unet = unet
        self.channels = channels
        self.size = size  # height and width in pixels
        self.register_buffer("mean", torch.full((channels,), GREY))  # pixels in [0, 1]

    def forward(self, x_t: Tensor, t: int | Tensor) -> Tensor:
        """Return the noise e in x_t (b, c, size, size), in its dtype.

        t: one timestep, or one for each image (b,). Networks that also predict a variance put it
        behind the channels of the noise.
        """
        e: Tensor = self.unet(x_t, t).sample[:, : self.channels]
        return e.to(x_t.dtype)


def parse_blocks(text: str) -> list[tuple[int, bool]]:
    """Return the channels of each level and whether it has attention, of "64-96-128a-160a".

    Raise ValueError for another text, and for channels that are no multiple of a head's.
    """
    levels = [_LEVEL.fullmatch(level) for level in text.split("-")]
    blocks = [(int(level[1]), bool(level[2])) for level in levels if level]
    if len(blocks) != len(levels) or any(width % HEAD for width, _ in blocks):
        raise ValueError(text)
    return blocks


def build_unet(channels: int, size: int, blocks: str, layers: int) -> nn.Module:
    """Return an untrained UNet2DModel. Raise MissingPackage without `diffusers`."""
    diffusers = import_extra("diffusers", EXTRA)
    levels = parse_blocks(blocks)
    widths = [width for width, _ in levels]
    down = ["AttnDownBlock2D" if attention else "DownBlock2D" for _, attention in levels]
    up = ["AttnUpBlock2D" if attention else "UpBlock2D" for _, attention in reversed(levels)]
    unet: nn.Module = diffusers.UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(widths),
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        layers_per_block=layers,
        attention_head_dim=HEAD,
        norm_num_groups=math.gcd(MAX_GROUPS, *widths),
    )
    return unet


def is_foreign(weights: str) -> bool:
    """Return True for a local folder, or for a name on the hub that is no file and in no zoo."""
    if weights in ("auto", "untrained", *read_zoos()):
        return False
    path = user_path(weights)
    if path.is_dir():
        return True
    is_name = _HUB_NAME.fullmatch(weights) and path.suffix not in _OTHER_FILES
    return bool(is_name) and not path.exists()


def load_foreign(source: str) -> nn.Module:
    """Return the UNet2DModel of a local folder, or of a name on the hub.

    A folder of a pipeline has its network in the folder `unet`. Raise BadWeights, MissingPackage.
    """
    diffusers = import_extra("diffusers", EXTRA)
    folder = user_path(source)
    options = {"subfolder": "unet"} if (folder / "unet").is_dir() else {}
    unet = load_pretrained(diffusers.UNet2DModel, source, **options)
    check_config(source, unet.config)
    check_scheduler(source, folder if folder.is_dir() else find_in_cache(source, {}))
    return unet.float()


def check_config(source: str, config: Any) -> None:
    """Raise BadWeights unless the network is unconditional, with positional times and one size."""
    if config.time_embedding_type != "positional":
        raise BadWeights(
            f"{source}: expected a model of time_embedding_type=positional, got"
            f" {config.time_embedding_type}; give another model"
        )
    conditioned = config.class_embed_type or config.num_class_embeds
    if conditioned or not isinstance(config.sample_size, int):
        received = "one of classes" if conditioned else f"sample_size={config.sample_size}"
        raise BadWeights(
            f"{source}: expected an unconditional UNet2DModel with a sample_size, got {received};"
            " give another model"
        )


def check_scheduler(source: str, folder: Path | None) -> None:
    """Raise BadWeights if a folder says that its network was trained by another process.

    Folders of diffusers say so in the configuration of a scheduler: beside the network, or in the
    folder `scheduler` of its pipeline. Warn if there is none, as nobody knows then.
    """
    places = [folder / SCHEDULER, folder / "scheduler" / SCHEDULER] if folder else []
    if folder and folder.name == "unet":
        places.append(folder.parent / "scheduler" / SCHEDULER)
    if folder:
        places.append(folder / "unet" / SCHEDULER)
    configurations = [path for path in places if path.is_file()]
    for path in configurations:
        check_process(path)
    if not configurations:
        warnings.warn(
            f"{source}: no {SCHEDULER} says how this network was trained; expected to be noise"
            " prediction of 1000 timesteps with linear betas from 1e-4 to .02",
            stacklevel=2,
        )


def check_process(path: Path) -> None:
    """Raise BadWeights if the configuration of a scheduler is damaged, or of another process."""
    try:
        values = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as e:
        raise BadWeights(
            f"{path}: expected a JSON object, got {one_line(e)}; download the file again"
        ) from None
    for key, expected in PROCESS.items():
        received = values.get(key, expected)
        if received != expected:
            raise BadWeights(
                f"{path}: expected a model of {key}={expected}, got {key}={received};"
                " give another model"
            )


def describe_blocks(config: Any) -> str:
    """Return the text of `parse_blocks` that is nearest to the configuration of a network."""
    pairs = zip(config.block_out_channels, config.down_block_types, strict=True)
    return "-".join(f"{width}{'a' if 'Attn' in kind else ''}" for width, kind in pairs)


def check_finite(name: str, net: nn.Module) -> None:
    """Raise BadWeights if a tensor of the network holds NaN or infinite numbers."""
    for key, tensor in net.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise BadWeights(
                f"{name}: expected finite weights, got NaN or infinity in {key}; the file is"
                " damaged, or its training diverged: give other weights"
            )
