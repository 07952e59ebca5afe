"""Add a weights file to the zoo of a package: copy it, and write its row of zoo.toml.

The row comes from the header of the file. What no header knows is in an Addition. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from defend.errors import BadParameter, BadWeights, DefendError, suggest_names
from defend.files import write_file
from defend.registry import GROUPS, REGISTRY, Entry, Kind
from defend.spec import write_value
from defend.weights.header import Header, file_sha256, read_header
from defend.weights.rows import put_row, put_value
from defend.weights.zoo import (
    GROUP,
    ZooEntry,
    find_package_folder,
    read_folder,
    read_zoo,
    read_zoos,
)

RESERVED = ("auto", "untrained")  # words of the field `weights`
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class Addition:
    """What a row says that no header knows."""

    folder: Path  # that holds zoo.toml
    name: str
    licence: str
    default: bool = False
    surrogate: bool = False
    replace: bool = False  # a row of the same name

    def check(self, kind: str, component: str, dataset: str) -> None:
        """Raise BadParameter if the row cannot be added, before any work is done in vain.

        kind, component, dataset: what the weights are for.
        """
        self._check_options()
        rows = read_folder(self.folder, "")
        if self.name in rows and not self.replace:
            raise BadParameter(
                f"{self.folder / 'zoo.toml'} has a row {self.name} already; give another --name, "
                "or replace it with --overwrite"
            )
        entries = {**read_zoos(), **rows}
        self._check_name(entries)
        if self.default:
            self._check_default(entries, (kind, component, dataset))

    def _check_options(self) -> None:
        if not self.licence.strip():
            raise BadParameter(
                "expected the licence of these weights, got none; give --licence, as in "
                "--licence MIT"
            )
        if self.default and self.surrogate:
            raise BadParameter(
                "--default and --surrogate contradict: a surrogate is for transfer attacks alone; "
                "leave one out"
            )
        if not self.folder.is_dir():
            raise BadParameter(
                f"{self.folder}: expected the folder of a package, got none; create it, "
                "or give another one"
            )

    def _check_name(self, entries: Mapping[str, ZooEntry]) -> None:
        """Raise BadParameter for a name that no spec can hold, or that another package uses."""
        plain = _NAME.fullmatch(self.name) and write_value(self.name) == self.name
        if not plain or self.name in RESERVED:
            raise BadParameter(
                f"--name {self.name!r}: expected letters, digits, '.', '_' and '-', to be written "
                "as weights=NAME; give another name"
            )
        other = entries.get(self.name)
        if other and other.file.parent.resolve() != self.folder.resolve():
            raise BadParameter(
                f"--name {self.name}: the package {other.source} has weights of that name; "
                "give another --name"
            )

    def _check_default(self, entries: Mapping[str, ZooEntry], use: tuple[str, str, str]) -> None:
        """Raise BadParameter if another file is the default for the same use."""
        for entry in entries.values():
            same = (entry.kind, entry.component, entry.dataset) == use
            if same and entry.default and entry.name != self.name:
                raise BadParameter(
                    f"--default: {entry.name} is the default of {entry.component} on "
                    f"{entry.dataset} already, and two are ambiguous; leave --default out, or "
                    f"remove `default = true` from {entry.file.parent / 'zoo.toml'}"
                )


def add_weights(file: Path, addition: Addition, measured: Mapping[str, Any] | None = None) -> Path:
    """Copy a weights file into a zoo, write its row, and return the path of the copy.

    Raise BadWeights if the file holds no weights of a registered component, or if zoo.toml cannot
    take the row; BadParameter if the addition cannot work or its folder cannot be written.
    """
    header = read_header(file)
    check_registered(file, header)
    addition.check(header.kind, header.component, header.dataset)
    copy = addition.folder / f"{addition.name}.safetensors"
    toml = addition.folder / "zoo.toml"
    text = toml.read_bytes().decode() if toml.exists() else ""
    row = make_row(file, header, addition, measured or {})
    text = put_row(text, addition.name, row)  # may refuse, before anything is written
    is_there = copy.exists() and copy.samefile(file)
    if not is_there:
        _check_free(copy, addition)
    try:
        if not is_there:
            write_file(copy, file.read_bytes())
        write_file(toml, text)
    except OSError as e:
        raise BadParameter(
            f"{addition.folder}: cannot be written: {e.strerror}; give another --package"
        ) from None
    read_zoo.cache_clear()
    return copy


def _check_free(copy: Path, addition: Addition) -> None:
    if copy.exists() and not addition.replace:
        raise BadParameter(
            f"{copy} exists and is another file; give another --name, or replace it with "
            "--overwrite"
        )


def make_row(
    file: Path, header: Header, addition: Addition, measured: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the row of a weights file in the order of its lines in zoo.toml.

    file: holds what its copy in the zoo will hold.
    """
    row: dict[str, Any] = {
        "file": f"{addition.name}.safetensors",
        "sha256": file_sha256(file),
        "size": file.stat().st_size,
        "kind": header.kind,
        "component": header.component,
        "architecture": header.architecture,
        "dataset": header.dataset,
        "default": addition.default,
        "surrogate": addition.surrogate,
        "licence": addition.licence,
        "command": header.command,
        "seed": header.seed,
        "trained_on": header.trained_on.to_json(),
        "fields": dict(sorted(header.fields.items())),
        "uses": list(header.uses),
        "measured": dict(measured),
    }
    if header.architecture == header.component:
        del row["architecture"]
    if not header.uses:
        del row["uses"]
    return {key: value for key, value in row.items() if value is not False}


