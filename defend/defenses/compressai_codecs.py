"""Codecs of CompressAI with the methods of `SmallCodec`: Begaint et al., arXiv:2011.03029.

    model         class               paper
    factorized    FactorizedPrior     Balle et al., arXiv:1802.01436
    hyperprior    ScaleHyperprior     the same
    mean-scale    MeanScaleHyperprior Minnen, Balle, Toderici, arXiv:1809.02736, without context
    cheng2020     Cheng2020Anchor     Cheng et al., arXiv:2001.01568

    z = h_a(y),  mu, sigma = h_s(round(z)),  y_hat = mu + round(y - mu)

In eval mode their own `forward` has a gradient of zero, and for cheng2020 another y_hat than their
decoder. Here y_hat is that of `decompress(compress(x))`, and no entropy coder runs. CompressAI is
an extra, which is imported when a network is built.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defend.defenses.small_codec import Rounding, clamp_with_leak, round_straight_through
from defend.weights.third_party import import_extra

EXTRA = "defend-purifiers[codec]"
CLASSES = {
    "factorized": "FactorizedPrior",
    "hyperprior": "ScaleHyperprior",
    "mean-scale": "MeanScaleHyperprior",
    "cheng2020": "Cheng2020Anchor",
}
KERNEL = 5  # of the context model of cheng2020


def import_compressai(module: str) -> ModuleType:
    """Return a module of CompressAI. Raise MissingPackage without the extra."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own dependencies warn of one another
        return import_extra(f"compressai.{module}", EXTRA)


class CompressAICodec(nn.Module):
    """Abstract: encode, round and decode by a network of CompressAI.

    Images are (b, 3, h, w), latents (b, m, h / 16, w / 16). Sides must be multiples of `multiple`.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net
        self.multiple = int(net.downsampling_factor)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return reconstructions in [0, 1] and the bits of each image (b,).

        In training mode uniform noise stands for the rounding, as CompressAI trains.
        """
        if self.training:
            output = self.net(x)
            bits = [count_bits(p) for p in output["likelihoods"].values()]
            return clamp_with_leak(output["x_hat"]), torch.stack(bits).sum(0)
        y = self.encode(x)
        y_hat = self.quantise(y, round_straight_through)
        return clamp_with_leak(self.decode(y_hat)), self.bits(y)

    @property
    def sizes(self) -> tuple[int, int]:
        """N and M of the papers: the width, and the channels of the latents."""
        return int(self.net.N), int(self.net.M)

    def encode(self, x: Tensor) -> Tensor:
        """Return latents y, not rounded."""
        y: Tensor = self.net.g_a(x)
        return y

    def quantise(self, y: Tensor, rounding: Rounding) -> Tensor:
        """Return mu + rounding(y - mu); mu has no gradient, which cancels straight through."""
        with torch.no_grad():
            means = self.means(y)
        return means + rounding(y - means)

    def decode(self, y_hat: Tensor) -> Tensor:
        """Return reconstructions, not clamped to [0, 1]."""
        x_hat: Tensor = self.net.g_s(y_hat)
        return x_hat

    def means(self, y: Tensor) -> Tensor:
        """Return mu, in the shape of y or one that broadcasts to it."""
        raise NotImplementedError

    def bits(self, y: Tensor) -> Tensor:
        """Return the bits (b,) of latents y under their prior."""
        raise NotImplementedError

    def auxiliary_loss(self) -> Tensor:
        """Return the loss of the quantiles, to which medians the latents are rounded."""
        loss: Tensor = self.net.aux_loss()
        return loss


class FactorizedCodec(CompressAICodec):
    """Latents with densities of their own, one for each channel; mu are their medians."""

    def means(self, y: Tensor) -> Tensor:
        medians: Tensor = self.net.entropy_bottleneck._get_medians()
        return medians.reshape(1, -1, 1, 1)

    def bits(self, y: Tensor) -> Tensor:
        return count_bits(self.net.entropy_bottleneck(y, training=False)[1])


