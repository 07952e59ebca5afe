"""What identifies a component in a cache key: its name, settings, weights and contents."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import (
    PackageNotFoundError,
    packages_distributions,
    requires,
    version,
)
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from defend.benchmarks.code_hash import optional_libraries
from defend.chain import Chain, members_of
from defend.hashing import tensor_sha256
from defend.learned import Learned, find_networks
from defend.object_hash import identity_of
from defend.registry import GROUPS, HOME, REGISTRY, Kind
from defend.weights.header import file_sha256

_KNOWN_BY_VERSION = {"torch", "art"}


def component_key(component: Any, kind: Kind) -> Any:
    """Return what identifies a component, whatever its spelling: a part of a cache key.

    A learned component is known by the hash of its weights, not by their name.
    """
    if isinstance(component, Chain):
        return [component_key(member, kind) for member in component.members]
    settings = dict(component.settings)
    if isinstance(component, Learned):
        settings.pop("weights", None)
    weights = getattr(component, "weights_sha256", {})
    identity = identity_of(component)  # only of what a function or the caller made
    return {
        "component": REGISTRY.component(kind, type(component)),
        "settings": settings,
        "weights": [digest for _, digest in sorted(weights.items())],  # by their roles
        "content": content_hash(component),
        **({"identity": identity} if identity else {}),
    }


def is_undefended(purifier: Any) -> bool:
    """Return True if no member of this purifier does anything."""
    names = {REGISTRY.component("defense", type(member)) for member in members_of(purifier)}
    return names == {"none"}


def content_hash(component: Any) -> str:
    """Return the hash of what no setting and no header of weights shows, "" if there is none.

    These are tensors, arrays and networks among its attributes, networks in objects below them,
    and files that its settings name: a network trained anew into the same file is another purifier.
    """
    tensors = [*_tensors(_attributes(component)), *_tensors(_networks_in_objects(component))]
    files = _named_files(component)
    if not tensors and not files:
        return ""
    text = tensor_sha256(*tensors) + "".join(map(file_sha256, files))
    return hashlib.sha256(text.encode()).hexdigest()


def _attributes(component: Any) -> dict[str, Any]:
    """Return the attributes; what `build` of a learned component returned is known by its file."""
    attributes: dict[str, Any] = vars(component)
    if not isinstance(component, Learned):
        return attributes
    return {k: v for k, v in attributes.items() if not component.is_own_network(v)}


def _networks_in_objects(component: Any) -> list[nn.Module]:
    """Return the networks that no container among the attributes holds, but a partial or a foreign
    object does.
    """
    held = _networks(vars(component))
    inner = {id(module) for network in held for module in network.modules()}
    return [network for network in find_networks(component) if id(network) not in inner]


def _networks(value: Any) -> Iterator[nn.Module]:
    """Yield the networks in mappings, lists and tuples."""
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _networks(item)


def _named_files(component: Any) -> list[Path]:
    files = []
    for name, value in component.settings.items():
        is_weights = isinstance(component, Learned) and name == "weights"
        if not isinstance(value, str) or is_weights:
            continue
        path = Path(os.path.expanduser(value))  # noqa: PTH111  any text; it need not be a path
        if path.is_file():
            files.append(path)
    return files


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value.float() if value.dtype == torch.bfloat16 else value  # numpy has no bfloat16
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        yield torch.from_numpy(value)
    elif isinstance(value, nn.Module):
        yield from _tensors(value.state_dict())
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def modules_of(component: Any) -> set[str]:
    """Return the modules of a component's classes, but for libraries known by their versions."""
    if isinstance(component, Chain):
        return set().union(*(modules_of(member) for member in component.members))
    modules = {base.__module__ for base in type(component).__mro__}
    modules |= getattr(component, "code_modules", frozenset())
    foreign = _KNOWN_BY_VERSION | sys.stdlib_module_names
    return {module for module in modules if module.partition(".")[0] not in foreign}


@cache
def requirement_versions(package: str) -> dict[str, str]:
    """Return the installed versions of what a plugin's distribution requires.

    Their code computes, and is not hashed.
    """
    distributions = set()
    for kind in GROUPS:
        for entry in REGISTRY.entries(kind):
            if entry.package == package and entry.dist not in (HOME, "unknown"):
                distributions.add(entry.dist)
    names = set()
    for distribution in distributions:
        for line in requires(distribution) or []:
            match = re.match(r"[\w.-]+", line)
            if match:
                names.add(match[0].lower())
    versions = {name: _version(name) for name in sorted(names - {HOME, "torch"})}
    return {name: number for name, number in versions.items() if number}


def optional_versions(modules: Iterable[str]) -> dict[str, str]:
    """Return the installed versions of the extras that these modules of components import."""
    versions = {name: _library_version(name) for name in sorted(optional_libraries(modules))}
    return {name: number for name, number in versions.items() if number}


def _library_version(package: str) -> str:
    """Return the version of what brings a package to import, "" if it is not installed."""
    if number := _version(package):
        return number
    distributions = sorted(set(packages_distributions().get(package, ())))
    return " ".join(f"{name} {version(name)}" for name in distributions)


def _version(distribution: str) -> str:
    """Return "" for an extra that is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
