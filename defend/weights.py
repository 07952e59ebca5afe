"""Named weights: safetensors files whose header says what they belong to. Find one, verify its sha256, read it. Never a pickle.

A `defend.weights` entry point is a package folder with a zoo.toml, found without importing the package. Finding and reading headers
needs no torch.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defend.errors import BadWeights, UnknownName
from defend.files import write

if TYPE_CHECKING:
    from torch import Tensor

GROUP = "defend.weights"
KEY = "defend"  # our entry in a safetensors header


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a weights file says about itself."""

    kind: str  # "defense" or "classifier"
    component: str
    dataset: str
    fields: Mapping[str, Any]
    trained_on: str  # "clean", "corrupted" or "adversarial(attack, eps, classifiers)"
    command: str
    seed: int
    commit: str


@dataclass(frozen=True, kw_only=True)
class ZooEntry:
    """One line of a zoo.toml."""

    name: str
    file: Path
    sha256: str
    kind: str
    component: str
    dataset: str
    licence: str
    command: str
    seed: int
    trained_on: str
    default: bool = False
    surrogate: bool = False  # trained anew, for an attacker to transfer from; never a default
    size: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""  # the package it ships with


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A verified file: what a component loads."""

    name: str  # its name in a zoo, or its path
    path: Path
    sha256: str
    header: Header


def zoo(points: Callable[..., Iterable[EntryPoint]] = entry_points) -> dict[str, ZooEntry]:
    """Every named weights file of every installed package; the first package in the alphabet keeps a name, `defend` before all."""
    ordered = sorted(
        points(group=GROUP), key=lambda p: (p.value.partition(".")[0] != "defend", p.value)
    )
    found: dict[str, ZooEntry] = {}
    for point in ordered:
        try:
            rows = _read_zoo(point.value)
        except BadWeights as e:
            if point.value.partition(".")[0] == "defend":
                raise
            warnings.warn(
                f"{e}: the weights of {point.value} are left out", stacklevel=2
            )  # one broken package costs its own weights alone
            continue
        for name, entry in rows.items():
            found.setdefault(name, entry)
    return found


@cache
def _read_zoo(package: str) -> dict[str, ZooEntry]:
    top, _, rest = package.partition(".")
    spec = find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        return {}
    folder = Path(next(iter(spec.submodule_search_locations)), *rest.split(".") if rest else ())
    toml = folder / "zoo.toml"
    if not toml.is_file():
        return {}
    try:
        table = tomllib.loads(toml.read_text())
        return {
            name: ZooEntry(**{**row, "name": name, "file": folder / row["file"], "source": package})
            for name, row in table.items()
        }
    except (OSError, ValueError, TypeError, KeyError) as e:  # ValueError: no TOML, or no text
        raise BadWeights(f"{toml}: no list of weights ({type(e).__name__}: {e})") from None


def find(
    kind: str, component: str, weights: str, dataset: str | None, given: Mapping[str, Any]
) -> WeightsFile:
    """weights: "auto", a name, or a path. `given`: the fields the user set; they choose among the defaults of "auto", and a
    contradicting one is an error. Raises BadWeights, UnknownName."""
    entries = zoo()
    entry = (
        _auto(entries, kind, component, dataset, given)
        if weights == "auto"
        else entries.get(weights)
    )
    if entry is not None:
        file = WeightsFile(
            name=entry.name,
            path=entry.file,
            sha256=sha256(entry.file, entry.sha256),
            header=header(entry.file),
        )
    elif Path(weights).is_file():
        file = WeightsFile(
            name=weights,
            path=Path(weights),
            sha256=sha256(Path(weights)),
            header=header(Path(weights)),
        )
    else:
        mine = sorted(
            e.name for e in entries.values() if (e.kind, e.component) == (kind, component)
        )
        close = difflib.get_close_matches(weights, mine, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UnknownName(
            f"{component}: no weights named {weights!r}, nor a file of that path.{hint} There are: {', '.join(mine) or 'none'}."
        )
    _fits(file, kind, component, given)
    return file


def _auto(
    entries: Mapping[str, ZooEntry],
    kind: str,
    component: str,
    dataset: str | None,
    given: Mapping[str, Any],
) -> ZooEntry:
    mine = [e for e in entries.values() if (e.kind, e.component) == (kind, component)]
    here = [e for e in mine if dataset in (None, e.dataset)]
    fitting = [e for e in here if all(e.fields.get(k, v) == v for k, v in given.items())]
    hits = [e for e in fitting if e.default]
    if len(hits) == 1:
        return hits[0]
    where = f" on {dataset}" if dataset else ""
    if hits:
        which = "weights=NAME" if dataset else "weights=NAME, or say which data set with --dataset"
        raise BadWeights(
            f"{component}: weights=auto is ambiguous{where}: {', '.join(e.name for e in hits)}. Write {which}."
        )
    asked = [f"{k}={v}" for k, v in given.items()]
    nothing = f"{component}: weights=auto finds nothing trained{', '.join([where, *asked])}"
    if alike := [e.name for e in fitting if not e.surrogate]:
        raise BadWeights(
            f"{nothing} that is a default. Write weights=NAME, one of: {', '.join(alike)}."
        )
    spec = ":".join([component, ",".join(asked)]) if asked else component
    train = f"Train some with `defend train {kind} {spec} --dataset {dataset or 'D'}`, or give weights=PATH."
    raise BadWeights(
        f"{nothing}; weights there are{where}: {', '.join(e.name for e in here if not e.surrogate) or 'none'}. {train}"
    )


def _fits(file: WeightsFile, kind: str, component: str, given: Mapping[str, Any]) -> None:
    h = file.header
    if (h.kind, h.component) != (kind, component):
        raise BadWeights(
            f"{file.name}: holds weights of the {h.kind} '{h.component}', wanted the {kind} '{component}'"
        )
    if wrong := [
        f"{k}={h.fields[k]!r} in the file, {v!r} given"
        for k, v in given.items()
        if k in h.fields and h.fields[k] != v
    ]:
        raise BadWeights(
            f"{component}: weights {file.name} contradict the spec: {'; '.join(wrong)}. Leave the field out, or choose other weights."
        )


def sha256(path: Path, wanted: str | None = None) -> str:
    """Of the file; raises BadWeights where it is missing or not the wanted one."""
    try:
        with path.open("rb") as f:
            got = hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise BadWeights(
            f"{path}: cannot be read: {e.strerror}. Reinstall the package it ships with."
        ) from None
    if wanted not in (None, got):
        raise BadWeights(
            f"{path}: sha256 is {got[:12]}..., its zoo.toml says {str(wanted)[:12]}...: damaged or replaced. Reinstall it."
        )
    return got


def header(path: Path) -> Header:
    """Read without torch. Raises BadWeights."""
    try:
        with path.open("rb") as f:
            size = int.from_bytes(f.read(8), "little")
            if not 0 < size < 10**8:
                raise ValueError("no safetensors header")
            meta = json.loads(f.read(size)).get("__metadata__", {})
        return Header(**json.loads(meta[KEY]))
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as e:  # the last two: JSON of another shape
        raise BadWeights(
            f"{path}: not a weights file of defend ({type(e).__name__}: {e}). `defend train` writes them."
        ) from None


def load(path: Path) -> dict[str, Tensor]:
    """The tensors, float16 widened to float32. Raises BadWeights."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as e:
        raise BadWeights(f"{path}: damaged: {e}") from None
    return {name: t.float() if t.dtype == torch.float16 else t for name, t in tensors.items()}


def save(path: Path, tensors: Mapping[str, Tensor], head: Header) -> None:
    from safetensors.torch import save as to_bytes

    meta = {KEY: json.dumps({**vars(head), "fields": dict(head.fields)}, sort_keys=True)}
    write(
        path, to_bytes({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, meta)
    )  # save_file makes files only the owner can read
