"""Units: a cell restricted to a range of images. Content-addressed files, written once, checked when read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from defend.benchmarks.bpda_network import bpda_network_hash
from defend.benchmarks.cell import Cell, Pipeline
from defend.benchmarks.components import (
    Components,
    code_hash,
    component_key,
    packages_of,
    requirement_versions,
)
from defend.files import write
from defend.hashing import cache_key, canonical, tensor_sha256

_LIBRARIES = (
    "adversarial-robustness-toolbox",
    "numpy",
    "pillow",
    "scipy",
    "torchvision",
)  # their code computes, and is not hashed


@dataclass(frozen=True)
class Unit:
    """A unit file, read and verified."""

    tensors: Mapping[str, Tensor]
    header: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class NumericSettings:
    """What all units of a run share."""

    precision: str
    layout: str
    threads: int
    device: str  # its type: cpu or cuda


def ranges(n: int, shard: int) -> list[tuple[int, int]]:
    return [(start, min(start + shard, n)) for start in range(0, n, shard)]


def key_inputs(
    cell: Cell,
    start: int,
    stop: int,
    data_sha256: str,
    components: Components,
    frame: NumericSettings,
) -> dict[str, Any]:
    """All that decides a unit's outcomes; its key is their hash."""
    attack = components.attack(cell.bare_attack)
    components = [
        attack,
        *(
            f(p)
            for p in (cell.attacked, cell.scored)
            for f in (
                lambda p: components.classifier(p.classifier),
                lambda p: components.defense(p.defense),
            )
        ),
    ]
    packages = set().union(*(packages_of(c) for c in components)) | {"defend"}
    return {
        "data": data_sha256,
        "range": [start, stop],
        "attacked": {
            **_pipeline(cell.attacked, components),
            **_gradient(cell.attacked, components),
            "drops": cell.drops,
        },
        "scored": _pipeline(cell.scored, components),
        "attack": component_key(attack, "attack"),
        "eps": cell.eps.value,
        "norm": cell.norm,
        "seed": cell.seed,
        "draws": cell.draws,
        "eot": cell.eot,
        **vars(frame),
        "torch": str(torch.__version__),
        "libraries": _versions(packages),
        "code": {p: code_hash(p) for p in sorted(packages)},
    }


def _versions(packages: set[str]) -> dict[str, str]:
    needed = {name: there for p in packages for name, there in requirement_versions(p).items()}
    return {name: version(name) for name in _LIBRARIES} | needed


def _pipeline(p: Pipeline, components: Components) -> dict[str, Any]:
    return {
        "classifier": component_key(components.classifier(p.classifier), "classifier"),
        "defense": component_key(components.defense(p.defense), "defense"),
    }


def _gradient(p: Pipeline, components: Components) -> dict[str, str | None]:
    """Where a purifier declares the identity, declared and identity are one; a learned one is its weights."""
    if p.gradient == "learned":
        return {
            "gradient": "learned",
            "learned": bpda_network_hash(components, p.classifier, p.defense),
        }
    return {
        "gradient": "identity"
        if p.gradient == "declared" and components.defense(p.defense).card.gradient == "identity"
        else p.gradient
    }


def path_of(run_dir: Path, key: str) -> Path:
    return run_dir / "units" / key[:2] / f"{key}.safetensors"


def write_unit(
    run_dir: Path, key: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> None:
    path = path_of(run_dir, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = canonical(header)
    body = {name: t.contiguous() for name, t in tensors.items()}
    meta = {
        "header": text,
        "header_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "tensors_sha256": _tensors_sha256(body),
    }
    write(path, save(body, meta))


def read_unit(run_dir: Path, key: str) -> Unit | None:
    """None where there is no such file, or a damaged one: then it is made again."""
    path = path_of(Path(run_dir), key)
    try:
        with safe_open(path, "pt") as f:
            meta = f.metadata() or {}
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118  (safe_open is no mapping)
    except (OSError, SafetensorError):
        return None
    text = meta.get("header", "")
    sound = meta.get("header_sha256") == hashlib.sha256(text.encode()).hexdigest() and meta.get(
        "tensors_sha256"
    ) == _tensors_sha256(tensors)
    if not sound or cache_key(json.loads(text)["made_of"]) != key:
        return None
    return Unit(tensors, json.loads(text))


def _tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(
        "".join(name + tensor_sha256(tensors[name]) for name in sorted(tensors)).encode()
    ).hexdigest()