def check_registered(file: Path, header: Header) -> None:
    """Raise BadWeights unless an installed package registers a component that loads the file."""
    if header.kind not in GROUPS:
        raise BadWeights(f"{file}: expected weights of {', '.join(GROUPS)}, got {header.kind!r}")
    if find_loader(header.kind, header.component, header.architecture):
        return
    kind: Kind = header.kind
    components = [entry.component for entry in REGISTRY.entries(kind)]
    raise BadWeights(
        f"{file}: trained as the {kind} '{header.component}', which no installed package registers."
        f"{suggest_names(header.component, components)} Name the class in an entry point of the "
        f"group {GROUPS[kind]}, install its package, and train again."
    )


def find_loader(kind: str, component: str, architecture: str) -> Entry | None:
    """Return the component that weights were trained for, else one of the same architecture.

    Raise UnknownName for an unknown kind.
    """
    entries = REGISTRY.entries(kind)  # type: ignore[arg-type]  # it checks the kind
    own = [entry for entry in entries if entry.component == component]
    if own or architecture == component:
        return own[0] if own else None
    return next((e for e in entries if architecture_of(e) == architecture), None)


def architecture_of(entry: Entry) -> str:
    """Return the architecture that a component names; "" if it names none or is broken."""
    try:
        return str(getattr(entry.load(), "architecture", ""))
    except DefendError:
        return ""


def set_measured(entry: ZooEntry, measured: Mapping[str, Any]) -> None:
    """Add measured numbers to the row of an entry. Raise BadParameter, BadWeights."""
    toml = entry.file.parent / "zoo.toml"
    value = {**entry.measured, **measured}
    try:
        write_file(toml, put_value(toml.read_bytes().decode(), entry.name, "measured", value))
    except OSError as e:
        raise BadParameter(
            f"{toml}: cannot be written: {e.strerror}; give the folder of a checkout with --package"
        ) from None
    read_zoo.cache_clear()


def zoo_folder_of(header: Header) -> Path:
    """Return the folder in which the package of a component ships its weights.

    Raise BadParameter if no entry point names one.
    """
    loader = find_loader(header.kind, header.component, header.architecture)
    dist = loader.dist if loader else header.component
    for point in entry_points(group=GROUP):
        folder = find_package_folder(point.value)
        if folder and point.dist and point.dist.name == dist:
            return folder
    raise BadParameter(
        f"the package {dist} has no entry point of the group {GROUP}, which names the folder of "
        "its weights; add one and install the package again, or give a folder with --package"
    )


def is_installed(folder: Path) -> bool:
    """Return True if an entry point names this folder, so that its zoo.toml is read."""
    packages = [find_package_folder(point.value) for point in entry_points(group=GROUP)]
    return any(package and package.resolve() == folder.resolve() for package in packages)
