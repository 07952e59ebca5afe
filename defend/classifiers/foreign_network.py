"""Classifiers whose networks other libraries make and describe: what they share."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defend.classifier import Classifier, Normalise
from defend.errors import BadWeights, MissingData, one_line
from defend.learned import Frozen
from defend.own_network import Logits
from defend.weights.third_party import MAX_ERROR


@dataclass(frozen=True, kw_only=True)
class Description:
    """A network, and what its library says of its images."""

    net: nn.Module  # from normalised images to logits, or to an object that holds them
    channels: int
    size: int  # height and width that it takes, in pixels
    classes: int
    mean: tuple[float, ...] = (0.0,)  # of pixels in [0, 1], of each channel or of all
    std: tuple[float, ...] = (1.0,)
    hashes: Mapping[str, str] = field(default_factory=dict)  # of what decides it: name -> sha256


class Resize(nn.Module):
    """Scale images to squares of `size` pixels, bilinearly with antialiasing. It has a gradient."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Return images (b, c, size, size)."""
        return F.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)


class ForeignNetwork(Classifier):
    """Abstract base. A subclass adds `describe`, which may load files and download them.

    Channels, classes and normalisation are those of the network. `size` is that of the images: if
    it is another than the network's, the images are scaled inside the network, so that an attack
    sees the pixels of the data set.
    """

    channels: int = 0  # 0: as the network has
    size: int = 0
    classes: int = 0

    @abstractmethod
    def describe(self) -> Description:
        """Return the network with its weights. Raise DefendError."""

    def build(self) -> nn.Module:
        """Return the network that `_adopt` described."""
        return self._whole

    def _adopt(self) -> None:
        """Load the network, and take its shape for fields that are 0. Raise DefendError."""
        self.file = None
        description = self.describe()
        for name in ("channels", "classes"):
            own = getattr(description, name)
            self.require(getattr(self, name) in (0, own), name, f"{own}, as the network has")
            setattr(self, name, own)
        self.size = self.size or description.size
        layers = [] if self.size == description.size else [Resize(description.size)]
        normalise = Normalise(description.mean, description.std)
        self._whole = nn.Sequential(*layers, normalise, Logits(description.net))
        self._hashes = dict(description.hashes)

    def _build(self) -> Frozen:
        """Return the frozen network, and name in records what it was loaded from."""
        frozen = super()._build()
        self._loaded = {**self._loaded, **self._hashes}
        del self._whole  # `network` holds it
        return frozen


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raise BadWeights if there is none."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise BadWeights(
            f"{path}: expected a JSON file beside the weights, got {type(e).__name__}; give the"
            " folder of a saved model"
        ) from None
    if not isinstance(values, dict):
        raise BadWeights(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values


def to_tuple(values: Any, channels: int, what: str) -> tuple[float, ...]:
    """Return one number for each channel. what: for messages. Raise BadWeights."""
    numbers = list(values) if isinstance(values, list | tuple) else [values]
    is_number = all(isinstance(v, int | float) for v in numbers)
    if not is_number or len(numbers) not in (1, channels):
        raise BadWeights(f"{what}: expected a number for each of {channels} channels, got {values}")
    return tuple(map(float, numbers * (channels if len(numbers) == 1 else 1)))


def call_library(make: Callable[[], Any], what: str) -> Any:
    """Return what a library makes, from a generator of its own.

    what: for messages. Raise MissingData for files that are absent and cannot be downloaded, and
    BadWeights for whatever else it raises.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return make()
    except OSError as e:  # of the hub and of files
        raise MissingData(
            f"{what}: its files are not in the cache and could not be downloaded"
            f" ({type(e).__name__}: {one_line(e)[:MAX_ERROR]}); give a local folder or file"
        ) from None
    except Exception as e:  # a library may raise anything
        raise BadWeights(
            f"{what}: cannot be made: {type(e).__name__}: {one_line(e)[:MAX_ERROR]}; check the name"
            " and the files"
        ) from None
