"""Components by name: entry points are read, and a plugin is imported only when it is used.

This module imports no torch and no ART, so that `defend list` answers at once.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, requires
from importlib.util import find_spec
from typing import Any, Literal

from defend.errors import (
    AmbiguousName,
    BadParameter,
    BrokenPlugin,
    DefendError,
    MissingPackage,
    UnknownName,
    suggest_names,
)
from defend.local_files import LocalCode, local_label
from defend.plugin_checks import check_call, check_initialised, check_own_init
from defend.spec import Configured, Spec, typed_params

Kind = Literal["defense", "attack", "classifier", "dataset"]

GROUPS: dict[Kind, str] = {
    "defense": "defend.defenses",
    "attack": "defend.attacks",
    "classifier": "defend.classifiers",
    "dataset": "defend.datasets",
}
BASES: dict[Kind, str] = {  # the class from which every class of a kind is derived
    "defense": "Purifier",
    "attack": "Attack",
    "classifier": "Classifier",
    "dataset": "Dataset",
}
OBJECT = "an object"  # the distribution of objects that a caller gave
LOCAL = "a file"  # the distribution of components in files of the user
HOME = "defend-purifiers"  # the distribution whose bare names no other can shadow
PACKAGE = "defend"  # its package, which full names begin with


@dataclass(frozen=True)
class Entry:
    """A registered component that is not imported yet."""

    kind: Kind
    name: str
    target: str  # "module:attribute"
    dist: str
    version: str
    _point: EntryPoint

    @classmethod
    def of_point(cls, kind: Kind, point: EntryPoint) -> Entry:
        """Return the entry of an entry point. Without a distribution it is foreign: "unknown"."""
        dist = point.dist.name if point.dist else "unknown"
        version = point.dist.version if point.dist else "?"
        return cls(kind, point.name, point.value, dist, version, point)

    @property
    def full_name(self) -> str:
        """The name with its distribution, or with `defend`, as in "defend/jpeg"."""
        return f"{PACKAGE if self.dist == HOME else self.dist}/{self.name}"

    @property
    def component(self) -> str:
        """The name that weights carry: the bare name in `defend`, the full name elsewhere."""
        return self.name if self.dist == HOME else self.full_name

    @property
    def package(self) -> str:
        """The top-level package that the component comes from."""
        return self.target.partition(":")[0].partition(".")[0]

    def load(self) -> Callable[..., Any]:
        """Import the component and return its class or function.

        Raise BrokenPlugin, or MissingPackage if it imports a package that is not installed.
        """
        try:
            factory = self._point.load()
            if not callable(factory):
                raise TypeError(
                    f"{self.target}: expected a class or a function, got {type(factory).__name__}"
                )
            return factory  # type: ignore[no-any-return]
        except MissingPackage:
            raise
        except (Exception, SystemExit) as e:
            # A plugin may raise anything at import, and may even exit; the others still work.
            if isinstance(e, ModuleNotFoundError) and self._is_foreign(e.name):
                raise self.describe_missing(str(e.name)) from e
            raise BrokenPlugin(
                f"{self.kind} '{self.name}' from {self.dist} {self.version} could not be imported "
                f"({self.target}): {type(e).__name__}: {e}. Reinstall or remove {self.dist}."
            ) from e

    def _is_foreign(self, module: str | None) -> bool:
        """Return True for a module of another package than the component's."""
        return module is not None and module.partition(".")[0] != self.package

    def describe_missing(self, module: str) -> MissingPackage:
        """Return the error for a module that the component imports and that is not installed."""
        package = module.partition(".")[0]
        extra = find_extra(self.dist, package)
        to_install = f"'{self.dist}[{extra}]'" if extra else package
        if find_spec(package) is None:
            state, command = "is not installed", f"pip install {to_install}"
        else:
            state, command = f"has no {module} here", f"pip install --upgrade {to_install}"
        return MissingPackage(
            f"{self.kind} '{self.name}' from {self.dist} {self.version} needs the package "
            f"{package}, which {state}; type `{command}`"
        )


