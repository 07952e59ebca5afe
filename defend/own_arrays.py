"""Images and labels of the caller as a data set: the split `test` alone."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from defend.dataset import Dataset, DatasetCard, Split, check_images, check_labels, copy_pixels
from defend.errors import BadParameter, MissingData
from defend.losses import whole_labels

NAME = "data (x, y)"  # in messages


class OwnArrays(Dataset):
    """The arrays x (n, c, h, w), uint8 or floats in [0, 1], and whole labels y (n,).

    class_count: of which the labels may show only some. The arrays are copied. Raise BadParameter
    for other arrays.
    """

    card = DatasetCard(source="none: arrays of the caller", licence="the caller's", claim={})
    splits: ClassVar[tuple[Split, ...]] = ("test",)
    own_images = True
    _runtime = Dataset._runtime | {"x", "y"}
    x: Any
    y: Any
    class_count: int = 0  # 0: one more than the largest label

    def validate(self) -> None:
        """Check and copy the arrays. Raise BadParameter."""
        self.x = to_images(self.x)
        self.y = to_labels(self.y, len(self.x))
        largest = int(self.y.max()) if len(self.y) else 0
        self.class_count = self.class_count or max(2, largest + 1)
        self.require(largest < self.class_count, "class_count", f"more than the label {largest}")

    @property
    def component(self) -> str:
        """How messages name arrays of the caller."""
        return NAME

    @property
    def channels(self) -> int:
        """The number of channels, 1 or 3."""
        return int(self.x.shape[1])

    @property
    def size(self) -> int:
        """Height and width, in pixels."""
        return int(self.x.shape[2])

    @property
    def names(self) -> tuple[str, ...]:
        """The classes by number."""
        return tuple(map(str, range(self.class_count)))

    def count(self, split: Split) -> int:
        """Return the number of images. Raise MissingData for another split than test."""
        if split != "test":
            raise MissingData(
                f"{NAME}: expected no split but test, got {split}; give a Dataset for"
                " what is fitted on other images"
            )
        return len(self.x)

    def _rows(self, split: Split, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return self.x[start:stop].clone(), self.y[start:stop].clone()


def to_images(x: Any) -> Tensor:
    """Return images float32 (n, c, h, w) in [0, 1], a copy. Raise BadParameter for other arrays."""
    array = _to_array(x, "x")
    is_square = array.ndim == 4 and array.shape[2] == array.shape[3]
    if not is_square or array.shape[1] not in (1, 3):
        hint = ""
        if array.ndim == 4 and array.shape[3] in (1, 3):
            hint = "; channels come first: x.transpose(0, 3, 1, 2)"
        raise BadParameter(
            f"data x: expected square images (n, 1 or 3, h, w), got shape {array.shape}{hint}"
        )
    return copy_pixels(check_images(array, NAME))


def to_labels(y: Any, n: int) -> Tensor:
    """Return n labels int64 (n,), a copy. Raise BadParameter for other arrays."""
    array = _to_array(y, "y")
    whole_labels(torch.from_numpy(array))
    return check_labels(array, n, 0, NAME)


def _as_array(value: Tensor, name: str) -> np.ndarray:
    """Return the array of a tensor; numpy has no bfloat16. Raise BadParameter for what it lacks."""
    try:
        values = value.float() if value.dtype == torch.bfloat16 else value
        return values.detach().cpu().resolve_conj().numpy()
    except (TypeError, RuntimeError):
        raise BadParameter(f"data {name}: expected numbers, got {value.dtype}") from None


def _to_array(value: Any, name: str) -> np.ndarray:
    if isinstance(value, Tensor):
        value = _as_array(value, name)
    if not isinstance(value, np.ndarray):
        raise BadParameter(
            f"data {name}: expected an array or a tensor, got {type(value).__name__}"
        )
    if value.dtype.kind not in "biuf":
        raise BadParameter(f"data {name}: expected numbers, got {value.dtype}")
    return value
