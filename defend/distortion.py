"""How far images are from their references: MSE, PSNR and MS-SSIM for each image of a batch.

Pixels are in [0, 1]; a and b are batches (b, c, h, w), and every result is (b,).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from defend.errors import BadParameter

SMALLEST_MSE = 1e-10  # below it a difference counts as none: at most 100 dB, and no infinity
# Of MS-SSIM: Wang, Simoncelli, Bovik, Asilomar 2003, section 3.2; C1 and C2 of Wang et al., TIP 13
# (2004) 600, for pixels in [0, 1].
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2
MIN_SIDE = (WINDOW - 1) * 2 ** (len(WEIGHTS) - 1) + 1  # 161 pixels: one window at the last scale


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean squared error of each image."""
    return (a - b).square().flatten(1).mean(1)


def decibels(error: Tensor) -> Tensor:
    """Return -10 log10 of an error, at most 100: the PSNR, if it is an MSE of pixels in [0, 1]."""
    return -10 * error.clamp(min=SMALLEST_MSE).log10()


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image in dB; 100 where nothing differs."""
    return decibels(mse(a.double(), b.double()))


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return the multi-scale structural similarity of each image: 1 where nothing differs.

    Source: Wang, Simoncelli, Bovik, Asilomar 2003, eq. (7). Contrast and structure that disagree
    in sign count as 0. Raise BadParameter for images with a side below 161 pixels.
    """
    side = min(a.shape[-2:])
    if side < MIN_SIDE:
        raise BadParameter(
            f"MS-SSIM: expected images of at least {MIN_SIDE} pixels in height and width, got"
            f" {side}; use metric=mse"
        )
    similarity = torch.ones(len(a), a.shape[1], dtype=a.dtype, device=a.device)
    for scale, weight in enumerate(WEIGHTS):
        luminance, contrast = _ssim_terms(a, b)
        is_last = scale == len(WEIGHTS) - 1
        term = luminance * contrast if is_last else contrast
        similarity = similarity * _mean(term).clamp(min=0) ** weight
        if not is_last:
            a, b = _halve(a), _halve(b)
    return similarity.mean(1)


def _mean(values: Tensor) -> Tensor:
    """Return the mean of each channel: (b, c)."""
    return values.flatten(2).mean(2)


def _halve(x: Tensor) -> Tensor:
    """Return means over 2x2 pixels; an odd side is padded by zeros that are not counted."""
    padding = [side % 2 for side in x.shape[-2:]]
    return F.avg_pool2d(x, 2, padding=padding, count_include_pad=False)


def _ssim_terms(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return luminance l and contrast times structure cs at every place of the window."""
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return luminance, (2 * covariance + C2) / (var_a + var_b + C2)


def _blur(x: Tensor) -> Tensor:
    """Return Gaussian means over the window, without padding."""
    places = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - (WINDOW - 1) / 2
    weights = (-(places**2) / (2 * SIGMA**2)).exp()
    kernel = (weights / weights.sum()).expand(x.shape[1], 1, 1, -1)
    rows = F.conv2d(x, kernel, groups=x.shape[1])
    return F.conv2d(rows, kernel.transpose(2, 3), groups=x.shape[1])