@dataclass(frozen=True)
class OwnEntry(Entry):
    """A component of the user that no package names: one in a file, or an object."""

    loader: Callable[[], Callable[..., Any]]

    @classmethod
    def of_file(cls, kind: Kind, code: LocalCode) -> OwnEntry:
        """Return the entry of a component in a file of the user. Raise BadParameter."""
        point = code.entry_point
        return cls(kind, code.label, point.value, LOCAL, "", point, code.load)

    @classmethod
    def of_object(cls, kind: Kind, name: str, factory: Callable[..., Any]) -> OwnEntry:
        """Return the entry of what a factory returns."""
        point = EntryPoint(name, name, GROUPS[kind])
        return cls(kind, name, name, OBJECT, "", point, lambda: factory)

    @property
    def component(self) -> str:
        """The name that weights and records carry, as FILE.py:NAME."""
        return self.name

    def load(self) -> Callable[..., Any]:
        """Return the class or the function. Raise BadParameter, BrokenPlugin, MissingPackage."""
        return self.loader()


_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+).*;.*extra\s*==\s*['\"](?P<extra>[\w.-]+)['\"]")


def find_extra(dist: str, package: str) -> str:
    """Return the extra of a distribution that brings a package, "" if there is none."""
    try:
        lines = requires(dist) or []
    except PackageNotFoundError:
        return ""
    for line in lines:
        match = _REQUIREMENT.match(line)
        if match and match["name"].replace("-", "_").lower() == package.lower():
            return match["extra"]
    return ""


# Attacks as papers call them, and the name of ART's class with the field that it needs.
_ART_NAMES = {
    "cw": "CarliniL2Method",
    "cwl2": "CarliniL2Method",
    "cwlinf": "CarliniLInfMethod",
    "carlini": "CarliniL2Method",
    "carliniwagner": "CarliniL2Method",
    "deepfool": "DeepFool",
    "hopskipjump": "HopSkipJump,access=labels",
    "hsj": "HopSkipJump,access=labels",
    "boundary": "BoundaryAttack,access=labels",
    "boundaryattack": "BoundaryAttack,access=labels",
    "geoda": "GeoDA,access=labels",
    "bim": "BasicIterativeMethod",
    "mim": "MomentumIterativeMethod",
    "mifgsm": "MomentumIterativeMethod",
    "ead": "ElasticNet",
    "elasticnet": "ElasticNet",
    "jsma": "SaliencyMapMethod",
    "newtonfool": "NewtonFool",
    "zoo": "ZooAttack,access=scores",
    "simba": "SimBA,access=scores",
}


