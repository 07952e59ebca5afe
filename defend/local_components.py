"""Components that a file of the user, or the caller's own object, describes."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from defend.attack import Attack
from defend.chain import members_of
from defend.classifier import Classifier
from defend.dataset import Dataset
from defend.errors import BadParameter, BrokenPlugin, DefendError, one_line
from defend.hashing import canonical_json
from defend.local_files import LocalCode, locate, siblings_first
from defend.object_hash import set_identity
from defend.own_network import OwnNetwork
from defend.purifier import Purifier
from defend.registry import REGISTRY, Kind
from defend.spec import Spec, Value
from defend.weights.header import file_sha256

_TYPES: dict[Kind, type] = {
    "defense": Purifier,
    "attack": Attack,
    "classifier": Classifier,
    "dataset": Dataset,
}


def load_local(
    kind: Kind, spec: Spec, dataset: str | Dataset | None, fields: Mapping[str, Any]
) -> Any:
    """Return the component that a name PATH.py:NAME and its fields describe.

    A classifier may be an nn.Module, or a function that returns one: fields that it does not take
    are those of `OwnNetwork`. dataset: of which a network takes the channels and the size. fields:
    beside those of the spec. Raise DefendError.
    """
    code = LocalCode.of_name(spec.name)
    factory = code.load()
    params = {**dict(spec.params), **fields}
    if kind == "classifier" and not _is_class(factory, Classifier):
        return _load_network(code, factory, params, dataset)
    if kind == "dataset" and "root" not in _accepted(factory):
        params.pop("root", None)  # the folder of the data, which not every function needs
    component = _call(code, lambda: REGISTRY.create(kind, spec.name, **params))
    expected = _TYPES[kind]
    if not isinstance(component, expected):
        raise BadParameter(
            f"{kind} {spec.name}: expected a {expected.__name__}, got {type(component).__name__};"
            f" name a subclass of defend.{expected.__name__}, or a function that returns one"
        )
    if not isinstance(factory, type):
        _name_function(component, code, factory, params)
    return component


def _load_network(
    code: LocalCode,
    factory: Callable[..., Any],
    params: Mapping[str, Any],
    dataset: str | Dataset | None,
) -> Classifier:
    """Return the network that a function or a class makes, as a classifier."""
    accepted = _accepted(factory)
    own = {key: value for key, value in params.items() if key in accepted and key != "dataset"}
    rest = {key: value for key, value in params.items() if key not in own}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _call(code, lambda: factory(**own))
    if isinstance(network, Classifier):
        _refuse_fields(code, rest)
        _name_function(network, code, factory, own)
        return network
    if not isinstance(network, nn.Module):
        raise BadParameter(
            f"classifier {code.label}: expected an nn.Module, got {type(network).__name__}; name a"
            " class of networks, or a function that returns a network"
        )
    modules = frozenset({code.module_name})
    classifier = wrap_network(network, code.label, dataset, rest, code_modules=modules)
    _name_function(classifier, code, factory, own)
    return classifier


def _refuse_fields(code: LocalCode, fields: Mapping[str, Any]) -> None:
    """Raise BadParameter for fields that a function does not take, where it made a Classifier."""
    unknown = [key for key in fields if key != "dataset"]
    if unknown:
        raise BadParameter(
            f"classifier {code.label}: has no field {unknown[0]!r}, as the function returns a"
            " Classifier; let the function take it, or leave it out"
        )


def _name_function(
    component: Any, code: LocalCode, factory: Callable[..., Any], arguments: Mapping[str, Any]
) -> None:
    """Let a component be known by the function that made it: no setting holds its arguments.

    Defaults count as if they were typed, and files by their contents too.
    """
    bound = inspect.signature(factory).bind_partial(**arguments)
    bound.apply_defaults()
    plain = {key: v for key, v in bound.arguments.items() if isinstance(v, Value)}
    paths = {key: os.path.expanduser(str(v)) for key, v in plain.items()}  # noqa: PTH111
    files = {
        key: file_sha256(Path(path))
        for key, path in paths.items()
        if os.path.isfile(path)  # noqa: PTH113  any text; it need not be a path
    }
    texts = {key: repr(value) for key, value in plain.items()}
    identity = canonical_json([code.attribute, texts, files])
    for member in members_of(component):
        set_identity(member, identity)


def wrap_network(
    module: nn.Module,
    label: str,
    dataset: str | Dataset | None,
    fields: Mapping[str, Any],
    **code: Any,
) -> OwnNetwork:
    """Return a network as a classifier for the images of a data set. Raise DefendError.

    code: what `OwnNetwork` is told of the code, code_modules or code_hash.
    """
    unknown = [key for key in fields if key not in OwnNetwork.fields() and key != "dataset"]
    if unknown:
        raise BadParameter(
            f"classifier {label}: has no field {unknown[0]!r}; it takes weights, classes, mean and"
            " std, and what its function takes"
        )
    shape = {}
    if isinstance(dataset, Dataset):
        shape = {"channels": dataset.channels, "size": dataset.size}
    settings = {**shape, **fields, "module": module, "label": label}
    return OwnNetwork(**settings, **code)


def _accepted(factory: Callable[..., Any]) -> Collection[str]:
    """Return the names of the parameters that a function takes."""
    return inspect.signature(factory).parameters.keys()


def _is_class(factory: object, base: type) -> bool:
    return isinstance(factory, type) and issubclass(factory, base)


def _call(code: LocalCode, make: Callable[[], Any]) -> Any:
    """Return what the user's code makes. Raise BrokenPlugin with its line for what it raises."""
    try:
        with siblings_first(code.path):  # a function may import when it is called
            return make()
    except DefendError:
        raise
    except Exception as e:  # the user's code may raise anything
        raise BrokenPlugin(
            f"{locate(e, code.path)}: {code.attribute}: {type(e).__name__}: {one_line(e)}; mend the"
            " file (--debug before the command shows the traceback)"
        ) from e
