"""A learned codec as a purifier: encode, round, decode.

Chen, Ma, "Towards Robust Neural Image Compression: Adversarial Attack and Model Finetuning", IEEE
TCSVT 33 (2023) 7842, arXiv:2112.08691: its attack is `codec-distortion`, its fine-tuning and
its self-ensemble are here. Training a codec through a frozen classifier is this project's own.

    y = g_a(x),  y_hat = round(y),  x_hat = g_s(y_hat)

Symbols: y is `encode`, y_hat is `quantise`, x_hat is `decode` of the networks. No entropy coder
runs: it returns y_hat unchanged, and `rate` is the length of an ideal one's code.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from defend.defenses.codec_views import (
    choose_views,
    code_best_view,
    pad_to_multiple,
    round_levels,
    run_codec,
    view,
)
from defend.defenses.compressai_codecs import CLASSES, build_codec
from defend.defenses.compressai_weights import find_weights_file, load_codec
from defend.defenses.robust_codec_recipe import RobustCodecRecipe
from defend.defenses.sizes import resize
from defend.defenses.small_codec import (
    GROUPS,
    Rounding,
    SmallCodec,
    round_straight_through,
)
from defend.errors import BadWeights
from defend.gradients import relax, soft_round
from defend.noise import Noise
from defend.purifier import Card, LearnedPurifier

WIDTHS = {"small": 96, **dict.fromkeys(CLASSES, 128)}  # CompressAI's, at low qualities
LATENTS = {"small": 48, **dict.fromkeys(CLASSES, 192), "cheng2020": 128}


class RobustCodec(LearnedPurifier):
    """Reconstruct x from rounded latents; images of any size are padded by reflection.

    The gradient is straight through the rounding, with a slope of 0.01 where the reconstruction is
    clamped to [0, 1]. The relaxation is `soft_round`; the unit of its temperature is one step.
    """

    card = Card(paper="arXiv:2112.08691", gradient="approximate", stochastic=False)
    any_layout = True
    recipe = RobustCodecRecipe
    architecture = "robust-codec"
    uses = frozenset({"self_ensemble", "bit_depth", "resize", "recompress"})
    model: Literal["small", "factorized", "hyperprior", "mean-scale", "cheng2020"] = "small"
    channels: int = 3
    width: int = 0  # channels; small: at half the resolution; 0: WIDTHS
    latents: int = 0  # channels of the latents; 0: LATENTS
    deep_width: int = 192  # small: channels below half the resolution
    halvings: int = 2  # small: of the resolution; latents have 1 / 2^halvings of it
    blocks: int = 2  # small: residual blocks at each resolution
    group_norm: bool = True  # small: false: pixels that are far away have no influence
    self_ensemble: bool = False  # the best of 8 flips and rotations by its own squared error
    bit_depth: int = 0  # bits of each pixel value before the codec; 0: as they are
    resize: float = 1.0  # height and width before the codec, in those of the image
    recompress: int = 1  # how often the codec is run

    def validate(self) -> None:
        """Raise BadParameter if a field is outside its range.

        Afterwards the card of this instance takes its own number of channels alone.
        """
        self.width = self.width or WIDTHS[self.model]
        self.latents = self.latents or LATENTS[self.model]
        self.require(self.width >= 1, "width", ">= 1")
        self.require(self.latents >= 1, "latents", ">= 1")
        if self.model == "small":
            self._validate_small()
        else:
            self.require(self.channels == 3, "channels", f"3 with model={self.model}")
        is_square = self.model != "cheng2020" or self.latents == self.width
        self.require(is_square, "latents", f"width={self.width} with model=cheng2020")
        self.require(0 <= self.bit_depth <= 8, "bit_depth", "1 to 8 bits, or 0 for none")
        self.require(0.1 <= self.resize <= 1, "resize", "a share of the size, 0.1 to 1")
        self.require(self.recompress >= 1, "recompress", ">= 1")
        self.card = replace(self.card, channels=(self.channels,))  # type: ignore[misc]

    def _validate_small(self) -> None:
        self.require(self.channels in (1, 3), "channels", "1 or 3")
        multiple = GROUPS if self.group_norm else 1
        wanted = f"a multiple of {multiple}" if multiple > 1 else ">= 1"
        for field in ("width", "deep_width"):
            value = getattr(self, field)
            self.require(value >= 1 and value % multiple == 0, field, wanted)
        self.require(1 <= self.halvings <= 6, "halvings", "1 to 6")
        self.require(self.blocks >= 1, "blocks", ">= 1")

    def _adopt(self) -> None:
        """Find the weights: a file of `defend train`, or of CompressAI for its models.

        Those of CompressAI are named by metric and quality, as in weights=mse-3, and lie in the
        user's cache, or they are the path of a checkpoint. Nothing is downloaded. Raise BadWeights,
        UnknownName or MissingPackage.
        """
        self.compressai_file: Path | None = None
        if self.model != "small":
            self.compressai_file = find_weights_file(self.model, self.weights)
        if self.compressai_file:
            self.file = None
        else:
            super()._adopt()

    def build(self) -> nn.Module:
        """Return the codec, with random weights unless they are CompressAI's."""
        if self.compressai_file:
            return self._load_compressai(self.compressai_file)
        if self.model != "small":
            return build_codec(self.model, self.width, self.latents)
        return SmallCodec(
            self.channels,
            self.width,
            self.deep_width,
            self.latents,
            self.halvings,
            self.blocks,
            self.group_norm,
        )

    def _load_compressai(self, path: Path) -> nn.Module:
        """Return the codec of a file, which decides its sizes. Raise BadWeights, MissingPackage."""
        codec = load_codec(self.model, path)
        for field, size in zip(("width", "latents"), codec.sizes, strict=True):
            if self._set_fields.get(field) and getattr(self, field) != size:
                raise BadWeights(
                    f"{path}: expected {field}={getattr(self, field)}, got {field}={size}; write"
                    f" that, or leave {field} out"
                )
            setattr(self, field, size)
        return codec

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        """Return the reconstruction of x (b, c, h, w)."""
        return self._reconstruct(x, round_straight_through)

    def relaxed(self, x: Tensor, noise: Noise, temperature: float) -> Tensor:
        """Return `purify` with the derivative of a smooth staircase in the place of rounding."""
        return self._reconstruct(x, lambda y: relax(soft_round(y, temperature), y.round()))

    @torch.no_grad()
    def rate(self, x: Tensor) -> Tensor:
        """Return the bits per pixel (b,) of images x (b, c, h, w), by the prior of the latents.

        With `recompress` they are those of the last code, with `self_ensemble` without the three
        bits that name the view. Raise Mismatch, BadParameter as `purified` does.
        """
        self._check_input(x)
        if not len(x):
            return x.new_empty(0)
        small = self._prepare(x, round_straight_through)
        for _ in range(self.recompress - 1):
            small = self._code(small, round_straight_through)
        bits: Tensor
        if self.self_ensemble:
            views = choose_views(lambda t: self._code_once(t, round_straight_through), small)
            parts = [self._bits(view(t[None], k)) for t, k in zip(small, views.tolist())]
            bits = torch.cat(parts)
        else:
            bits = self._bits(small)
        return bits / (x.shape[2] * x.shape[3])

    def _bits(self, x: Tensor) -> Any:
        codec: Any = self.net
        return codec.bits(codec.encode(pad_to_multiple(x, codec.multiple)))

    def _prepare(self, x: Tensor, rounding: Rounding) -> Tensor:
        """Return what the codec gets: x with fewer levels and in a smaller size, if asked."""
        sizes = [max(1, round(self.resize * side)) for side in x.shape[2:]]
        return resize(round_levels(x, self.bit_depth, rounding), *sizes)

    def _reconstruct(self, x: Tensor, rounding: Rounding) -> Tensor:
        small = self._prepare(x, rounding)
        for _ in range(self.recompress):
            small = self._code(small, rounding)
        return resize(small, *x.shape[2:])

    def _code(self, x: Tensor, rounding: Rounding) -> Tensor:
        """Return x coded once, by its best view with `self_ensemble`."""
        if self.self_ensemble:
            return code_best_view(lambda t: self._code_once(t, rounding), x)
        return self._code_once(x, rounding)

    def _code_once(self, x: Tensor, rounding: Rounding) -> Tensor:
        return run_codec(self.net, x, rounding)
