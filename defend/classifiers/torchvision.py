"""Any classification model of torchvision: torchvision:model=resnet50,weights=IMAGENET1K_V2. Pixels are normalised inside."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from pickle import UnpicklingError  # torch raises it where a file holds more than tensors
from urllib.parse import urlparse

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from defend import weights as store
from defend.classifier import Classifier, ClassifierCard, Normalise
from defend.errors import BadParameter, BadWeights, MissingData, near, one_line
from defend.learned import Frozen
from defend.training.recipes import fit_classifier

MEAN, STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # of ImageNet, as torchvision's weights expect
PATIENCE = 10.0  # seconds without a byte until the hub counts as unreachable


class TorchvisionModel(Classifier):
    """`weights`: a name of torchvision's (DEFAULT, IMAGENET1K_V1...), a .pt, .pth or .safetensors file, one of `defend train`, or untrained.

    Images must come in the size that the weights expect: nothing is resized here.
    """

    card = ClassifierCard(
        paper="none: whatever torchvision.models holds",
        licence="BSD-3-Clause; weights have licences of their own",
    )
    fit = fit_classifier
    model: str = "resnet50"  # a classification model of torchvision.models
    weights: str = "DEFAULT"
    size: int = 224
    classes: int = 1000

    def validate(self) -> None:
        self.require(self.channels == 3, "channels", "3: torchvision's models take colour images")

    def build(self) -> nn.Module:
        net = torchvision.models.get_model(self.model, weights=None, num_classes=self.classes)
        if self.foreign:
            fill(net, self.foreign)
        return nn.Sequential(Normalise(MEAN, STD), net)

    def _adopt(self) -> None:
        """Weights of others have no header of ours: they are found and hashed here, and `build` fills the network with them."""
        check_model(self.model)
        names = [*torchvision.models.get_model_weights(self.model).__members__]
        self.foreign: store.WeightsFile | None = None
        if self.weights in ("DEFAULT", *names):
            self.foreign = third_party(
                self.weights, hub_file(self.model, self.weights), "imagenet", "clean"
            )
        elif Path(self.weights).is_file() and not is_ours(Path(self.weights)):
            self.foreign = third_party(self.weights, Path(self.weights), "unknown", "unknown")
        elif self.weights in ("auto", "untrained", *store.zoo()) or Path(self.weights).is_file():
            super()._adopt()
        else:
            raise BadWeights(
                f"torchvision: {self.model} has no weights {self.weights!r}, nor is there such a file. There are: {', '.join(names)}, untrained."
            )
        self.file = None if self.foreign else self.file

    def _build(self) -> Frozen:
        frozen = super()._build()
        self.file = self.file or self.foreign  # what records name
        return frozen


def check_model(name: str) -> None:
    """Raises BadParameter, with near names."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise BadParameter(
            f"torchvision: no classification model {name!r}.{near(name, known)} It has {len(known)}, from {known[0]} to {known[-1]}."
        )


def hub_file(model: str, weights: str) -> Path:
    """torchvision's own file in torch's cache, fetched where it is not there. Raises MissingData, naming the path and the address."""
    url: str = torchvision.models.get_model_weights(model)[weights].url
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)
    prefix = re.search(r"-([0-9a-f]{8,})\.", path.name)  # of the file's sha256
    patience = socket.getdefaulttimeout()
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            socket.setdefaulttimeout(PATIENCE)
            torch.hub.download_url_to_file(
                url, str(path), prefix and prefix.group(1), progress=False
            )
        except (OSError, RuntimeError) as e:
            raise MissingData(
                f"torchvision: weights {weights} of {model} are not in {path}, and could not be downloaded ({type(e).__name__}: {e}). "
                f"Fetch {url} to that path, or write weights=FILE"
            ) from None
        finally:
            socket.setdefaulttimeout(patience)
    return path


def third_party(name: str, path: Path, dataset: str, trained_on: str) -> store.WeightsFile:
    header = store.Header(
        kind="classifier",
        component="torchvision",
        dataset=dataset,
        fields={},
        trained_on=trained_on,
        command="none: not trained here",
        seed=0,
        commit="",
    )
    return store.WeightsFile(name=name, path=path, sha256=store.sha256(path), header=header)


def is_ours(path: Path) -> bool:
    """Does it have a header that `defend train` wrote?"""
    try:
        store.header(path)
    except BadWeights:
        return False
    return True


def fill(net: nn.Module, file: store.WeightsFile) -> None:
    """Raises BadWeights where the file is no state dict of this network."""
    try:
        net.load_state_dict(read_state(file.path))
    except RuntimeError as e:
        raise BadWeights(
            f"{file.name}: does not fit this model: {one_line(e)[:200]}. Check model= and classes=."
        ) from None


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors by name, from safetensors or from a pickle of tensors alone. Raises BadWeights."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        return {
            name.removeprefix("module."): t for name, t in state.items() if isinstance(t, Tensor)
        }  # module.: DataParallel's mark
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        AttributeError,
        SafetensorError,
        UnpicklingError,
    ) as e:
        raise BadWeights(
            f"{path}: not a file of tensors alone ({type(e).__name__}: {str(e).splitlines()[0]})"
        ) from None