class ScaleCodec(CompressAICodec):
    """Latents that are normal around 0; a hyperprior says their scales."""

    def means(self, y: Tensor) -> Tensor:
        return torch.zeros_like(y)

    def bits(self, y: Tensor) -> Tensor:
        scales, bits_of_z = self._hyperprior(y.abs())
        return bits_of_z + count_bits(self.net.gaussian_conditional(y, scales, training=False)[1])

    def _hyperprior(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return h_s(z_hat) and the bits (b,) of z_hat."""
        z_hat, probabilities = self.net.entropy_bottleneck(self.net.h_a(y), training=False)
        return self.net.h_s(z_hat), count_bits(probabilities)


class MeanCodec(ScaleCodec):
    """Latents whose means the hyperprior says, too."""

    def means(self, y: Tensor) -> Tensor:
        return self._hyperprior(y)[0].chunk(2, 1)[1]

    def bits(self, y: Tensor) -> Tensor:
        statistics, bits_of_z = self._hyperprior(y)
        scales, means = statistics.chunk(2, 1)
        return bits_of_z + self._normal_bits(y, scales, means)

    def _normal_bits(self, y: Tensor, scales: Tensor, means: Tensor) -> Tensor:
        output = self.net.gaussian_conditional(y, scales, means=means, training=False)
        return count_bits(output[1])


class ContextCodec(MeanCodec):
    """Latents whose means and scales also depend on those above and to the left."""

    def means(self, y: Tensor) -> Tensor:
        params, _ = self._hyperprior(y)
        margin = KERNEL // 2
        y_hat, means = F.pad(y, (margin,) * 4), torch.empty_like(y)
        windows = y_hat.unfold(2, KERNEL, 1).unfold(3, KERNEL, 1)  # (b, m, h, w, 5, 5), a view
        masked = self._masked_weight()
        for rows, columns in independent_places(y.shape[2], y.shape[3], y.device):
            context = F.conv2d(one_by_one(windows, rows, columns), masked, self._context_bias)
            of_places = one_by_one(params, rows, columns)[:, :, None, None]
            mean = self._statistics(of_places, context)[1]
            mean = mean[:, :, 0, 0].unflatten(0, (len(y), len(rows))).transpose(1, 2)
            center = y[:, :, rows, columns]
            means[:, :, rows, columns] = mean
            y_hat[:, :, rows + margin, columns + margin] = mean + (center - mean).round()
        return means

    def bits(self, y: Tensor) -> Tensor:
        y_hat = self.quantise(y, round_straight_through)
        params, bits_of_z = self._hyperprior(y)
        masked, bias = self._masked_weight(), self._context_bias
        context = F.conv2d(y_hat, masked, bias, padding=KERNEL // 2)
        scales, means = self._statistics(params, context)
        return bits_of_z + self._normal_bits(y, scales, means)

    @property
    def _context_bias(self) -> Tensor:
        bias: Tensor = self.net.context_prediction.bias
        return bias

    def _masked_weight(self) -> Tensor:
        """Return the weights of the context model, 0 for what the decoder does not know yet."""
        convolution = self.net.context_prediction
        weight: Tensor = convolution.weight * convolution.mask
        return weight

    def _statistics(self, params: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return scales and means."""
        scales, means = self.net.entropy_parameters(torch.cat((params, context), 1)).chunk(2, 1)
        return scales, means


WRAPPERS: dict[str, type[CompressAICodec]] = {
    "factorized": FactorizedCodec,
    "hyperprior": ScaleCodec,
    "mean-scale": MeanCodec,
    "cheng2020": ContextCodec,
}


def independent_places(
    height: int, width: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows and columns of latents that depend on earlier ones alone, and not on each other.

    The context of a latent reaches two columns to the right in the rows above, so that those of one
    value of column + 3 row are computed together.
    """
    step = KERNEL // 2 + 1
    for diagonal in range(width + step * (height - 1)):
        first = max(0, -(-(diagonal - width + 1) // step))
        rows = torch.arange(first, min(height - 1, diagonal // step) + 1, device=device)
        if len(rows):
            yield rows, diagonal - step * rows


def one_by_one(t: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the values (b * n, c, ...) of t (b, c, h, w, ...) at n places."""
    return t[:, :, rows, columns].transpose(1, 2).flatten(0, 1)


def count_bits(probabilities: Tensor) -> Tensor:
    """Return -log2 of probabilities (b, ...), summed over each image: (b,)."""
    return -probabilities.log2().flatten(1).sum(1)


def build_codec(model: str, width: int, latents: int) -> CompressAICodec:
    """Return an untrained codec of N = width, M = latents. Raise MissingPackage."""
    network = getattr(import_compressai("models"), CLASSES[model])
    sizes = (width,) if model == "cheng2020" else (width, latents)
    return WRAPPERS[model](network(*sizes))
