"""The training of `split_vqvae`: options, loss and quality."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defend.defenses.corrupt import (
    attack_surrogates,
    build_surrogates,
    corrupt,
    recognition_loss,
)
from defend.defenses.split_vqvae_training import Trainee
from defend.noise import Noise
from defend.trained_on import TrainedOn
from defend.training.data import Source
from defend.training.quality import PSNR_TOLERANCE, Quality, to_psnr
from defend.training.recipe import Recipe

FIRST_IMAGES = 1024  # images from which the first codes are drawn


class RestorerRecipe(Recipe):
    """Restore images: the squared error, and the distance to the codes.

    `paper` trains on clean images and nothing else, as the papers do. `denoise` trains on perturbed
    images, with the clean ones as targets.
    """

    epochs: float = 10
    optimiser: Literal["sgd", "adamw"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    recipe: Literal["paper", "denoise"] = "paper"
    commitment: float = 0.25  # beta of equation 3 of arXiv:1711.00937
    # denoise: random patterns, or also attacks on surrogates that are trained beside the purifier.
    perturbation: Literal["corrupted", "adversarial"] = "corrupted"
    amplitude: float = 0.4  # denoise: each image's perturbation is at most this, in the L-inf norm
    classes: int = 10  # adversarial: classes of the surrogates
    # adversarial: weight of the surrogates' cross-entropy on restored images.
    recognition: float = 0.1

    def validate(self) -> None:
        """Raise BadParameter if an option is outside its range, or would have no effect."""
        super().validate()
        self.require(self.commitment >= 0, "commitment", ">= 0")
        self.require(0 < self.amplitude <= 1, "amplitude", "> 0 and <= 1")
        self.require(self.classes >= 2, "classes", ">= 2")
        self.require(self.recognition >= 0, "recognition", ">= 0")
        denoise = "recipe=denoise"
        for field in ("perturbation", "amplitude"):
            self._require_effect(field, self.recipe == "denoise", denoise)
        condition = f"{denoise} and perturbation=adversarial"
        self._require_effect("recognition", self.adversarial, condition)

    def _require_effect(self, field: str, effective: bool, condition: str) -> None:
        """Raise BadParameter if an option differs from its default but has no effect."""
        is_default = getattr(self, field) == getattr(type(self), field)
        wanted = f"its default, because it has an effect with {condition} alone"
        self.require(effective or is_default, field, wanted)

    @property
    def adversarial(self) -> bool:
        """Return True if surrogates are trained and attacked."""
        return self.recipe == "denoise" and self.perturbation == "adversarial"

    @property
    def trained_on(self) -> TrainedOn:
        """Return what the training knows."""
        if self.recipe == "paper":
            return TrainedOn(kind="clean")
        if not self.adversarial:
            return TrainedOn(kind="corrupted")
        return TrainedOn(
            kind="adversarial",
            attack="fgsm",
            norm="Linf",
            eps=self.amplitude,
            classifiers={"3 surrogates": ""},
        )

    @property
    def needs_labels(self) -> bool:
        return self.adversarial

    def trainee(self, component: Any) -> nn.Module:
        """Return the codec, with the moving means of its codes and the surrogates."""
        self.surrogates = nn.ModuleList()
        if self.adversarial:
            self.surrogates = build_surrogates(component.channels, component.size, self.classes)
        return Trainee(component.net, component.grid, self.surrogates)

    def initialise(self, trainee: nn.Module, source: Source) -> None:
        """Place the codes at encoded images, and the output at their brightness."""
        assert isinstance(trainee, Trainee)
        images, _ = source.batch(0, min(FIRST_IMAGES, source.epoch), self.seed)
        trainee.start(images, self.seed)

    def loss(self, net: Any, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """Return the squared error in units of the images' variance + beta |z - sg(e)|^2.

        With surrogates, add their cross-entropy on restored images, which trains the codec alone,
        and their cross-entropy on clean images, which trains them.
        """
        perturbed = self._perturb(net.surrogates, x, y, noise.fork("perturb"))
        restored, distance = net(perturbed, noise.fork("codes"))
        loss: Tensor = F.mse_loss(restored, x) / x.var() + self.commitment * distance
        if not self.adversarial:
            return loss
        loss = loss + self.recognition * recognition_loss(net.surrogates, restored, y)
        return loss + sum(F.cross_entropy(s(x).float(), y) for s in net.surrogates)

    @torch.no_grad()
    def quality(self, component: Any, x: Tensor, y: Tensor) -> Quality:
        """Return the PSNR of restored images, which are perturbed if training perturbs."""
        squared_errors = []
        for images, labels, noise in self.batches(component, x, y):
            perturbed = self._perturb(self.surrogates, images, labels, noise)
            difference = component.purified(perturbed, noise) - images
            squared_errors.append(difference.square().mean((1, 2, 3)))
        return Quality("PSNR", to_psnr(torch.cat(squared_errors)), PSNR_TOLERANCE)

    def _perturb(self, surrogates: nn.ModuleList, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """Return the images that the recipe restores."""
        if self.recipe == "paper":
            return x
        if self.adversarial:
            return attack_surrogates(surrogates, x, y, self.amplitude, noise)
        return corrupt(x, self.amplitude, noise)