class Registry:
    """All installed components, by kind and name."""

    def __init__(self, points: Callable[..., Iterable[EntryPoint]] = entry_points) -> None:
        """points: a function of `group` that returns its entry points."""
        self._points = points
        self._objects: dict[tuple[Kind, str], Entry] = {}

    def add_object(self, kind: Kind, name: str, factory: Callable[..., Any]) -> None:
        """Let a name stand for what the factory returns, in this process alone."""
        self._objects[kind, name] = OwnEntry.of_object(kind, name, factory)

    @cached_property
    def _entries(self) -> dict[Kind, list[Entry]]:
        """The entries of every kind, read once."""
        return {kind: self._scan(kind) for kind in GROUPS}

    def _scan(self, kind: Kind) -> list[Entry]:
        """Return the entries of a kind by name, those of `defend` first.

        A point listed twice counts once.
        """
        unique: dict[tuple[str, str, str], Entry] = {}
        for point in self._points(group=GROUPS[kind]):
            entry = Entry.of_point(kind, point)
            unique[entry.name, entry.target, entry.dist] = entry
        return sorted(unique.values(), key=lambda e: (e.name, e.dist != HOME, e.dist))

    def entries(self, kind: Kind) -> list[Entry]:
        """Return the components of a kind. Raise UnknownName for an unknown kind."""
        if kind not in GROUPS:
            raise UnknownName(
                f"unknown kind '{kind}': expected {', '.join(GROUPS)}.{suggest_names(kind, GROUPS)}"
            )
        return self._entries[kind]

    def kinds_of(self, name: str) -> list[Kind]:
        """Return the kinds that have a component of this name.

        Of a user's file it is the kind of the class; of a function it is not known.
        """
        if Spec(name).file is not None:
            return _kinds_of_class(LocalCode.of_name(name).load())
        return [kind for kind in GROUPS if self._matches(kind, name)]

    def _matches(self, kind: Kind, name: str) -> list[Entry]:
        """Return the entries that a bare or full name may mean; an entry of `defend` excludes all
        others.
        """
        matches = [e for e in self.entries(kind) if name in (e.name, e.full_name)]
        return [e for e in matches if e.dist == HOME] or matches

    def entry(self, kind: Kind, name: str) -> Entry:
        """Return the component of a bare or full name. Raise UnknownName, AmbiguousName."""
        if (kind, name) in self._objects:
            return self._objects[kind, name]
        if Spec(name).file is not None:
            return OwnEntry.of_file(kind, LocalCode.of_name(name))
        matches = self._matches(kind, name)
        if not matches:
            raise UnknownName(self._unknown(kind, name))
        if len(matches) > 1:
            full_names = ", ".join(e.full_name for e in matches)
            raise AmbiguousName(f"{kind} '{name}' is given by {full_names}; write one in full.")
        return matches[0]

    def _unknown(self, kind: Kind, name: str) -> str:
        """Word the error for an unknown name: name its real kind, or the nearest names."""
        entries = self.entries(kind)
        other_kinds = self.kinds_of(name)
        known_elsewhere = _ART_NAMES.get(_squeeze(name)) if kind == "attack" else None
        if other_kinds:
            article = "an" if other_kinds[0][0] in "aeiou" else "a"
            hint = f" It is {article} {other_kinds[0]}."
        elif known_elsewhere:
            hint = f" ART has it: write art:name={known_elsewhere}."
        else:
            hint = suggest_names(name, map(self.to_type, entries))
        return f"unknown {kind} '{name}'.{hint} `defend list {kind}s` shows all {len(entries)}."

    def to_type(self, entry: Entry) -> str:
        """Return the name to type: the bare one, unless another package has a component of that
        name.
        """
        bearers = [e for e in self._entries[entry.kind] if e.name == entry.name]
        return entry.name if entry.dist == HOME or len(bearers) == 1 else entry.full_name

    def create(self, kind: Kind, name: str, /, **params: Any) -> Any:
        """Return a new component.

        Raise UnknownName, AmbiguousName, BrokenPlugin, MissingPackage, BadParameter.
        """
        entry = self.entry(kind, name)
        try:
            component = self._call(entry.load(), f"{kind} '{name}'", params)
        except ModuleNotFoundError as e:  # a package that is imported when it is used
            raise entry.describe_missing(e.name or str(e)) from e
        check_initialised(component, kind)
        check_call(component, kind)
        return component

    @staticmethod
    def _call(factory: Callable[..., Any], label: str, params: dict[str, Any]) -> Any:
        """Return what the class or function makes of the parameters. Raise BadParameter."""
        if isinstance(factory, type) and issubclass(factory, Configured):
            check_own_init(factory)
            return factory(**typed_params(factory, params, label))
        signature = inspect.signature(factory)
        try:
            signature.bind(**params)
        except TypeError as e:
            raise BadParameter(f"{label}: {e}; it takes {signature}") from None
        return factory(**params)

    def of_spec(self, kind: Kind, spec: Spec, /, **more: Any) -> Any:
        """Return the component that a spec describes. more: further fields, which replace those of
        the spec.
        """
        return self.create(kind, spec.name, **{**dict(spec.params), **more})

    def component(self, kind: Kind, cls: type) -> str:
        """Return the name that weights of a class carry; its own name if it is not registered."""
        if label := local_label(cls):
            return label
        target = f"{cls.__module__}:{cls.__qualname__}"
        entries = self.entries(kind)
        named = [entry for entry in entries if entry.target == target]
        # A class that is named by another module, and that module is imported only then.
        named = named or [entry for entry in entries if _exports(entry, cls)]
        return named[0].component if named else cls.__qualname__


def _squeeze(name: str) -> str:
    """Return a name without the marks by which people write it otherwise: cw-l2 and CW_L2."""
    return "".join(c for c in name.lower() if c.isalnum())


def _kinds_of_class(factory: object) -> list[Kind]:
    """Return the kind of a class by the base that it has; nothing for a function."""
    names = {base.__qualname__ for base in getattr(factory, "__mro__", ()) if _is_ours(base)}
    return [kind for kind, base in BASES.items() if base in names]


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == PACKAGE


def _exports(entry: Entry, cls: type) -> bool:
    """Return True if an entry point of the class's package names it by another module."""
    if entry.package != cls.__module__.partition(".")[0]:
        return False
    try:
        return entry.load() is cls
    except DefendError:
        return False


REGISTRY = Registry()
