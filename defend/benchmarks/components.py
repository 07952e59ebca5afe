"""Components by their specs, loaded once, and what identifies them in a key."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from defend.attack import Attack
from defend.chain import Chain, members_of
from defend.classifier import Classifier
from defend.dataset import Dataset
from defend.errors import BadParameter, BrokenPurifier
from defend.hashing import tensor_sha256
from defend.learned import Frozen, Learned
from defend.load import dataset_name, load
from defend.purifier import Purifier, overridden
from defend.registry import GROUPS, HOME, REGISTRY
from defend.weights import sha256

_BY_VERSION = {"torch", "art"}  # in the key by their versions
# code that changes no unit
_NO_OUTCOME = (
    "cli",
    "testing",
    "benchmarks/report",
    "benchmarks/html",
    "benchmarks/tables",
    "benchmarks/stats",
    "benchmarks/audit",
)


class Components:
    """What a suite names, on one device."""

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
        self._kept: dict[tuple[str, str], Any] = {}
        self.clean: dict[
            Any, Any
        ] = {}  # outcomes on clean images, which all units of a pipeline and a range share
        self.imitations: dict[
            tuple[str, str], Any
        ] = {}  # (classifier, defense) -> its learned gradient, or why there is none
        self.fitting_images: tuple[torch.Tensor, ...] | None = (
            None  # on which those are fitted and measured
        )

    def defense(self, spec: str) -> Purifier:
        return self._keep("defense", spec)  # type: ignore[no-any-return]

    def fresh_defense(self, spec: str) -> Purifier:
        """One that has seen nothing yet."""
        return self._ready(self._loaded("defense", spec), "defense", spec)  # type: ignore[no-any-return]

    def classifier(self, spec: str) -> Classifier:
        """Raises Mismatch where it does not fit the data set."""
        found: Classifier = self._keep("classifier", spec)
        found.check_fits(self.data.channels, self.data.size, self.data.classes, self.dataset_name)
        return found

    def attack(self, spec: str) -> Attack:
        return self._keep("attack", spec)  # type: ignore[no-any-return]

    def _keep(self, kind: Any, spec: str) -> Any:
        if (kind, spec) not in self._kept:
            made = self._loaded(kind, spec)
            for member in members_of(made):
                object.__setattr__(
                    member, "held", content_hash(member)
                )  # before it is used: what it gathers then is another matter
            self._kept[kind, spec] = self._ready(made, kind, spec)
        return self._kept[kind, spec]

    def _loaded(self, kind: Any, spec: str) -> Any:
        return load(spec, kind, self.dataset_name, self.device)

    def _ready(self, made: Any, kind: Any, spec: str) -> Any:
        if kind != "attack":
            check_final(made)
            check_trained(made, spec)
            made.run_as(self.precision, self.layout)
        return made


def check_final(component: Any) -> None:
    """Raises BrokenPurifier: attacks and scores would meet what it makes of them."""
    for member in {component, *members_of(component)}:
        if isinstance(member, Purifier) and (own := overridden(member)):
            raise BrokenPurifier(
                f"{type(member).__name__}: has its own {', '.join(own)}, which all purifiers share: write purify alone"
            )


def check_trained(component: Any, spec: str) -> None:
    """Raises BadParameter: a component without weights measures nothing."""
    for member in members_of(component):
        if isinstance(member, Learned) and not member.weights_sha256:
            raise BadParameter(
                f"{spec}: weights=untrained measures nothing; train it with `defend train` or name its weights"
            )


def component_key(component: Any, kind: Any) -> Any:
    """Settings and weights, not the spelling: what goes into a key."""
    if isinstance(component, Chain):
        return [component_key(m, kind) for m in component.members]
    named = (
        "weights" if isinstance(component, Learned) else None
    )  # their hash counts, not their name
    settings = {k: v for k, v in component.settings.items() if k != named}
    held = getattr(component, "held", "")
    return {
        "component": REGISTRY.component(kind, type(component)),
        "settings": settings,
        "weights": [
            digest for _, digest in sorted(getattr(component, "weights_sha256", {}).items())
        ],  # by their roles
        **({"held": held} if held else {}),
    }


def content_hash(component: Any) -> str:
    """The hash of what no setting shows and no header of weights: tensors, arrays and networks among its attributes, and files that its
    settings name. A model trained anew into the same file is another purifier. "" where there is nothing of the kind."""
    learned = isinstance(component, Learned)  # its network is known by its file
    files = [
        Path(v)
        for k, v in component.settings.items()
        if isinstance(v, str) and not (learned and k == "weights") and Path(v).is_file()
    ]
    tensors = list(
        _tensors(
            {k: v for k, v in vars(component).items() if not (learned and isinstance(v, Frozen))}
        )
    )
    return (
        hashlib.sha256((tensor_sha256(*tensors) + "".join(map(sha256, files))).encode()).hexdigest()
        if tensors or files
        else ""
    )


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value.float() if value.dtype == torch.bfloat16 else value  # numpy has none
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        yield torch.from_numpy(value)
    elif isinstance(value, nn.Module):
        yield from _tensors(value.state_dict())
    elif isinstance(value, Mapping):
        yield from (t for v in value.values() for t in _tensors(v))
    elif isinstance(value, list | tuple):
        yield from (t for v in value for t in _tensors(v))


def packages_of(component: Any) -> set[str]:
    """The top-level packages whose code decides what it computes."""
    if isinstance(component, Chain):
        return set().union(*(packages_of(m) for m in component.members))
    tops = {base.__module__.partition(".")[0] for base in type(component).__mro__}
    return tops - _BY_VERSION - sys.stdlib_module_names


@cache
def requirement_versions(package: str) -> dict[str, str]:
    """What the distribution of a plugin's package says that it needs, with the versions that are here: their code computes, and is not hashed."""
    dists = {
        e.dist
        for kind in GROUPS
        for e in REGISTRY.entries(kind)
        if e.package == package and e.dist not in (HOME, "unknown")
    }
    named = [re.match(r"[\w.-]+", line) for dist in sorted(dists) for line in requires(dist) or []]
    found = {m[0].lower() for m in named if m} - {HOME, "torch"}
    return {name: there for name in sorted(found) if (there := _version(name))}


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:  # an extra that is not installed
        return ""


@cache
def code_hash(package: str) -> str:
    """Over the .py files of a top-level package; for defend without what changes no outcome. Raises BadParameter where there are none."""
    digest, files = hashlib.sha256(), _files(package)
    for name, file in files:
        if package != "defend" or not name.startswith(_NO_OUTCOME):
            digest.update(name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    if not files:
        raise BadParameter(
            f"package {package}: has no .py files to identify its results by; the bench runs components of installed packages"
        )
    return digest.hexdigest()


def _files(package: str) -> list[tuple[str, Path]]:
    """(name inside the package, file), in order; a package without __init__.py has several folders, or one."""
    try:
        spec = find_spec(package)
    except ValueError:  # __main__
        spec = None
    if spec is None:
        return []
    if spec.submodule_search_locations:
        return [
            (f.relative_to(folder).as_posix(), f)
            for folder in map(Path, spec.submodule_search_locations)
            for f in sorted(folder.rglob("*.py"))
        ]
    return (
        [(Path(spec.origin).name, Path(spec.origin))]
        if spec.origin and spec.origin.endswith(".py")
        else []
    )
