"""Checks of the pixels that a purifier gets, and what becomes of pixels that are no numbers."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from defend.errors import BadParameter, Mismatch, one_line

SLACK = 0.01  # of the range, by which pixels may lie outside of clip_values without a warning


def read_range(name: str, clip_values: Any) -> tuple[float, float]:
    """Return clip_values as two numbers of Python; arrays of one value each, as ART takes, too.

    name: the purifier. Raise BadParameter unless they are finite, and low < high.
    """
    label = f"{name}(clip_values={one_line(clip_values)})"
    try:
        low, high = (_only_value(bound) for bound in clip_values)
    except (TypeError, ValueError):
        raise BadParameter(
            f"{label}: expected (low, high), the same for all channels, as (0, 255)"
        ) from None
    if not (math.isfinite(low) and math.isfinite(high)):
        raise BadParameter(
            f"{label}: expected (low, high) with finite numbers, as pixels are scaled from them to"
            " [0, 1]; give the range of your images"
        )
    if not low < high:
        raise BadParameter(f"{label}: expected (low, high) with low < high")
    return low, high


def _only_value(bound: Any) -> float:
    """Return the one value of a number or an array. Raise ValueError if there are several."""
    values = np.unique(np.asarray(bound, dtype=float))
    return float(values.item())


def check_array(name: str, x: Any) -> None:
    """Raise BadParameter unless x is a numpy array of real images, as ART gives to `__call__`."""
    if isinstance(x, Tensor):
        raise BadParameter(
            f"{name}: expected a numpy array, as ART gives, got a Tensor; call"
            " purifier.purified(x), which keeps device and gradient, or purifier.as_module()"
        )
    if not isinstance(x, np.ndarray):
        raise BadParameter(f"{name}: expected a numpy array, got {type(x).__name__}")


def check_batch(name: str, x: Tensor, channels: tuple[int, ...], channels_first: bool) -> None:
    """Raise BadParameter, Mismatch for a batch that is not (b, c, h, w) of floats and of these
    channels.

    name: the purifier. channels_first: the layout that the caller of `__call__` declares.
    """
    if x.ndim != 4 or not x.is_floating_point():
        hint = ""
        if not x.is_floating_point():
            hint = "; divide 8 bits by 255, or give clip_values=(0, 255) and x.astype(np.float32)"
        elif x.ndim == 3:
            hint = "; one image is a batch of one, x[None]"
        raise BadParameter(
            f"{name}: expected a float (b, c, h, w) batch, got {x.dtype} {tuple(x.shape)}{hint}"
        )
    if x.shape[1] in channels:
        return
    hint = ""
    if channels_first and x.shape[3] in channels:
        hint = "; load it with channels_first=False if your images are (b, h, w, c)"
    if not channels_first and x.shape[2] in channels:  # (b, c, h, w) as (b, w, c, h)
        hint = "; leave channels_first=False out if your images are (b, c, h, w)"
    expected = " or ".join(map(str, channels))
    raise Mismatch(
        f"{name}: takes images of {expected} channels, got {x.shape[1]} in {tuple(x.shape)}{hint}"
    )


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
