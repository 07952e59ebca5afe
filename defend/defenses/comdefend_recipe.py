"""The training of `comdefend`: the paper's loss, and a recipe that restores perturbed images.

The paper's, by the authors' program, on clean images x alone:

    c = Com(x - 1/2),  b = sigmoid(c - phi n),  n ~ N(0, 1),  y = Rec(b),
    loss = mean (y - x)^2 + lambda mean b^2.

Symbols: phi is ``code_noise``, lambda is ``energy``. The paper's text penalises |c|^2, the program
b^2; this is the program's.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defend.defenses.corrupt import corrupt, draw_share, input_gradient
from defend.noise import Noise
from defend.trained_on import TrainedOn
from defend.training.perturbations import add_random_signs
from defend.training.quality import PSNR_TOLERANCE, Quality, to_psnr
from defend.training.recipe import Recipe


class ComDefendRecipe(Recipe):
    """Reconstruct images through noisy codes.

    `paper` trains on clean images and nothing else. `denoise` trains on perturbed images with the
    clean ones as targets: a third each is left as it is, moves along random patterns, and is
    attacked by steps of FGSM on the classifier `against`, which is frozen. Its logits on restored
    images are also drawn to those on clean images.
    """

    epochs: float = 3
    batch: int = 20
    optimiser: Literal["sgd", "adamw"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: Literal["one-cycle", "cosine", "constant"] = "constant"
    code_noise: float = 20.0  # the paper's phi
    energy: float = 1e-4  # the paper's lambda
    recipe: Literal["paper", "denoise"] = "paper"
    against: str = ""  # denoise: spec of a classifier; without one, random patterns alone
    amplitude: float = 8 / 255  # denoise: each image's perturbation is at most this, in L-inf
    steps: int = 2  # denoise: of FGSM
    features: float = 0.01  # denoise: weight of the squared distance of the logits

    def validate(self) -> None:
        """Raise BadParameter if an option is outside its range, or would have no effect."""
        super().validate()
        self.require(self.code_noise >= 0, "code_noise", ">= 0")
        self.require(self.energy >= 0, "energy", ">= 0")
        self.require(0 < self.amplitude <= 1, "amplitude", "> 0 and <= 1")
        self.require(self.steps >= 1, "steps", ">= 1")
        self.require(self.features >= 0, "features", ">= 0")
        denoise = self.recipe == "denoise"
        self.require(denoise or not self.against, "against", "none, except with recipe=denoise")

    @property
    def trained_on(self) -> TrainedOn:
        """Return what the training knows; the classifier is added by `load_frozen`."""
        if self.recipe == "paper":
            return TrainedOn(kind="clean")
        if not self.against:
            return TrainedOn(kind="corrupted", norm="Linf", eps=self.amplitude)
        attack = f"fgsm-{self.steps}"
        return TrainedOn(kind="adversarial", attack=attack, norm="Linf", eps=self.amplitude)

    @property
    def needs_labels(self) -> bool:
        return bool(self.against)

    def trainee(self, component: Any) -> nn.Module:
        """Return the autoencoder, beside the frozen classifier if there is one."""
        modules = {"autoencoder": component.net}
        if self.against:
            modules["classifier"] = self.load_frozen(self.against, component).network
        return nn.ModuleDict(modules)

    def loss(self, net: Any, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """Return the squared error + lambda mean b^2 + the distance of the logits, if any."""
        restored, code = self._reconstruct(net, self._perturb(net, x, y, noise), noise)
        loss = F.mse_loss(restored, x) + self.energy * code.square().mean()
        if "classifier" not in net:
            return loss
        classify = net["classifier"]
        with torch.no_grad():
            wanted = classify(x).float()
        return loss + self.features * F.mse_loss(classify(restored).float(), wanted)

    def quality(self, component: Any, x: Tensor, y: Tensor) -> Quality:
        """Return the PSNR in dB of reconstructions through the hard threshold.

        After `denoise` the images are moved by random signs first.
        """
        errors = []
        with torch.no_grad():
            for images, _, noise in self.batches(component, x, y):
                moved = images
                if self.recipe == "denoise":
                    moved = add_random_signs(images, self.amplitude, noise.fork("val"))
                restored = component.purified(moved, noise)
                errors.append((restored - images).square().mean((1, 2, 3)))
        value = to_psnr(torch.cat(errors))
        return Quality("PSNR", value, tolerance=PSNR_TOLERANCE, images=len(x))

    def _reconstruct(self, net: Any, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Return y and the soft code b of images x (b, c, h, w)."""
        autoencoder = net["autoencoder"]
        c = autoencoder.encode(x)
        code = torch.sigmoid(c - self.code_noise * noise.fork("code").normal(c))
        return autoencoder.decode(code), code

    def _perturb(self, net: Any, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """Return x with a third of the images moved along patterns, and a third attacked."""
        if self.recipe == "paper":
            return x
        perturbed = x.clone()
        perturbed[1::3] = corrupt(x, self.amplitude, noise.fork("pattern"))[1::3]
        if "classifier" in net:
            rows = torch.arange(2, len(x), 3, device=x.device)
            start = noise.take(rows).fork("start")
            perturbed[2::3] = self._attack(net["classifier"], x[2::3], y[2::3], start)
        return perturbed

    def _attack(self, classifier: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """Return x attacked by steps of FGSM from random signs, each image within its own eps."""
        eps = self.amplitude * draw_share(x, noise)
        x_adv = add_random_signs(x, eps / 2, noise)
        for _ in range(self.steps):
            x_adv = x_adv + eps * input_gradient(classifier, x_adv, y).sign()
            x_adv = x_adv.clamp(x - eps, x + eps).clamp(0, 1)
        return x_adv
