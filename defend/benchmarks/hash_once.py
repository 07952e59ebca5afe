"""A hash that several units share."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from defend.hashing import tensor_sha256


class HashOnce:
    """The hash of one eps' adversarial images, which the units of all defenses share."""

    def __init__(self, images: Tensor) -> None:
        self._images = images

    @cached_property
    def value(self) -> str:
        """The sha256, computed by the writer's thread when the first unit is written."""
        return tensor_sha256(self._images)
