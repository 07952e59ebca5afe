"""Any classification model of torchvision, with the normalisation of pixels inside.

A spec is `torchvision:model=resnet50,weights=IMAGENET1K_V2`.
"""

from __future__ import annotations

import torchvision
from torch import nn

from defend.classifier import Classifier, ClassifierCard, Normalise
from defend.classifiers.torchvision_weights import (
    external_weights,
    fetch_hub_file,
    has_header,
    weight_names,
)
from defend.errors import BadParameter, BadWeights, suggest_names
from defend.files import user_path
from defend.learned import Frozen
from defend.trained_on import TrainedOn
from defend.training.recipes import ClassifierRecipe
from defend.weights.header import WeightsFile
from defend.weights.third_party import fill_network
from defend.weights.zoo import read_zoos

# Mean and standard deviation of ImageNet, as torchvision's weights expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class TorchvisionModel(Classifier):
    """Classify by a model of torchvision.models.

    `weights` is a name of torchvision's (DEFAULT, IMAGENET1K_V1...), a .pt, .pth or .safetensors
    file, weights of `defend train`, or untrained. Images must have the size that the weights
    expect: nothing is resized here.
    """

    card = ClassifierCard(
        paper="none: whatever torchvision.models holds",
        licence="BSD-3-Clause; weights have licences of their own",
    )
    recipe = ClassifierRecipe
    model: str = "resnet50"  # a classification model of torchvision.models
    weights: str = "DEFAULT"
    size: int = 224
    classes: int = 1000

    def validate(self) -> None:
        """Raise BadParameter unless there are three channels."""
        self.require(self.channels == 3, "channels", "3: torchvision's models take colour images")

    def build(self) -> nn.Module:
        """Return the network, filled if its weights come from an external file."""
        net = torchvision.models.get_model(self.model, weights=None, num_classes=self.classes)
        if self.external_file:
            file = self.external_file
            fill_network(net, file.path, file.name, "check model= and classes=")
        return nn.Sequential(Normalise(MEAN, STD), net)

    def _adopt(self) -> None:
        """Find the weights. Raises BadParameter, BadWeights or MissingData if there are none.

        External weights have no header of `defend train`. They are hashed here, and `build` fills
        the network with them.
        """
        check_model(self.model)
        self.external_file = self._find_external_file()
        if self.external_file:
            self.file = None
            return
        known = self.weights in ("auto", "untrained", *read_zoos())
        if not known and not user_path(self.weights).is_file():
            raise BadWeights(
                f"torchvision: {self.model} has no weights {self.weights!r}, and there is no such"
                f" file; expected a file or one of {', '.join(weight_names(self.model))}, untrained"
            )
        super()._adopt()

    def _find_external_file(self) -> WeightsFile | None:
        """Return a file of torchvision or of the user, or None if `defend train` wrote it."""
        if self.weights in ("DEFAULT", *weight_names(self.model)):
            path = fetch_hub_file(self.model, self.weights)
            return external_weights(
                self.weights, path, dataset="imagenet", trained_on=TrainedOn(kind="clean")
            )
        path = user_path(self.weights)
        if path.is_file() and not has_header(path):
            return external_weights(
                self.weights, path, dataset="unknown", trained_on=TrainedOn(kind="unknown")
            )
        return None

    def _build(self) -> Frozen:
        """Return the frozen network, and name the external file in records."""
        frozen = super()._build()
        self.file = self.file or self.external_file
        return frozen


def check_model(name: str) -> None:
    """Raise BadParameter, with similar names, if torchvision has no such classification model."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise BadParameter(
            f"torchvision: no classification model {name!r}.{suggest_names(name, known)} Expected"
            f" one of {len(known)}, from {known[0]} to {known[-1]}."
        )
