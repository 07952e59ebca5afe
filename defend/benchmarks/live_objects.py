"""Objects of the caller in a suite: networks, purifiers, attacks and data.

Each gets a name of its class and of a hash of what it holds, by which this process alone finds it:
"object/Net-1a2b3c4d". The same object has the same name again, so that a run goes on.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier
from torch import nn

from defend.attack import Attack
from defend.benchmarks.component_keys import component_key
from defend.benchmarks.specs import COMPONENT_KINDS, component_text
from defend.chain import members_of
from defend.classifier import Classifier, Normalise
from defend.dataset import Dataset
from defend.errors import BadParameter
from defend.hashing import cache_key, tensor_sha256
from defend.loading import load
from defend.local_components import wrap_network
from defend.object_hash import hash_object, hash_or_unique, set_identity
from defend.own_arrays import OwnArrays
from defend.own_network import copy_network
from defend.pixel_checks import read_range
from defend.purifier import Purifier
from defend.registry import REGISTRY, Kind
from defend.threat_models import OBJECT_PREFIX

_EXPECTED: dict[Kind, tuple[type, str]] = {
    "classifier": (Classifier, "an nn.Module, an ART PyTorchClassifier or a Classifier"),
    "defense": (Purifier, "a Purifier"),
    "attack": (Attack, "an Attack"),
}
_HASH_DIGITS = 8


def name_objects(
    keys: Mapping[str, Any], data_root: str | None = None
) -> tuple[dict[str, Any], bool]:
    """Return the keys with names in place of objects, and whether there were any.

    Raise BadParameter for an object that is none of a component.
    """
    named = dict(keys)
    own_data = _own_dataset(keys.get("dataset"))
    has_objects = own_data is not None

    @cache
    def data() -> Dataset | None:
        """Return the data set, loaded only if a network needs its shape."""
        spec = keys.get("dataset")
        if own_data is None and spec is not None:
            loaded: Dataset = load(component_text(spec, "dataset"), "dataset", root=data_root)
            return loaded
        return own_data

    for key, kind in COMPONENT_KINDS.items():
        if kind == "dataset" or keys.get(key) is None:
            continue
        values = keys[key] if isinstance(keys[key], list | tuple) else [keys[key]]
        named[key] = [v if _is_spec(v) else _name(v, kind, data) for v in values]
        has_objects = has_objects or not all(map(_is_spec, values))
    if own_data is not None:
        named["dataset"] = _name_dataset(own_data, _classes_of(named, own_data))
    return named, has_objects


def _is_spec(value: Any) -> bool:
    """Return True for a text or a table, which the suite checks."""
    return isinstance(value, str | Mapping)


def _own_dataset(value: Any) -> Dataset | None:
    """Return the caller's data, None for a spec. Raise BadParameter."""
    if value is None or isinstance(value, str | Mapping):
        return None
    if isinstance(value, Dataset):
        return value
    if not isinstance(value, Sequence) or len(value) != 2:
        received = f"{len(value)} items" if isinstance(value, Sequence) else type(value).__name__
        raise BadParameter(
            f"dataset: expected a spec, a Dataset or two arrays (x, y), got {received}"
        )
    return OwnArrays(x=value[0], y=value[1])


def _name_dataset(data: Dataset, classes: int) -> str:
    """Return the name of a data set; arrays have as many classes as the first classifier."""
    if isinstance(data, OwnArrays):
        data = OwnArrays(x=data.x, y=data.y, class_count=max(classes, data.class_count))
        digest = tensor_sha256(data.x, data.y)
    else:
        digest = hash_or_unique(data, "dataset")
    return _register("dataset", data, type(data).__name__, digest)


def _classes_of(keys: Mapping[str, Any], data: Dataset) -> int:
    for spec in keys.get("classifiers") or keys.get("classifier") or ():
        classifier: Classifier = load(spec, "classifier", data)
        return classifier.classes
    return data.classes


def _name(value: Any, kind: Kind, data: Callable[[], Dataset | None]) -> str:
    """Return the name of an object. data: what a network takes its shape from."""
    if kind == "classifier" and isinstance(value, nn.Module | PyTorchClassifier):
        return _name_network(value, data())
    expected, wanted = _EXPECTED[kind]
    if not isinstance(value, expected):
        raise BadParameter(f"{kind}: expected a spec or {wanted}, got {type(value).__name__}")
    if getattr(value, "seed", None) is not None:
        raise BadParameter(
            f"{kind} {type(value).__name__}: expected no seed, as a bench gives each image noise of"
            " its own; leave seed out"
        )
    held: Any = copy.deepcopy(value)
    label = type(value).__name__
    object_hash = hash_or_unique(held, f"{kind} {label}")
    for member in members_of(held):
        if not _is_what_its_settings_say(member):
            set_identity(member, object_hash)
    key = component_key(held, kind)
    return _register(kind, held, label, cache_key({"key": key, "object": object_hash}))


def _is_what_its_settings_say(component: Any) -> bool:
    """Return True if the settings make the same object again, so that a spec may share its results.

    A class that its module does not have under its name is in no hash of code.
    """
    cls = type(component)
    if getattr(sys.modules.get(cls.__module__), cls.__qualname__, None) is not cls:
        return False
    try:
        return hash_object(cls(**component.settings)) == hash_object(component)
    except Exception:  # the caller's class may raise anything
        return False


def _name_network(value: nn.Module | PyTorchClassifier, data: Dataset | None) -> str:
    """Return the name of a network, which is wrapped when it is loaded."""
    net = _of_art(value) if isinstance(value, PyTorchClassifier) else _copy(value)
    label = type(value).__name__
    digest = hash_or_unique(net, label)
    name = f"{OBJECT_PREFIX}{label}-{digest[:_HASH_DIGITS]}"

    def make(**fields: Any) -> Classifier:
        return wrap_network(net, name, data, fields, code_hash=digest)

    REGISTRY.add_object("classifier", name, make)
    return name


def _of_art(classifier: PyTorchClassifier) -> nn.Module:
    """Return the network of an ART classifier for pixels in [0, 1], with its normalisation.

    Raise BadParameter if it has defences, which would be measured as if they were none.
    """
    if classifier.preprocessing_defences or classifier.postprocessing_defences:
        raise BadParameter(
            "classifier: expected a PyTorchClassifier without defences, got some; give purifiers as"
            " defenses"
        )
    clip_values = (0.0, 1.0) if classifier.clip_values is None else classifier.clip_values
    low, high = read_range("PyTorchClassifier", clip_values)
    layers: list[nn.Module] = []
    if (low, high) != (0.0, 1.0):  # pixels p of the network are low + (high - low) x
        layers.append(Normalise((-low / (high - low),), (1 / (high - low),)))
    standard = classifier.preprocessing
    if standard is not None:
        mean, std = (np.atleast_1d(np.squeeze(v)) for v in (standard.mean, standard.std))
        layers.append(Normalise(tuple(map(float, mean)), tuple(map(float, std))))
    return nn.Sequential(*layers, _copy(classifier.model))


def _copy(network: nn.Module) -> nn.Module:
    return copy_network(network, f"classifier {type(network).__name__}")


def _register(kind: Kind, value: Any, label: str, digest: str) -> str:
    """Let a name stand for copies of an object, and return it."""
    name = f"{OBJECT_PREFIX}{label}-{digest[:_HASH_DIGITS]}"
    REGISTRY.add_object(kind, name, lambda **_: copy.deepcopy(value))
    return name
