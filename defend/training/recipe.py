"""Recipes: how a component is trained. `recipe = MyRecipe` stands in the component's body.

A recipe is a class with fields, which are the options of a training, and a loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from defend.classifier import Classifier
from defend.errors import BadParameter
from defend.loading import load
from defend.noise import Noise
from defend.pairing import check_trained_for
from defend.purifier import Purifier
from defend.registry import Kind
from defend.spec import typed_params
from defend.trained_on import ITSELF, TrainedOn
from defend.training.data import Arrays, Batch, Source
from defend.training.fitting import fit_component
from defend.training.knowledge import add_earlier_files
from defend.training.objectives import Objective
from defend.training.options import LoopOptions
from defend.training.quality import (
    Advance,
    Quality,
    device_of,
    measure_quality,
    no_display,
    split_images,
)

R = TypeVar("R", bound=LoopOptions)
ARGUMENTS_OF_FIT = {"x", "y", "val", "resume", "save_every", "progress"}
VAL_BATCH = 256  # validation images measured together


class Recipe(LoopOptions):
    """Options of a component's training, and what is done with them.

    An author writes fields and `loss`. The other methods have defaults, and may be replaced.
    """

    start: str = ""  # name or path of weights of the same architecture to begin from
    val_images: int = 1000  # at most this many validation images are measured

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        taken = sorted(set(cls.__dataclass_fields__) & ARGUMENTS_OF_FIT)
        if taken:
            raise BadParameter(
                f"{cls.__name__}: expected other fields than {', '.join(taken)}, which `fit` takes"
                " itself; choose another name"
            )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.val_images >= 1, "val_images", ">= 1")
        self.advance: Advance = no_display

    # What an author writes.

    def loss(self, net: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """Return the mean loss of a batch x (b, c, h, w) in [0, 1] with labels y (b,).

        net: what `trainee` returned. All randomness comes from `noise`, or a resumed run would
        differ.
        """
        raise NotImplementedError(f"{type(self).__name__} has no loss(net, x, y, noise)")

    def objectives(self) -> Sequence[Objective]:
        """Return the losses, each with its parameters and an optimiser of its own."""
        return (Objective("loss", self.loss),)

    def trainee(self, component: Any) -> nn.Module:
        """Return the module that is trained, which holds the component's network.

        It may hold more, which exists in training only; torch's generator is seeded for it.
        Parameters that are frozen here stay as they are.
        """
        net: nn.Module = component.net
        return net

    def initialise(self, trainee: nn.Module, source: Source) -> None:
        """Set what depends on the images before a training that starts without weights."""

    def complete(self, trainee: nn.Module, source: Source) -> None:
        """Set what depends on the images and what weights of another library leave out."""

    def quality(self, component: Any, x: Tensor, y: Tensor) -> Quality:
        """Return what the training improves, measured on validation images x, y.

        By default the accuracy of a classifier, and the PSNR of a purifier, which is best for the
        identity.
        """
        return measure_quality(component, x, y, self.advance)

    @property
    def needs_labels(self) -> bool:
        """Return True if `fit` needs labels; otherwise missing ones are 0."""
        return False

    @property
    def trained_on(self) -> TrainedOn:
        """What the training knows. Classifiers of `load_frozen` are added to it."""
        return TrainedOn(kind="unknown")

    # What an author calls.

    def load_frozen(self, spec: str, component: Any, kind: Kind = "classifier") -> Any:
        """Return another component by its spec, frozen, beside the one that is trained.

        weights=auto means those for the data set of `component`. A classifier is recorded in
        `trained_on`, and of a defense the classifiers that its own training knew. The network of a
        classifier is `.network`. Raise DefendError.
        """
        other = load(spec, kind, component.dataset, device_of(component))
        self.note_loaded(kind, spec, other.weights_sha256)
        if isinstance(other, Classifier):
            channels = getattr(component, "channels", other.channels)
            size = getattr(component, "size", other.size)
            other.check_fits(channels, size, other.classes, component.dataset or "in training")
            if component.dataset:
                check_trained_for(other, component.dataset)
            self._note_classifiers(other.weights_sha256 or {spec: ""})
        elif isinstance(other, Purifier):
            for training in other.trained_on:
                known = {k: v for k, v in training.classifiers.items() if k != ITSELF}
                self._note_classifiers(known)
        return other

    def _note_classifiers(self, hashes: dict[str, str]) -> None:
        self.classifiers = add_earlier_files(hashes, self.classifiers)

    def note_loaded(self, kind: Kind, spec: str, hashes: dict[str, str]) -> None:
        """Note that a component takes part, by its files (name -> sha256).

        Raise BadParameter if an earlier part of this run had other files.
        """
        key = f"{kind} {spec}"
        if self.loaded.setdefault(key, hashes) != hashes:
            raise BadParameter(
                f"{key}: expected the files that this run began with ({self.loaded[key]}), got"
                f" {hashes}; put them back, or delete the resume file to start from step 0"
            )

    def batches(
        self, component: Any, x: Tensor, y: Tensor, size: int = VAL_BATCH
    ) -> Iterator[tuple[Tensor, Tensor, Noise]]:
        """Yield images, labels and noise for `quality`, on the device of the component.

        The progress bar counts the images.
        """
        return split_images(x, y, device_of(component), self.seed, size, self.advance)

    def make_source(self, component: Any, x: Tensor | Source, y: Tensor | None) -> Source:
        """Return the images of `fit` as a source. Raise BadParameter if labels are missing."""
        if not isinstance(x, Tensor):
            return x
        if y is None and not self.needs_labels:
            y = torch.zeros(len(x), dtype=torch.int64)
        if y is None or len(y) != len(x) or not len(x):
            labels = "none" if y is None else len(y)
            raise BadParameter(
                f"fit: expected images and as many labels, got {len(x)} images and {labels}; give"
                " fit(x, y) with one label for each image"
            )
        return Arrays(x, y)

    @classmethod
    def fit(
        cls,
        component: Any,
        x: Tensor | Source,
        y: Tensor | None,
        options: dict[str, Any],
        *,
        val: Batch | None,
        resume: Path | None,
        save_every: float,
        progress: bool,
    ) -> Self:
        """Train a component by these options, and return the recipe; see `Learned.fit`."""
        recipe = read_recipe(cls, options, component.component)
        source = recipe.make_source(component, x, y)
        fit_component(component, recipe, source, val, resume, save_every, progress)
        return recipe


def read_recipe(recipe_type: type[R], options: dict[str, Any], component: str) -> R:
    """Return the recipe of a component from its options.

    Raises BadParameter for an unknown option, naming near ones, and for a value of a wrong type or
    out of its range.
    """
    return recipe_type(**typed_params(recipe_type, options, f"the recipe of '{component}'"))
