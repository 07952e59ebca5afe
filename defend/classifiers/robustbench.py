"""Checkpoints of RobustBench from a local folder: Croce et al., arXiv:2010.09670.

The paper is "RobustBench: a standardized adversarial robustness benchmark". A spec is
`robustbench:model=Carmon2019Unlabeled,dataset=cifar10,threat=Linf,model_dir=./models`. Nothing is
downloaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from defend.classifier import ClassifierCard
from defend.classifiers.foreign_network import Description, ForeignNetwork, call_library
from defend.errors import (
    BadParameter,
    BadWeights,
    MissingData,
    MissingPackage,
    suggest_names,
)
from defend.weights.header import file_sha256
from defend.weights.third_party import compare_states, import_extra, read_state_dict

EXTRA = "defend-purifiers[robustbench]"
AUTOATTACK = "git+https://github.com/fra31/auto-attack"  # no package index has it
# data set -> height and width, classes
SHAPES = {"cifar10": (32, 10), "cifar100": (32, 100), "imagenet": (224, 1000)}
CROP_288 = "Crop288"  # how the library calls the preprocessing of one model of larger images
PREFIXES = ("module.", "model.")
# Tensors of the normalisation, which many checkpoints lack: the network has their values.
NORMALISATION = ("mean", "std", "mu", "sigma")
# Tensors that some checkpoints have in addition, and that no network has.
UNUSED_START, UNUSED_END = "model_preact_hl1.", ".scores"


class RobustBenchModel(ForeignNetwork):
    """Classify by a model of RobustBench, with its architecture and its normalisation.

    The checkpoint is model_dir/dataset/threat/model.pt, where the library puts it, or the file that
    `weights` names. Models of several files are refused.
    """

    card = ClassifierCard(
        paper="arXiv:2010.09670", licence="MIT; weights have licences of their own"
    )
    _runtime = frozenset({"any_dataset"})
    model: str  # its name in the model zoo of RobustBench
    dataset: str | None = None  # cifar10, cifar100 or imagenet; by default the one at hand
    threat: str = "Linf"  # or L2, corruptions
    model_dir: str = "models"

    @property
    def weights_dataset(self) -> str:
        """The data set that the weights are for."""
        return self.dataset or ""

    def describe(self) -> Description:
        """Return the network. Raise MissingPackage, BadParameter, BadWeights, MissingData."""
        self.require(self.dataset in SHAPES, "dataset", " or ".join(SHAPES))
        size, classes = SHAPES[str(self.dataset)]
        zoo = import_zoo()
        entry = self._find_entry(zoo)
        file = self._find_file()
        net: nn.Module = call_library(entry["model"], f"robustbench: {self.model}")
        fill_normalised(net, read_state_dict(file), str(file))
        if entry.get("preprocessing") == CROP_288:
            size = 288
        return Description(
            net=net, channels=3, size=size, classes=classes, hashes={file.name: file_sha256(file)}
        )

    def _find_entry(self, zoo: ModuleType) -> Mapping[str, Any]:
        """Return the row of the library's list. Raise BadParameter."""
        lists = {dataset.value: lists for dataset, lists in zoo.model_dicts.items()}
        threats = {threat.value: models for threat, models in lists[self.dataset].items()}
        if self.threat not in threats:
            raise BadParameter(
                f"robustbench: expected threat={' or '.join(threats)} for {self.dataset}, got"
                f" {self.threat!r}"
            )
        models = threats[self.threat]
        if self.model not in models:
            raise BadParameter(
                f"robustbench: no model {self.model!r} for {self.dataset}, {self.threat}."
                f"{suggest_names(self.model, models)} Expected one of {len(models)}."
            )
        entry: Mapping[str, Any] = models[self.model]
        if "model" not in entry or not isinstance(entry.get("gdrive_id"), str):
            raise BadParameter(
                f"robustbench: {self.model} is not one network in one file of the library; wrap it"
                " in a function and name it as ./model.py:build"
            )
        return entry

    def _find_file(self) -> Path:
        """Return the checkpoint. Raise MissingData, naming the path."""
        folder = Path(self.model_dir).expanduser() / str(self.dataset) / self.threat
        file = folder / f"{self.model}.pt"
        if self.weights != "auto":
            file = Path(self.weights).expanduser()
        if not file.is_file():
            raise MissingData(
                f"robustbench: expected the checkpoint {file}, which does not exist; download it by"
                " robustbench.load_model, or name its folder by model_dir=, or the file by weights="
            )
        return file


def import_zoo() -> ModuleType:
    """Return robustbench.model_zoo. Raise MissingPackage without the extra.

    RobustBench 1.1.1 imports autoattack, and declares pyautoattack, which has another name.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it registers models of timm a second time
        try:
            return import_extra("robustbench.model_zoo", EXTRA)
        except MissingPackage:
            if find_spec("robustbench") and not find_spec("autoattack"):
                raise MissingPackage(
                    f"robustbench: expected the package autoattack, which it imports; type `pip"
                    f" install {AUTOATTACK}`"
                ) from None
            raise


def fill_normalised(net: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load a checkpoint of RobustBench into its network.

    Prefixes of wrappers are removed, and one is written before all names where the network has a
    layer for the normalisation. That layer keeps its values if the file has none. name: the file.
    Raise BadWeights for other tensors.
    """
    wanted = net.state_dict()
    tensors: dict[str, Tensor] = {}
    for key, tensor in state.items():
        for prefix in PREFIXES:
            key = key.removeprefix(prefix)
        key = key if key in wanted else f"model.{key}"
        if key in wanted or not is_unused(key.removeprefix("model.")):
            tensors[key] = tensor
    for key, tensor in wanted.items():
        if key.rpartition(".")[2] in NORMALISATION:
            tensors.setdefault(key, tensor)
    try:
        net.load_state_dict(tensors)
    except RuntimeError as e:
        raise BadWeights(
            f"{name}: does not fit {type(net).__name__}: {compare_states(tensors, wanted, e)};"
            " give the checkpoint of this very model"
        ) from None


def is_unused(key: str) -> bool:
    """Return True for tensors of a training that the network does not need."""
    return key.startswith(UNUSED_START) or key.endswith(UNUSED_END)
