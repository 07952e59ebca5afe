"""Checks of the pixels that a purifier gets, and what becomes of pixels that are no numbers."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from defend.errors import BadParameter

SLACK = 0.01  # of the range, by which pixels may lie outside of clip_values without a warning


def check_range(name: str, x: Tensor, clip_values: tuple[float, float], warn: bool) -> bool:
    """Return True for pixels outside of clip_values, of which it warns if `warn`.

    name: the purifier. Raise BadParameter for pixels that are not finite.
    """
    if not x.numel() or not x.is_floating_point():
        return False
    low, high = (float(bound) for bound in x.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise BadParameter(f"{name}: expected finite pixels, got {low:g} to {high:g}")
    slack = SLACK * (clip_values[1] - clip_values[0])
    if clip_values[0] - slack <= low and high <= clip_values[1] + slack:
        return False
    if not warn:
        return True
    warnings.warn(
        f"{name}: pixels from {low:g} to {high:g}, and clip_values={tuple(clip_values)}: give the"
        " range that your images have",
        stacklevel=4,
    )
    return True


def keep_undefined(value: Tensor, x: Tensor) -> Tensor:
    """Return the purified images, with NaN for each image that had a pixel which is not finite.

    A quantiser, a median or a clamp would make an image of NaN look like any other.
    """
    if x.device.type == "cpu" and not is_recorded() and bool(x.isfinite().all()):
        return value  # without a copy; a GPU would have to be waited for
    is_undefined = ~x.isfinite().flatten(1).all(1)
    return torch.where(is_undefined.view(-1, *[1] * (x.ndim - 1)), torch.nan, value)


def is_recorded() -> bool:
    """Return True inside of torch.jit.trace and torch.export, which repeat what they saw."""
    is_traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return is_traced or torch.compiler.is_exporting()
