"""Find components by name. Reads entry points; imports a plugin only when it is used.

This module imports no torch and no ART, so `defend list` answers at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from defend.errors import AmbiguousName, BadParameter, BrokenPlugin, UnknownName, near
from defend.spec import Configured, Spec, typed

Kind = Literal["defense", "attack", "classifier", "dataset"]

GROUPS: dict[Kind, str] = {
    "defense": "defend.defenses",
    "attack": "defend.attacks",
    "classifier": "defend.classifiers",
    "dataset": "defend.datasets",
}
HOME = "defend"  # the distribution whose bare names nobody can shadow


@dataclass(frozen=True)
class Entry:
    kind: Kind
    name: str
    target: str  # "module:attribute"
    dist: str
    version: str
    _point: EntryPoint

    @property
    def full_name(self) -> str:
        return f"{self.dist}/{self.name}"

    @property
    def component(self) -> str:
        """The name that weights carry: bare at home, in full elsewhere."""
        return self.name if self.dist == HOME else self.full_name

    @property
    def package(self) -> str:
        """The top-level package the component comes from."""
        return self.target.partition(":")[0].partition(".")[0]

    def load(self) -> Callable[..., Any]:
        try:
            made = self._point.load()
            if not callable(made):
                raise TypeError(f"{self.target} is no class, but {type(made).__name__}")
            return made  # type: ignore[no-any-return]
        except (
            Exception,
            SystemExit,
        ) as e:  # a plugin may raise anything at import, and may even exit; name it and go on
            raise BrokenPlugin(
                f"{self.kind} '{self.name}' from {self.dist} {self.version} could not be imported "
                f"({self.target}): {type(e).__name__}: {e}. Reinstall or remove {self.dist}."
            ) from e


class Registry:
    def __init__(self, points: Callable[..., Iterable[EntryPoint]] = entry_points) -> None:
        self._points = points

    @cached_property
    def _found(self) -> dict[Kind, list[Entry]]:
        """Scanned once; an entry point without a distribution is foreign."""
        return {kind: self._scan(kind) for kind in GROUPS}

    def _scan(self, kind: Kind) -> list[Entry]:
        found = {
            (p.name, p.value, p.dist.name if p.dist else "unknown"): Entry(
                kind,
                p.name,
                p.value,
                p.dist.name if p.dist else "unknown",
                p.dist.version if p.dist else "?",
                p,
            )
            for p in self._points(group=GROUPS[kind])
        }
        return sorted(found.values(), key=lambda e: (e.name, e.dist != HOME, e.dist))

    def entries(self, kind: Kind) -> list[Entry]:
        """Raises UnknownName."""
        if kind not in GROUPS:
            raise UnknownName(
                f"unknown kind '{kind}': expected {', '.join(GROUPS)}.{near(kind, GROUPS)}"
            )
        return self._found[kind]

    def kinds_of(self, name: str) -> list[Kind]:
        """Of which kinds there is a component of this name."""
        return [
            kind
            for kind in GROUPS
            if any(name in (e.name, e.full_name) for e in self.entries(kind))
        ]

    def entry(self, kind: Kind, name: str) -> Entry:
        every = self.entries(kind)
        hits = [e for e in every if name in (e.name, e.full_name)]
        hits = [e for e in hits if e.dist == HOME] or hits
        if not hits:
            elsewhere = self.kinds_of(name)
            hint = (
                f" It is a {elsewhere[0]}." if elsewhere else near(name, map(self.to_type, every))
            )
            raise UnknownName(
                f"unknown {kind} '{name}'.{hint} `defend list {kind}s` shows all {len(every)}."
            )
        if len(hits) > 1:
            raise AmbiguousName(
                f"{kind} '{name}' is given by {', '.join(e.full_name for e in hits)}; write one in full."
            )
        return hits[0]

    def to_type(self, e: Entry) -> str:
        """Its name, in full where another package has one of that name too."""
        return (
            e.name
            if e.dist == HOME or sum(o.name == e.name for o in self._found[e.kind]) == 1
            else e.full_name
        )

    def create(self, kind: Kind, name: str, /, **params: Any) -> Any:
        """Raises UnknownName, AmbiguousName, BrokenPlugin, BadParameter."""
        make, what = self.entry(kind, name).load(), f"{kind} '{name}'"
        if isinstance(make, type) and issubclass(make, Configured):
            return make(**typed(make, params, what))
        signature = inspect.signature(make)
        try:
            signature.bind(**params)
        except TypeError as e:
            raise BadParameter(f"{what}: {e}; it takes {signature}") from None
        return make(**params)

    def of_spec(self, kind: Kind, spec: Spec, /, **more: Any) -> Any:
        return self.create(kind, spec.name, **(dict(spec.params) | more))

    def component(self, kind: Kind, cls: type) -> str:
        """The name under which a class is registered; its own name where it is not."""
        target = f"{cls.__module__}:{cls.__qualname__}"
        return next(
            (e.component for e in self.entries(kind) if e.target == target), cls.__qualname__
        )


REGISTRY = Registry()
