"""The training of classifiers: `recipe = ClassifierRecipe` in the body of a classifier's class."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defend.errors import BadParameter
from defend.noise import Noise
from defend.purifier import Purifier
from defend.trained_on import ITSELF, TrainedOn
from defend.training.augmentations import affine_flip, change_colours, erase
from defend.training.behind import STREAM, load_behind, purify_images, trained_behind
from defend.training.data import Source, random_crop
from defend.training.perturbations import attack_by_pgd
from defend.training.quality import Quality, accuracy, device_of
from defend.training.recipe import Recipe

# Random crops shift by up to 1 / CROP_DIVISOR of the image: by the usual 4 pixels on CIFAR-10.
CROP_DIVISOR = 8
# Behind a defense, this many validation images are purified unless `val_images` says otherwise.
PURIFIED_VAL_IMAGES = 1000
# Adversarial training attacks this many validation images at the end of an epoch...
ATTACKED_VAL_IMAGES = 500
# ...in this many times as many steps as in training, because a network may learn to withstand
# exactly the attack that it is trained on (arXiv:2001.03994, section 5.4).
VAL_STEPS_FACTOR = 4


class ClassifierRecipe(Recipe):
    """Cross-entropy on labelled images, which may be augmented and attacked."""

    val_images: int = 100_000  # all of val: a classifier is fast; behind a defense: 1000
    label_smoothing: float = 0.0
    augment: Literal["none", "crop", "crop-flip", "affine-flip"] = "none"
    erase: float = 0.0  # probability that a rectangle of an image is erased (arXiv:1708.04896)
    jitter: float = 0.0  # largest relative change of brightness, contrast and saturation
    hue: float = 0.0  # largest rotation of the hue, in turns
    grey: float = 0.0  # probability that an image loses its colour
    adversarial: float = 0.0  # eps of PGD on the network in training (arXiv:1706.06083); 0: none
    adversarial_norm: Literal["Linf", "L2"] = "Linf"
    adversarial_steps: int = 10
    behind: str = ""  # a defense, as in jpeg:quality=60, that purifies all images; "": none

    def __post_init__(self) -> None:
        if self.behind and self.val_images == type(self).val_images:
            self.val_images = min(self.val_images, PURIFIED_VAL_IMAGES)
        super().__post_init__()
        self.purifier: Purifier | None = None  # of `behind`, once `trainee` has loaded it

    def validate(self) -> None:
        super().validate()
        self.require(0 <= self.label_smoothing < 1, "label_smoothing", "0 <= label_smoothing < 1")
        for field in ("erase", "grey"):
            self.require(0 <= getattr(self, field) <= 1, field, "a probability")
        self.require(0 <= self.jitter < 1, "jitter", "0 <= jitter < 1")
        self.require(0 <= self.hue <= 0.5, "hue", "0 <= hue <= 0.5")
        self.require(self.adversarial >= 0, "adversarial", "an eps >= 0")
        self.require(self.adversarial_steps >= 1, "adversarial_steps", ">= 1")
        alone = not (self.behind and self.adversarial)
        self.require(alone, "behind", "no defense beside adversarial, which attacks the network")

    @property
    def trained_on(self) -> TrainedOn:
        """Return what the training knows."""
        if self.purifier:
            return trained_behind(TrainedOn(kind="clean"), self.behind, self.purifier)
        if not self.adversarial:
            return TrainedOn(kind="clean")
        return TrainedOn(
            kind="adversarial",
            attack=f"pgd-{self.adversarial_steps}",
            norm=self.adversarial_norm,
            eps=self.adversarial,
            classifiers={ITSELF: ""},
        )

    @property
    def needs_labels(self) -> bool:
        return True

    def make_source(self, component: Any, x: Tensor | Source, y: Tensor | None) -> Source:
        """Return the images as a source.

        Raise BadParameter if labels are missing, or if the classifier does not have them.
        """
        if y is not None and len(y) and int(y.max()) >= component.classes:
            raise BadParameter(
                f"fit: expected labels below classes={component.classes} of {component.component},"
                f" got {int(y.max())}; leave the field classes out, or set it to the number of"
                " classes"
            )
        return super().make_source(component, x, y)

    def trainee(self, component: Any) -> nn.Module:
        """Return the network, after loading the defense that it is trained behind."""
        self.purifier = load_behind(self.behind, component)
        if self.purifier:
            self.note_loaded("defense", self.behind, self.purifier.weights_sha256)
        return super().trainee(component)

    def loss(self, net: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """Return the loss of images that are augmented and attacked as the fields say."""
        x = self._augment(x, noise)
        if self.adversarial:
            x = self._attack(net, x, y, self.adversarial_steps, noise.fork("attack"))
        if self.purifier:
            x = self.purifier.purified(x, noise.fork(STREAM))
        return self.loss_of_logits(net(x).float(), y)

    def loss_of_logits(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the cross-entropy of logits (b, classes) for labels y (b,)."""
        return F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)

    def _augment(self, x: Tensor, noise: Noise) -> Tensor:
        """Return images that are moved, coloured and erased as the fields say."""
        if self.augment == "affine-flip":
            x = affine_flip(x, noise.fork("augment"))
        elif self.augment != "none":
            flip = self.augment == "crop-flip"
            x = random_crop(x, x.shape[-1] // CROP_DIVISOR, noise.fork("augment"), flip)
        if self.jitter or self.hue or self.grey:
            x = change_colours(x, self.jitter, self.hue, self.grey, noise.fork("colours"))
        if self.erase:
            x = erase(x, self.erase, noise.fork("erase"))
        return x

    def quality(self, component: Any, x: Tensor, y: Tensor) -> Quality:
        """Return the accuracy, behind the defense if there is one.

        After adversarial training it is that under its attack with finer steps.
        """
        if self.purifier:  # the bar counts the images that are purified: the rest is fast
            x = purify_images(self.purifier, x, self.seed, self.advance)
            return Quality("accuracy", accuracy(component.network, x, y))
        if not self.adversarial:
            return super().quality(component, x, y)
        device = device_of(component)
        x, y = x[:ATTACKED_VAL_IMAGES].to(device), y[:ATTACKED_VAL_IMAGES].to(device)
        noise = Noise.of(self.seed, torch.arange(len(x), device=device)).fork("val")
        steps = VAL_STEPS_FACTOR * self.adversarial_steps
        x = self._attack(component.net, x, y, steps, noise)
        value = accuracy(component.network, x, y, self.advance)
        return Quality(f"accuracy under pgd-{steps}", value, tolerance=1 / len(x), images=len(x))

    def _attack(self, net: nn.Module, x: Tensor, y: Tensor, steps: int, noise: Noise) -> Tensor:
        return attack_by_pgd(net, x, y, self.adversarial, self.adversarial_norm, steps, noise)
