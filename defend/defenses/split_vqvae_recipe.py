"""The options of the training of `split_vqvae`."""

from __future__ import annotations

from typing import Literal

from defend.trained_on import TrainedOn
from defend.training.recipe import Recipe


class RestorerRecipe(Recipe):
    """Options of `SplitVQVAE.fit`.

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
