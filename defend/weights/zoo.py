"""The weights that installed packages ship, and the search for the file that a spec names.

No torch.

An entry point of the group `defend.weights` names a package folder with a zoo.toml. The folder is
found without importing the package.
"""

from __future__ import annotations

import tomllib
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from defend.errors import AmbiguousName, BadWeights, UnknownName, suggest_names
from defend.files import user_path
from defend.registry import REGISTRY
from defend.trained_on import TrainedOn, read_trained_on
from defend.weights.header import Header, WeightsFile, file_sha256, read_header, read_uses

GROUP = "defend.weights"
HOME = "defend"  # the package whose names no other package can shadow


@dataclass(frozen=True, kw_only=True)
class ZooEntry:
    """One table of a zoo.toml: a weights file that a package ships."""

    name: str
    file: Path
    sha256: str
    kind: str
    component: str
    architecture: str
    dataset: str
    licence: str
    command: str
    seed: int
    trained_on: TrainedOn
    default: bool = False
    surrogate: bool = False  # retrained for transfer attacks; such an entry is never a default
    size: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)
    uses: tuple[str, ...] = ()  # names of `fields` that do not shape the network
    measured: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""  # the package it ships with


def read_zoos(
    entry_points_of: Callable[..., Iterable[EntryPoint]] = entry_points,
) -> dict[str, ZooEntry]:
    """Return every named weights file of every installed package, by name.

    If two packages use one name, `defend` comes first, then the package that is first in the
    alphabet. A broken zoo of another package costs a warning and its own weights alone.
    """
    entries: dict[str, ZooEntry] = {}
    for point in sorted(entry_points_of(group=GROUP), key=_precedence):
        try:
            zoo = read_zoo(point.value)
        except BadWeights as e:
            if _is_home(point.value):
                raise
            warnings.warn(f"{e}: the weights of {point.value} are left out", stacklevel=2)
            continue
        for name, entry in zoo.items():
            entries.setdefault(name, entry)
    return entries


def _is_home(package: str) -> bool:
    """Return True for packages below `defend`."""
    return package.partition(".")[0] == HOME


def _precedence(point: EntryPoint) -> tuple[bool, str]:
    """Return the sort key that puts `defend` first, then the packages by name."""
    return not _is_home(point.value), point.value


@cache
def read_zoo(package: str) -> dict[str, ZooEntry]:
    """Return the entries of one package's zoo.toml, none if it has no such file.

    Raise BadWeights if the file is broken.
    """
    folder = find_package_folder(package)
    return read_folder(folder, package) if folder else {}


def read_folder(folder: Path, package: str) -> dict[str, ZooEntry]:
    """Return the entries of the zoo.toml in a folder, none if it has no such file.

    package: the name of the folder's package, "" for a folder that no entry point names. Raise
    BadWeights if the file is broken.
    """
    toml = folder / "zoo.toml"
    if not toml.is_file():
        return {}
    try:
        tables = tomllib.loads(toml.read_text())
        return {name: _make_entry(name, table, folder, package) for name, table in tables.items()}
    except (OSError, ValueError, TypeError, KeyError) as e:  # ValueError: not TOML, or not UTF-8
        raise BadWeights(f"{toml}: not a list of weights ({type(e).__name__}: {e})") from None


def find_package_folder(package: str) -> Path | None:
    """Return the folder of a dotted package without importing it.

    Return None if the package is not installed.
    """
    top, _, below = package.partition(".")
    spec = find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations)))
    return folder.joinpath(*below.split(".")) if below else folder


def _make_entry(name: str, table: Mapping[str, Any], folder: Path, package: str) -> ZooEntry:
    """Return the entry of one table of a zoo.toml. Raise KeyError, TypeError for a wrong table."""
    component = _registered_name(table["kind"], table["component"])
    fields = {
        "architecture": component,  # of the component alone, where none is named
        **table,
        "component": component,
        "name": name,
        "file": folder / table["file"],
        "source": package,
        "trained_on": read_trained_on(table["trained_on"]),
        "uses": read_uses(table.get("uses", [])),
    }
    return ZooEntry(**fields)


def _registered_name(kind: Any, component: str) -> str:
    """Return the name that weights carry for the component that a row names.

    A row written by hand may leave out the package: the bare name of a component of another
    package than `defend` would be found by nothing. A name that nothing or several packages
    register stays as it is.
    """
    try:
        return REGISTRY.entry(kind, component).component
    except (UnknownName, AmbiguousName):
        return component


