"""The training of classifiers: `fit = fit_classifier` in the body of a classifier's class."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defend.classifier import Classifier
from defend.errors import BadParameter
from defend.noise import Noise
from defend.purifier import Purifier
from defend.trained_on import ITSELF, TrainedOn
from defend.training.behind import STREAM, load_behind, purify_val, trained_behind
from defend.training.data import Arrays, Batch, Source, random_crop
from defend.training.loop import SAVE_EVERY, train
from defend.training.perturbations import attack_by_pgd
from defend.training.quality import accuracy
from defend.training.recipe import Recipe, read_recipe

# Random crops shift by up to 1 / CROP_DIVISOR of the image: by the usual 4 pixels on CIFAR-10.
CROP_DIVISOR = 8
# Adversarial training attacks this many validation images at the end of an epoch...
ATTACKED_VAL_IMAGES = 500
# ...in this many times as many steps as in training, because a network may learn to withstand
# exactly the attack that it is trained on (arXiv:2001.03994, section 5.4).
VAL_STEPS_FACTOR = 4


class ClassifierRecipe(Recipe):
    """Options of `fit_classifier`."""

    label_smoothing: float = 0.0
    augment: Literal["none", "crop", "crop-flip"] = "none"
    adversarial: float = 0.0  # eps of PGD on the network in training (arXiv:1706.06083); 0: none
    adversarial_norm: Literal["Linf", "L2"] = "Linf"
    adversarial_steps: int = 10
    behind: str = ""  # a defense, as in jpeg:quality=60, that purifies all images; "": none

    def validate(self) -> None:
        super().validate()
        self.require(0 <= self.label_smoothing < 1, "label_smoothing", "0 <= label_smoothing < 1")
        self.require(self.adversarial >= 0, "adversarial", "an eps >= 0")
        self.require(self.adversarial_steps >= 1, "adversarial_steps", ">= 1")
        alone = not (self.behind and self.adversarial)
        self.require(alone, "behind", "no defense beside adversarial, which attacks the network")

    @property
    def trained_on(self) -> TrainedOn:
        """Return what the training knows."""
        if not self.adversarial:
            return TrainedOn(kind="clean")
        return TrainedOn(
            kind="adversarial",
            attack=f"pgd-{self.adversarial_steps}",
            norm=self.adversarial_norm,
            eps=self.adversarial,
            classifiers={ITSELF: ""},
        )


def fit_classifier(
    self: Classifier,
    x: Tensor | Source,
    y: Tensor | None = None,
    *,
    val: Batch | None = None,
    resume: Path | None = None,
    save_every: float = SAVE_EVERY,
    progress: bool = True,
    **recipe: Any,
) -> None:
    """Train a classifier on images x (n, c, h, w) in [0, 1] with labels y (n,), or on a Source.

    val: images and labels whose accuracy is reported after each epoch, behind the defense if there
    is one. resume, save_every: see
    `defend.training.loop.train`. recipe: the fields of ClassifierRecipe. Raises BadParameter for
    unknown options, naming near ones, and for labels that the classifier does not have.
    """
    options = read_recipe(ClassifierRecipe, recipe, self.component)
    if y is not None and len(y) and int(y.max()) >= self.classes:
        raise BadParameter(
            f"fit: expected labels below classes={self.classes} of {self.component}, got"
            f" {int(y.max())}; leave the field classes out, or set it to the number of classes"
        )
    behind = load_behind(options.behind, self)
    if behind and val:
        val = purify_val(behind, val, options.seed)
    train(
        self.net,
        as_source(x, y),
        partial(_loss, recipe=options, behind=behind),
        options,
        partial(_val_accuracy, val=val, recipe=options) if val else None,
        resume,
        save_every,
        progress,
    )
    self.file, self.weights = None, "untrained"  # no file holds these weights yet
    self.fitted_on = options.trained_on
    if behind:
        self.fitted_on = trained_behind(options.trained_on, options.behind, behind)


def as_source(x: Tensor | Source, y: Tensor | None) -> Source:
    """Return images with their labels as a source. Raises BadParameter if labels are missing."""
    if not isinstance(x, Tensor):
        return x
    if y is None or len(y) != len(x) or not len(x):
        labels = "none" if y is None else len(y)
        raise BadParameter(
            f"fit: expected images and as many labels, got {len(x)} images and {labels}; give"
            " fit(x, y) with one label for each image"
        )
    return Arrays(x, y)


def _loss(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    noise: Noise,
    recipe: ClassifierRecipe,
    behind: Purifier | None,
) -> Tensor:
    if recipe.augment != "none":
        flip = recipe.augment == "crop-flip"
        x = random_crop(x, x.shape[-1] // CROP_DIVISOR, noise.fork("augment"), flip)
    if recipe.adversarial:
        x = _attack(net, x, y, recipe.adversarial_steps, noise.fork("attack"), recipe)
    if behind:
        x = behind.purified(x, noise.fork(STREAM))
    return F.cross_entropy(net(x).float(), y, label_smoothing=recipe.label_smoothing)


def _val_accuracy(net: nn.Module, val: Batch, recipe: ClassifierRecipe) -> float:
    """Return the accuracy on validation images, which adversarial training attacks."""
    x, y = val
    if recipe.adversarial:
        device = next(net.parameters()).device
        x, y = x[:ATTACKED_VAL_IMAGES].to(device), y[:ATTACKED_VAL_IMAGES].to(device)
        noise = Noise.of(recipe.seed, torch.arange(len(x), device=x.device)).fork("val")
        x = _attack(net, x, y, VAL_STEPS_FACTOR * recipe.adversarial_steps, noise, recipe)
    return accuracy(net, x, y)


def _attack(
    net: nn.Module, x: Tensor, y: Tensor, steps: int, noise: Noise, recipe: ClassifierRecipe
) -> Tensor:
    eps, norm = recipe.adversarial, recipe.adversarial_norm
    return attack_by_pgd(net, x, y, eps, norm, steps, noise)
