"""The base class of purifiers with a diffusion prior, which load each other's weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from defend.defenses.ddpm_recipe import DdpmRecipe
from defend.defenses.diffusion import predict_image
from defend.defenses.diffusion_prior import (
    Prior,
    build_unet,
    check_finite,
    describe_blocks,
    is_foreign,
    load_foreign,
    parse_blocks,
)
from defend.errors import BadWeights
from defend.learned import Frozen
from defend.purifier import LearnedPurifier


class DiffusionPurifier(LearnedPurifier):
    """Abstract base. The network is an unconditional UNet2DModel of `diffusers`.

    `weights` is a name of shipped weights, a file of `defend train`, the folder of a UNet2DModel,
    or its name on the hub. The fields here shape the network; of folders and names on the hub, the
    network decides them. Images of another size than the prior's are resized to it and back.
    """

    recipe = DdpmRecipe
    architecture = "ddpm"
    channels: int = 3
    size: int = 32  # height and width of the prior's images, in pixels
    blocks: str = "64-128a-128"  # channels of each level, from fine to coarse; a: with attention
    layers: int = 2  # residual blocks in each level
    max_batch: int = 64  # a step with its gradient takes about 100 MB for an image of 64x64

    def validate(self) -> None:
        """Raise BadParameter if a field that shapes the network is outside its range.

        Afterwards the card of this instance takes its own number of channels alone.
        """
        self.require(self.channels in (1, 3), "channels", "1 or 3")
        self.card = replace(self.card, channels=(self.channels,))  # type: ignore[misc]
        if self._foreign is not None:
            return
        self.require(self.layers >= 1, "layers", ">= 1")
        try:
            levels = len(parse_blocks(self.blocks))
        except ValueError:
            wanted = "multiples of 8 joined by '-', with an a for attention, as 64-96-128a"
            self.require(False, "blocks", wanted)
        halvings = 2 ** (levels - 1)
        self.require(
            self.size >= 1 and self.size % halvings == 0,
            "size",
            f"a multiple of {halvings} pixels, as blocks={self.blocks} halves them",
        )

    def build(self) -> nn.Module:
        """Return the prior: untrained, or filled from a folder or from the hub."""
        unet = self._foreign
        if unet is None:
            unet = build_unet(self.channels, self.size, self.blocks, self.layers)
        return Prior(unet, self.channels, self.size)

    def example(self, n: int = 6) -> Tensor:
        """Return n random images (n, c, size, size)."""
        generator = torch.Generator().manual_seed(7)
        return torch.rand(n, self.channels, self.size, self.size, generator=generator)

    def predict(self, x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Return the image x_0 in [-1, 1] and the noise e that the prior predicts of x_t."""
        e: Tensor = self.net(x_t, t)
        return predict_image(x_t, e, t), e

    def _adopt(self) -> None:
        """Find the weights, and adopt what they say. Raise BadWeights if they contradict a field.

        A network of another library is loaded here, since its configuration decides fields.
        """
        self._foreign: nn.Module | None = None
        if not is_foreign(self.weights):
            super()._adopt()
            return
        self.file = None
        self._foreign = load_foreign(self.weights)
        config: Any = self._foreign.config
        decided = {
            "channels": config.in_channels,
            "size": config.sample_size,
            "blocks": describe_blocks(config),
            "layers": config.layers_per_block,
        }
        for name, value in decided.items():
            if self._set_fields.get(name, value) != value:
                raise BadWeights(
                    f"{self.weights}: expected a network of {name}={self._set_fields[name]}, got"
                    f" {name}={value}; leave the field out, or give other weights"
                )
            setattr(self, name, value)

    def _build(self) -> Frozen:
        """Return the frozen network. Raise BadWeights unless all its weights are finite."""
        frozen = super()._build()
        self._foreign = None  # it is in the prior now
        check_finite(self.weights, frozen.net)
        return frozen