def is_same_component(one: str, other: str) -> bool:
    """Return True for one component under two names: its package was renamed, or it moved."""
    return one.rpartition("/")[2] == other.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a component asks of a weights file."""

    kind: str
    component: str
    architecture: str
    dataset: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)  # that were set and shape the network
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of those fields that have one


def decided_fields(source: Header | ZooEntry, component: str) -> dict[str, Any]:
    """Return the fields that a file decides for a component: if it was trained for another one,
    those that are no use of that one.
    """
    is_own = is_same_component(source.component, component)
    return {k: v for k, v in source.fields.items() if is_own or k not in source.uses}


def find_weights(weights: str, wanted: Wanted) -> WeightsFile:
    """Return the verified weights file that a component asks for.

    weights: "auto", a name in a zoo, or a path. The wanted fields choose among the defaults of
    "auto", and none may contradict the file's header. Raise UnknownName if there is no such name or
    path, BadWeights if "auto" does not decide, or if the file is damaged or does not fit.
    """
    entries = read_zoos()
    if weights == "auto":
        file = _verify_entry(_choose_default(entries, wanted))
    elif weights in entries:
        file = _verify_entry(entries[weights])
    elif user_path(weights).is_file():
        path = user_path(weights)
        file = WeightsFile(
            name=weights, path=path, sha256=file_sha256(path), header=read_header(path)
        )
    else:
        candidates = _select_architecture(entries, wanted)
        raise UnknownName(_describe_unknown_weights(wanted.component, weights, candidates))
    _check_fits(file, wanted)
    return file


def _verify_entry(entry: ZooEntry) -> WeightsFile:
    """Return the file of a zoo entry. Raise BadWeights if its hash or its header is wrong."""
    return WeightsFile(
        name=entry.name,
        path=entry.file,
        sha256=file_sha256(entry.file, entry.sha256),
        header=read_header(entry.file),
    )


def _select_architecture(entries: Mapping[str, ZooEntry], wanted: Wanted) -> list[ZooEntry]:
    """Return the entries that hold weights of this architecture."""
    return [
        e
        for e in entries.values()
        if (e.kind, e.architecture) == (wanted.kind, wanted.architecture)
    ]


def _describe_unknown_weights(component: str, weights: str, entries: Iterable[ZooEntry]) -> str:
    """Return the error for weights that are neither a name nor a file.

    entries: all weights of the component, of which the nearest names are suggested.
    """
    names = sorted(e.name for e in entries)
    return (
        f"{component}: no weights named {weights!r}, nor a file of that path."
        f"{suggest_names(weights, names)} Weights of {component}: {', '.join(names) or 'none'}."
    )


def _choose_default(entries: Mapping[str, ZooEntry], wanted: Wanted) -> ZooEntry:
    """Return the one default for this component, data set and these fields.

    Weights that were trained for the component itself go before others of its architecture. Raise
    BadWeights if none or several fit.
    """
    on_dataset = [
        e for e in _select_architecture(entries, wanted) if wanted.dataset in (None, e.dataset)
    ]
    fitting = [e for e in on_dataset if _agrees(decided_fields(e, wanted.component), wanted.fields)]
    defaults = [e for e in fitting if e.default]
    exact = [e for e in defaults if not _contradictions(e, wanted)]
    chosen = _prefer_own(exact or defaults, wanted.component)
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise BadWeights(_describe_ambiguity(wanted.component, wanted.dataset, chosen))
    raise BadWeights(_describe_missing_default(wanted, on_dataset, fitting))


def _agrees(fields: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Return True if no field contradicts a wanted one."""
    return all(k not in fields or fields[k] == as_json(v) for k, v in wanted.items())


def as_json(value: Any) -> Any:
    """Return a value as JSON and TOML hold it: a tuple becomes a list."""
    return [as_json(v) for v in value] if isinstance(value, tuple) else value


def _prefer_own(entries: list[ZooEntry], component: str) -> list[ZooEntry]:
    """Return those that were trained for the component itself, if there are any."""
    own = [e for e in entries if e.component == component]
    moved = [e for e in entries if is_same_component(e.component, component)]
    return own or moved or entries


def _describe_ambiguity(component: str, dataset: str | None, defaults: Iterable[ZooEntry]) -> str:
    """Return the error of "auto" with several defaults, which names them."""
    on = f" on {dataset}" if dataset else ""
    choice = "weights=NAME" if dataset else "weights=NAME, or name the data set with --dataset"
    names = ", ".join(e.name for e in defaults)
    return f"{component}: weights=auto is ambiguous{on}: {names}. Write {choice}."


def _describe_missing_default(
    wanted: Wanted, on_dataset: Iterable[ZooEntry], fitting: Iterable[ZooEntry]
) -> str:
    """Return the error of "auto" without a default.

    It names the weights that fit, else those of the data set and the way to train some.
    """
    component, dataset = wanted.component, wanted.dataset
    on = f" on {dataset}" if dataset else ""
    settings = [f"{key}={value}" for key, value in wanted.fields.items()]
    searched = f"{component}: weights=auto finds nothing trained{', '.join([on, *settings])}"
    names = [e.name for e in fitting if not e.surrogate]
    if names:
        return f"{searched} that is a default. Write weights=NAME, one of: {', '.join(names)}."
    spec = f"{component}:{','.join(settings)}" if settings else component
    available = ", ".join(e.name for e in on_dataset if not e.surrogate) or "none"
    return (
        f"{searched}; available weights{on}: {available}. Train some with "
        f"`defend train {wanted.kind} {spec} --dataset {dataset or 'D'}`, or write weights=PATH."
    )


def _check_fits(file: WeightsFile, wanted: Wanted) -> None:
    """Raise BadWeights for another architecture, or a header that contradicts a field."""
    header = file.header
    if (header.kind, header.architecture) != (wanted.kind, wanted.architecture):
        raise BadWeights(
            f"{file.name}: expected weights of the {wanted.kind} '{wanted.architecture}', "
            f"got weights of the {header.kind} '{header.architecture}'"
        )
    contradictions = _contradictions(header, wanted)
    if contradictions:
        raise BadWeights(
            f"{wanted.component}: weights {file.name} contradict the spec: "
            f"{'; '.join(contradictions)}. Leave the field out, choose other weights, or name it in"
            " `uses` of the class if it does not shape the network."
        )


def _contradictions(source: Header | ZooEntry, wanted: Wanted) -> list[str]:
    """Return how the wanted fields differ from those of a file.

    A field that the file does not know shaped its network by the default, if at all.
    """
    fields, differences = decided_fields(source, wanted.component), []
    for key, value in wanted.fields.items():
        known = fields if key in fields else wanted.defaults
        if key not in known or as_json(known[key]) != as_json(value):
            has = f"{key}={fields[key]!r}" if key in fields else f"no {key}"
            differences.append(f"the file has {has}, the spec has {key}={value!r}")
    return differences
