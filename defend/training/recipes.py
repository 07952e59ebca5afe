"""How classifiers are trained: `fit = fit_classifier` in the class body of one."""

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
from defend.training import perturb
from defend.training.data import Arrays, Batch, Source, crop
from defend.training.loop import SAVE_EVERY, train
from defend.training.quality import accuracy
from defend.training.recipe import Recipe, read_recipe

PAD = 8  # random crops shift by up to an eighth of the image: 4 pixels of CIFAR-10's 32, as is usual there
ROBUST_VAL = (
    500  # validation images that are attacked at the end of an epoch of adversarial training
)
FINER = 4  # times as many steps as in training: a network may learn to withstand those alone (arXiv:2001.03994, section 5.4)


class ClassifierRecipe(Recipe):
    label_smoothing: float = 0.0
    augment: Literal["none", "crop", "crop-flip"] = "none"
    adversarial: float = (
        0.0  # eps of PGD on the network in training, arXiv:1706.06083; 0: clean images
    )
    adversarial_norm: Literal["Linf", "L2"] = "Linf"
    adversarial_steps: int = 10

    def validate(self) -> None:
        super().validate()
        self.require(0 <= self.label_smoothing < 1, "label_smoothing", "0 <= label_smoothing < 1")
        self.require(self.adversarial >= 0, "adversarial", "an eps >= 0")
        self.require(self.adversarial_steps >= 1, "adversarial_steps", ">= 1")


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
    """Train on images x (n, c, h, w) in [0, 1] with labels y (n,), or on a Source; `recipe`: fields of ClassifierRecipe.

    val: images and labels whose accuracy is reported after each epoch. resume: see `defend.training.loop.train`.
    Raises BadParameter for unknown options, with near names.
    """
    options = read_recipe(ClassifierRecipe, recipe, self.component)
    if y is not None and len(y) and int(y.max()) >= self.classes:
        raise BadParameter(
            f"fit: labels go up to {int(y.max())}, {self.component} has classes={self.classes}; leave the field out or give the right one"
        )
    source = as_source(x, y)
    score = partial(_score, val=val, recipe=options) if val else None
    train(
        self.net,
        source,
        partial(_loss, recipe=options),
        options,
        score,
        resume,
        save_every,
        progress,
    )
    self.file, self.weights = None, "untrained"  # no file holds these weights yet
    attack = f"pgd-{options.adversarial_steps}, {options.adversarial_norm} {options.adversarial:g}, itself"
    self.fitted_on = f"adversarial({attack})" if options.adversarial else "clean"


def as_source(x: Tensor | Source, y: Tensor | None) -> Source:
    """Raises BadParameter where images have no labels."""
    if not isinstance(x, Tensor):
        return x
    if y is None or len(y) != len(x) or not len(x):
        raise BadParameter(
            f"fit: expected images with as many labels, got {len(x)} images and {'none' if y is None else len(y)}"
        )
    return Arrays(x, y)


def _loss(net: nn.Module, x: Tensor, y: Tensor, noise: Noise, recipe: ClassifierRecipe) -> Tensor:
    if recipe.augment != "none":
        x = crop(x, x.shape[-1] // PAD, noise.fork("augment"), flip=recipe.augment == "crop-flip")
    if recipe.adversarial:
        x = perturb.pgd(
            net,
            x,
            y,
            recipe.adversarial,
            recipe.adversarial_norm,
            recipe.adversarial_steps,
            noise.fork("attack"),
        )
    return F.cross_entropy(net(x).float(), y, label_smoothing=recipe.label_smoothing)


def _score(net: nn.Module, val: Batch, recipe: ClassifierRecipe) -> float:
    """Accuracy on validation images; in adversarial training, on images attacked in finer steps than those of training."""
    x, y = val
    if recipe.adversarial:
        device = next(net.parameters()).device
        x, y = x[:ROBUST_VAL].to(device), y[:ROBUST_VAL].to(device)
        noise = Noise.of(recipe.seed, torch.arange(len(x), device=x.device)).fork("val")
        x = perturb.pgd(
            net,
            x,
            y,
            recipe.adversarial,
            recipe.adversarial_norm,
            FINER * recipe.adversarial_steps,
            noise,
        )
    return accuracy(net, x, y)
