"""The components that a suite names, loaded once for each process and device."""

from __future__ import annotations

from typing import Any, cast

import torch

from defend.attack import Attack
from defend.batch_sizes import GPU_BATCH_VALUES
from defend.benchmarks.bpda_networks import BPDANetworks
from defend.benchmarks.component_keys import component_key
from defend.benchmarks.no_classifier import NoClassifier
from defend.chain import members_of
from defend.classifier import Classifier
from defend.dataset import Dataset
from defend.errors import BadParameter, BrokenPurifier
from defend.learned import Learned
from defend.loading import dataset_name, load
from defend.pairing import check_logits, check_pair
from defend.purifier import Purifier, overridden_methods
from defend.registry import Kind
from defend.spec import parse
from defend.threat_models import NO_CLASSIFIER


class Components:
    """Specs -> components on one device, in one precision and layout."""

    def __init__(
        self,
        dataset: str,
        data_root: str | None,
        device: torch.device,
        precision: str = "float32",
        layout: str = "contiguous",
    ) -> None:
        self.data: Dataset = load(dataset, "dataset", root=data_root)
        self.dataset_name = dataset_name(self.data)
        self.device, self.precision, self.layout = device, precision, layout
        self.bpda = BPDANetworks(self)
        self._loaded: dict[tuple[str, str], Any] = {}
        self._keys: dict[tuple[str, str], Any] = {}

    def defense(self, spec: str) -> Purifier:
        """Return the purifier of this spec. Raises BadParameter, BrokenPurifier."""
        return cast(Purifier, self._get("defense", spec))

    def fresh_defense(self, spec: str) -> Purifier:
        """Return a purifier of this spec that has seen no image yet."""
        return cast(Purifier, self._prepare(self._load("defense", spec), "defense", spec))

    def classifier(self, spec: str) -> Classifier:
        """Return the classifier of this spec; "none" is a NoClassifier.

        Raises Mismatch if it does not fit the data set.
        """
        if spec == NO_CLASSIFIER:
            return cast(Classifier, self._get("classifier", spec))
        classifier: Classifier = self._get("classifier", spec)
        check_pair(classifier, self.data)
        return classifier

    def attack(self, spec: str) -> Attack:
        """Return the attack of this spec, which has no eps."""
        return cast(Attack, self._get("attack", spec))

    def key(self, kind: Kind, spec: str) -> Any:
        """Return what identifies a component, hashed before it was used."""
        self._get(kind, spec)
        return self._keys[kind, spec]

    def _get(self, kind: Kind, spec: str) -> Any:
        if (kind, spec) not in self._loaded:
            component = self._load(kind, spec)
            self._keys[kind, spec] = component_key(component, kind)  # what it gathers later is none
            self._loaded[kind, spec] = self._prepare(component, kind, spec)
        return self._loaded[kind, spec]

    def _load(self, kind: Kind, spec: str) -> Any:
        if (kind, spec) == ("classifier", NO_CLASSIFIER):
            return NoClassifier()
        return load(spec, kind, self._dataset_of(spec), self.device)

    def _dataset_of(self, spec: str) -> str | Dataset:
        """Return the name of the data set, or for a network of the user what has its shape."""
        is_own = any(member.file is not None for member in parse(spec))
        return self.data if is_own else self.dataset_name

    def _prepare(self, component: Any, kind: Kind, spec: str) -> Any:
        if kind != "attack":
            check_final_methods(component)
            check_trained(component, spec)
            if isinstance(component, Classifier):
                check_logits(component)
            component.run_as(self.precision, self.layout)
        if kind == "defense" and self.device.type == "cuda":
            _fill_gpu(component, self.data)
        return component


def _fill_gpu(purifier: Purifier, data: Dataset) -> None:
    """Purify as many images at once as fill a GPU.

    This changes no setting and no key.
    """
    values = data.channels * data.size**2
    for member in {purifier, *members_of(purifier)}:
        if member.max_batch != type(member).max_batch:  # an author's or user's own limit stays
            continue
        member.max_batch = max(member.max_batch, GPU_BATCH_VALUES // values)


def check_final_methods(component: Any) -> None:
    """Raise BrokenPurifier if a purifier overrides what all purifiers share.

    Attacks and scores would meet what it makes of these methods.
    """
    for member in {component, *members_of(component)}:
        if isinstance(member, Purifier) and (names := overridden_methods(member)):
            raise BrokenPurifier(
                f"{type(member).__name__}: overrides {', '.join(names)}, which all purifiers"
                " share; write purify alone"
            )


def check_trained(component: Any, spec: str) -> None:
    """Raise BadParameter for a learned component without weights: it measures nothing."""
    for member in members_of(component):
        if isinstance(member, Learned) and not member.own_weights:
            raise BadParameter(
                f"{spec}: weights=untrained measures nothing; train it with `defend train` or"
                " name its weights"
            )
