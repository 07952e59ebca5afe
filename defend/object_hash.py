"""The hash of an object by all that it holds: values, tensors, the code of functions and classes.

It is the same in every process. Libraries count by the names of their functions and classes; their
versions are elsewhere in the key of a result.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
import types
import uuid
import warnings
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from defend.hashing import hash_source, tensor_sha256

LIBRARIES = frozenset(
    {"art", "defend", "diffusers", "numpy", "PIL", "safetensors", "scipy", "sklearn", "timm"}
    | {"torch", "torchvision", "transformers"}
)
_PLAIN = (bool, int, float, complex, str, bytes, range, slice, type(None), type(...))
_TYPES_OF_TORCH = (torch.dtype, torch.layout, torch.memory_format, np.dtype, np.generic)
_SKIPPED = frozenset({"training", "_set_fields"})  # how it runs, and what a caller typed
_HOOKS = "_hooks"  # the dictionaries of a module whose keys count up within a process
_FLAGS_OF_HOOKS = ("_hooks_with_kwargs", "_hooks_always_called")
_PROSE = frozenset(
    {"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__qualname__"}
    | {"__dataclass_fields__", "__dataclass_params__", "__abstractmethods__", "_abc_impl"}
)
_IDENTITY = "_identity"


class NoHash(Exception):
    """An object holds something by whose contents it cannot be known, such as a lock."""


def set_identity(component: Any, identity: str) -> None:
    """Let a component be known by this text too, beside its settings and its weights."""
    setattr(component, _IDENTITY, identity)


def identity_of(component: Any) -> str:
    """Return the text of `set_identity`, "" for a component that its settings decide."""
    return str(getattr(component, _IDENTITY, ""))


def hash_object(value: Any) -> str:
    """Return a hash of what an object holds, however deep, and of its code. Raise NoHash."""
    try:
        return _Walk().digest(value)
    except NoHash:
        raise
    except Exception as e:  # attributes of foreign objects may raise anything when they are read
        raise NoHash(type(value).__name__) from e


def hash_or_unique(value: Any, label: str) -> str:
    """Return the hash of an object; one that no other object has, with a warning, if none can be
    taken.
    """
    try:
        return hash_object(value)
    except NoHash as e:
        warnings.warn(
            f"{label}: expected values, tensors and functions, got an attribute of type {e}, by"
            " which it cannot be known again; what is measured for it is never reused",
            stacklevel=2,
        )
        return uuid.uuid4().hex


class _Walk:
    """One walk over an object. An object inside itself counts by its depth."""

    def __init__(self) -> None:
        self._above: list[int] = []  # ids of the objects that are being hashed
        self._digests: dict[int, str] = {}
        self._alive: list[Any] = []  # an id is that of one object as long as it lives

    def digest(self, value: Any) -> str:
        """Return the hash of a value. Raise NoHash."""
        if isinstance(value, _PLAIN) and not isinstance(value, Enum):
            return _hash(type(value).__name__, repr(value))
        key = id(value)
        if key in self._above:
            return _hash("above", str(len(self._above) - self._above.index(key)))
        if key not in self._digests:
            self._above.append(key)
            self._alive.append(value)
            self._digests[key] = _hash(*self._parts(value))
            self._above.pop()
        return self._digests[key]

    def _parts(self, value: Any) -> Iterator[str]:
        """Yield the texts that a value consists of."""
        if isinstance(value, Tensor):
            yield tensor_sha256(value)
        elif isinstance(value, np.ndarray) and value.dtype != object:
            yield f"{value.dtype}{value.shape}"
            yield hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        elif isinstance(value, _TYPES_OF_TORCH):
            yield repr(value)
        elif isinstance(value, torch.device):
            yield "device"  # it says where, not what
        elif isinstance(value, Enum | PurePath):
            yield f"{type(value).__qualname__}{value}"
        else:
            yield from self._parts_of_code(value)

    def _parts_of_code(self, value: Any) -> Iterator[str]:
        if isinstance(value, types.ModuleType):
            yield _module_part(value)
        elif isinstance(value, types.FunctionType):
            yield from self._function_parts(value)
        elif isinstance(value, types.CodeType):
            yield from self._code_parts(value, None)
        elif isinstance(value, types.MethodType):
            yield from ("method", self.digest(value.__func__), self.digest(value.__self__))
        elif isinstance(value, functools.partial):
            yield from ("partial", *map(self.digest, (value.func, value.args, value.keywords)))
        elif isinstance(value, type):
            yield from self._class_parts(value)
        elif isinstance(value, property | functools.cached_property):
            yield self.digest(value.fget if isinstance(value, property) else value.func)
        elif isinstance(value, staticmethod | classmethod):
            yield from (type(value).__name__, self.digest(value.__func__))
        elif callable(value) and _is_library(value) and hasattr(value, "__qualname__"):
            yield f"{value.__module__}:{value.__qualname__}"
        else:
            yield from self._contents(value)

    def _contents(self, value: Any) -> Iterator[str]:
        """Yield the parts of a container, and of any object that has attributes."""
        is_known = False
        if isinstance(value, Mapping):
            is_known = True
            for key, item in value.items():
                yield from (self.digest(key), self.digest(item))
        elif isinstance(value, list | tuple | np.ndarray):
            is_known = True
            yield from map(self.digest, value)
        elif isinstance(value, set | frozenset):
            is_known = True
            yield from sorted(map(self.digest, value))
        attributes = _attributes(value)
        if not is_known and attributes is None:
            raise NoHash(type(value).__name__)
        yield self.digest(type(value))
        for name, item in (attributes or {}).items():
            yield from (name, self.digest(_without_counts(name, item)))

    def _class_parts(self, cls: type) -> Iterator[str]:
        """Yield the code and the attributes of a class; the name alone of one of a library."""
        yield cls.__qualname__
        if _is_library(cls):
            yield cls.__module__
            return
        yield from map(self.digest, cls.__bases__)
        for name, item in sorted(vars(cls).items()):
            is_slot = inspect.isdatadescriptor(item) and not isinstance(item, property)
            if name not in _PROSE and not is_slot:
                yield from (name, self.digest(item))

    def _function_parts(self, function: types.FunctionType) -> Iterator[str]:
        """Yield the code of a function, its defaults, and what it takes from around it."""
        if _is_library(function):
            yield f"{function.__module__}:{function.__qualname__}"
            if not function.__closure__:
                return
        yield from self._code_parts(function.__code__, function.__doc__)
        yield from map(self.digest, (function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            yield "empty" if _is_empty(cell) else self.digest(cell.cell_contents)
        if not _is_library(function):
            for name in _global_names(function.__code__):
                if name in function.__globals__:
                    yield from (name, self.digest(function.__globals__[name]))

    def _code_parts(self, code: types.CodeType, doc: str | None) -> Iterator[str]:
        yield from (code.co_code.hex(), repr(code.co_names), repr(code.co_varnames))
        for i, constant in enumerate(code.co_consts):
            if i or doc is None or constant != doc:
                yield self.digest(constant)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode(errors="surrogatepass")).hexdigest()


def _is_library(value: Any) -> bool:
    """Return True for a function or a class of Python or of a library known by its version."""
    package = str(getattr(value, "__module__", None) or "builtins").partition(".")[0]
    return package in LIBRARIES or (package in sys.stdlib_module_names and package != "__main__")


def _module_part(module: types.ModuleType) -> str:
    """Return the name of a module of a library, the hash of the code of any other."""
    package = module.__name__.partition(".")[0]
    if package in LIBRARIES or package in sys.stdlib_module_names:
        return module.__name__
    try:
        return hash_source(inspect.getsource(module))
    except (OSError, TypeError, SyntaxError):
        return module.__name__


def _attributes(value: Any) -> dict[str, Any] | None:
    """Return the attributes of an object, None if it has none of its own to be known by."""
    values = dict(getattr(value, "__dict__", {}))
    slots = [name for base in type(value).__mro__ for name in _slots_of(base)]
    values |= {name: getattr(value, name) for name in slots if hasattr(value, name)}
    is_opaque = not hasattr(value, "__dict__") and not slots
    if is_opaque and type(value) is not object:
        return None
    dropped = {name for name in values if name in _SKIPPED or name.endswith(_FLAGS_OF_HOOKS)}
    return {name: item for name, item in values.items() if name not in dropped}


def _slots_of(cls: type) -> tuple[str, ...]:
    slots = vars(cls).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _without_counts(name: str, value: Any) -> Any:
    """Return the hooks of a module without their keys."""
    return list(value.values()) if name.endswith(_HOOKS) and isinstance(value, Mapping) else value


def _is_empty(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018  reading an empty cell raises
    except ValueError:
        return True
    return False


def _global_names(code: types.CodeType) -> list[str]:
    """Return the names that a function, or a function inside it, may take from its module."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= set(_global_names(constant))
    return sorted(names)
