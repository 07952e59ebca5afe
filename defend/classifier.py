"""The base class of classifiers: a frozen network that gives logits for images in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, dataclass_transform

import torch
from torch import Tensor, nn

from defend.errors import Mismatch
from defend.folding import fold_batch_norms
from defend.learned import Frozen, Learned, set_layout
from defend.registry import Kind


@dataclass(frozen=True, kw_only=True)
class ClassifierCard:
    """The source of a classifier."""

    paper: str  # "arXiv:1605.07146", or "none: <reason>"
    licence: str  # of the code and of the weights that ship


@dataclass_transform(kw_only_default=True, eq_default=False)
@dataclass(kw_only=True, eq=False)
class Classifier(Learned):
    """Abstract base of classifiers.

    A subclass adds fields, a `card`, `build`, and a `recipe` to train by. Normalisation belongs
    inside the network.
    """

    kind: ClassVar[Kind] = "classifier"
    card: ClassVar[ClassifierCard]
    _runtime = frozenset({"dataset", "any_dataset"})

    channels: int = 3
    size: int = 32  # height and width, in pixels
    classes: int = 10
    any_dataset: bool = False  # True: weights for another data set are meant

    def __post_init__(self) -> None:
        self._adopt()
        self.require(self.channels in (1, 3), "channels", "1 or 3")
        self.require(self.size >= 1, "size", ">= 1")
        self.require(self.classes >= 2, "classes", ">= 2")
        self.validate()
        self.network: Frozen = self._build()
        self.network.label = self.component

    @property
    def net(self) -> nn.Module:
        """The network that `build` returned."""
        return self.network.net

    def move(self, device: str | torch.device) -> None:
        """Compute on this device from now on."""
        self.network.to(device)

    def run_as(self, precision: str, layout: str) -> None:
        """Prepare for many evaluations: fold the batch norms and set precision and layout.

        precision: "float32" or "bfloat16". layout: "contiguous", "channels_last" or "winograd".
        """
        device = next((p.device for p in self.net.parameters()), torch.device("cpu"))
        self.network.net = fold_batch_norms(self.net, self.example(2).to(device))
        self.network.precision = precision
        set_layout(self.network, layout)

    def example(self, n: int = 6) -> Tensor:
        """Return a legal batch of n images."""
        generator = torch.Generator().manual_seed(7)
        return torch.rand(n, self.channels, self.size, self.size, generator=generator)

    def check_fits(self, channels: int, size: int, classes: int, dataset: str) -> None:
        """Raise Mismatch if the data set has other channels, another size or other classes."""
        if (self.channels, self.size, self.classes) == (channels, size, classes):
            return
        raise Mismatch(
            f"classifier {self.component} takes {self.channels}x{self.size}x{self.size} images of"
            f" {self.classes} classes, data set {dataset} has {channels}x{size}x{size} of"
            f" {classes}; {self._advise(dataset)}"
        )

    def _advise(self, dataset: str) -> str:
        """Return what to do about a data set of another shape."""
        if self.recipe is None:
            return "choose another data set, or a network for these images and classes"
        return (
            "choose other weights, or train some: `defend train classifier ... --dataset"
            f" {dataset}`"
        )


class Normalise(nn.Module):
    """The first layer of a classifier: (x - mean) / std for each channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised images."""
        return (x - self.mean) / self.std
