"""Any classification model of timm, with the normalisation of its weights inside.

A spec is `timm:model=resnet18.a1_in1k`, `timm:model=./folder` or
`timm:model=resnet18,weights=mine.pth,classes=10`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from defend.classifier import ClassifierCard
from defend.classifiers.foreign_network import (
    Description,
    ForeignNetwork,
    call_library,
    read_json,
    to_tuple,
)
from defend.errors import BadParameter, BadWeights, suggest_names
from defend.hashing import tensor_sha256
from defend.weights.header import file_sha256
from defend.weights.third_party import CONFIGURATION, fill_network, import_extra

EXTRA = "defend-purifiers[timm]"
HUB = "hf-hub:"  # what timm writes before names on the hub
# The files of a folder that timm saves, the first one that exists.
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")


class TimmModel(ForeignNetwork):
    """Classify by a model of timm, with the mean, the deviation and the size of its weights.

    model: a name of timm's, with the tag of its weights or without; hf-hub:OWNER/NAME; or a folder
    that timm saved. weights: DEFAULT (those of the name or the folder, from the cache or the hub),
    a file of tensors for the architecture, or untrained.
    """

    card = ClassifierCard(
        paper="none: whatever timm holds", licence="Apache-2.0; weights have licences of their own"
    )
    model: str = "resnet18.a1_in1k"
    weights: str = "DEFAULT"

    def describe(self) -> Description:
        """Return the network. Raise MissingPackage, BadParameter, BadWeights, MissingData."""
        timm = import_extra("timm", EXTRA)
        folder = Path(self.model).expanduser()
        if folder.is_dir():
            net, hashes = self._read_folder(timm, folder)
        else:
            net, hashes = self._create_named(timm)
        config: Mapping[str, Any] = net.pretrained_cfg  # type: ignore[assignment]
        channels, height, width = config["input_size"]
        self.require(height == width, "model", f"a network of squares, not of {height}x{width}")
        return Description(
            net=net,
            channels=channels,
            size=height,
            classes=int(net.num_classes),  # type: ignore[arg-type]
            mean=to_tuple(config["mean"], channels, f"{self.model}: mean"),
            std=to_tuple(config["std"], channels, f"{self.model}: std"),
            hashes=hashes,
        )

    def _read_folder(self, timm: ModuleType, folder: Path) -> tuple[nn.Module, dict[str, str]]:
        """Return the network of a local folder, with the hash of its configuration."""
        config = read_json(folder / CONFIGURATION)
        if "architecture" not in config:
            raise BadWeights(
                f"{folder}/{CONFIGURATION}: expected the field architecture, as timm writes it, got"
                f" {', '.join(list(config)[:3]) or 'nothing'}; of transformers' models write"
                f" huggingface:path={folder}"
            )
        pretrained = dict(config.get("pretrained_cfg", config))
        options = {"pretrained_cfg": pretrained, **config.get("model_args", {})}
        options["num_classes"] = config.get("num_classes", pretrained.get("num_classes"))
        net = self._create(timm, config["architecture"], **options)
        hashes = {f"{folder.name}/{CONFIGURATION}": file_sha256(folder / CONFIGURATION)}
        if self.weights != "untrained":
            path = self._find_file(folder)
            fill_network(net, path, f"{folder.name}/{path.name}", "give a folder that timm saved")
        return net, hashes if self.weights != "untrained" else {}

    def _find_file(self, folder: Path) -> Path:
        """Return the file of the weights. Raise BadWeights if there is none."""
        if self.weights != "DEFAULT":
            return self._named_file()
        for name in WEIGHTS_FILES:
            if (folder / name).is_file():
                return folder / name
        raise BadWeights(
            f"{folder}: expected one of {', '.join(WEIGHTS_FILES)}, got none; name the file by"
            " weights=FILE"
        )

    def _named_file(self) -> Path:
        path = Path(self.weights).expanduser()
        if not path.is_file():
            raise BadWeights(
                f"timm: expected DEFAULT, untrained or a file of weights, got"
                f" weights={self.weights}, which does not exist; check the path"
            )
        return path

    def _create_named(self, timm: ModuleType) -> tuple[nn.Module, dict[str, str]]:
        """Return the network of a name, with the hash of its pretrained tensors."""
        if self.model.startswith((".", "/", "~")):
            raise BadWeights(f"timm: expected the folder {self.model}, which does not exist")
        if not self.model.startswith(HUB):
            self._check_name(timm)
        if self.weights == "DEFAULT":
            net = self._create(timm, self.model, pretrained=True)
            return net, {self.model: tensor_sha256(*net.state_dict().values())}
        net = self._create(timm, self.model, num_classes=self.classes or None)
        if self.weights != "untrained":
            path = self._named_file()
            fill_network(net, path, path.name, "check model= and classes=")
        return net, {}

    def _check_name(self, timm: ModuleType) -> None:
        """Raise BadParameter, with similar names, if timm has no such model or no such weights."""
        architecture, _, tag = self.model.partition(".")
        names = timm.list_models()
        if architecture not in names:
            raise BadParameter(
                f"timm: no model {architecture!r}.{suggest_names(architecture, names)} Expected one"
                f" of {len(names)}, a folder, or {HUB}OWNER/NAME."
            )
        tagged = timm.list_models(f"{architecture}.*", pretrained=True)
        if tag and self.model not in tagged:
            raise BadParameter(
                f"timm: no weights {self.model!r}.{suggest_names(self.model, tagged)} Expected one"
                f" of {', '.join(tagged) or 'none'}."
            )

    def _create(self, timm: ModuleType, name: str, **options: Any) -> nn.Module:
        """Return timm's network. Raise MissingData, BadWeights for whatever timm raises."""
        options = {key: value for key, value in options.items() if value is not None}
        net: nn.Module = call_library(lambda: timm.create_model(name, **options), f"timm: {name}")
        return net
