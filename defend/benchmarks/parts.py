"""Components by their specs, loaded once, and what identifies them in a key."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from defend.attack import Attack
from defend.chain import Chain
from defend.classifier import Classifier
from defend.dataset import Dataset
from defend.load import load
from defend.purifier import Purifier
from defend.registry import REGISTRY
from defend.spec import parse

_NO_OUTCOME = ("cli", "testing", "benchmarks/report", "benchmarks/tables", "benchmarks/stats")  # code that changes no unit


class Parts:
    """What a suite names, on one device."""

    def __init__(self, dataset: str, data_root: str | None, device: torch.device, precision: str = "float32", layout: str = "contiguous") -> None:
        self.data: Dataset = load(dataset, "dataset", root=data_root)
        self._dataset_name = parse(dataset)[0].name
        self.device, self.precision, self.layout = device, precision, layout
        self._kept: dict[tuple[str, str], Any] = {}

    def defense(self, spec: str) -> Purifier:
        return self._keep("defense", spec)  # type: ignore[no-any-return]

    def classifier(self, spec: str) -> Classifier:
        """Raises Mismatch where it does not fit the data set."""
        found: Classifier = self._keep("classifier", spec)
        found.check_fits(self.data.channels, self.data.size, self.data.classes, self._dataset_name)
        return found

    def attack(self, spec: str) -> Attack:
        return self._keep("attack", spec)  # type: ignore[no-any-return]

    def _keep(self, kind: Any, spec: str) -> Any:
        if (kind, spec) not in self._kept:
            made = load(spec, kind, self._dataset_name, self.device)
            if kind != "attack":
                made.run_as(self.precision, self.layout)
            self._kept[kind, spec] = made
        return self._kept[kind, spec]


def identity_of(component: Any, kind: Any) -> Any:
    """Settings and weights, not the spelling: what goes into a key."""
    if isinstance(component, Chain):
        return [identity_of(m, kind) for m in component.members]
    settings = {k: v for k, v in component.settings.items() if k != "weights"}
    return {
        "component": REGISTRY.component(kind, type(component)),
        "settings": settings,
        "weights": sorted(getattr(component, "weights_sha256", {}).values()),
    }


def packages_of(component: Any) -> set[str]:
    """The top-level packages whose code decides what it computes."""
    if isinstance(component, Chain):
        return set().union(*(packages_of(m) for m in component.members))
    return {type(component).__module__.partition(".")[0]}


@cache
def code_sha256(package: str) -> str:
    """Over the .py files of a top-level package; for defend without what changes no outcome."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return "none"
    top = Path(spec.origin)
    files = sorted(top.parent.rglob("*.py")) if spec.submodule_search_locations else [top]
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(top.parent).as_posix()
        if package != "defend" or not name.startswith(_NO_OUTCOME):
            digest.update(name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
