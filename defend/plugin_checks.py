"""Where the code of a plugin or of the user broke, and classes that break the contract. No torch.

An error that comes out of their code is one line with their file, not a traceback of ours.
"""

from __future__ import annotations

import inspect
import os
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import Any

from defend.errors import BrokenPlugin, one_line

DEBUG = "DEFEND_DEBUG"  # an environment variable, for the processes of a bench too
_OWN = str(Path(__file__).parent) + os.sep
_STANDARD = tuple(sysconfig.get_paths()[name] + os.sep for name in ("stdlib", "platstdlib"))
_LIBRARIES = frozenset(
    {
        "art",
        "click",
        "diffusers",
        "numpy",
        "PIL",
        "pluggy",
        "pydantic",
        "rich",
        "safetensors",
        "scipy",
        "sklearn",
        "timm",
        "torch",
        "torchvision",
        "transformers",
        "_pytest",
        "pytest",
    }
)
# What the base class of each kind sets at the end of its own initialisation.
_MARKS = {"defense": "_device", "attack": "norm", "classifier": "network"}
_CALLS = {  # the method that an author writes, and what it is called with
    "defense": ("purify", ("x", "noise")),
    "attack": ("run", ("target", "x", "y", "eps", "noise")),
}


def locate_plugin(error: BaseException) -> str | None:
    """Return "FOLDER/FILE, line N" of the last line of a plugin that an error came through.

    Return None if it came through our code and that of libraries alone.
    """
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if _is_plugin(frame.filename):
            return f"{_short(frame.filename)}, line {frame.lineno}"
    return None


def _is_plugin(file: str) -> bool:
    if file.startswith(("<", _OWN)) or Path(file).parent.name == "bin":
        return False
    parts = Path(file).parts
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1] not in _LIBRARIES
    return not file.startswith(_STANDARD)


def _short(file: str) -> str:
    """Return the last two parts of a path: records hold no folders of a machine."""
    return "/".join(Path(file).parts[-2:])


def describe_crash(error: BaseException) -> str:
    """Return an error in one line, with the place in a plugin that it came from.

    With --debug the traceback is printed to stderr.
    """
    if os.environ.get(DEBUG):
        traceback.print_exception(error, file=sys.stderr)
    place = locate_plugin(error)
    return f"{type(error).__name__}: {one_line(error)}" + (f" ({place})" if place else "")


def check_own_init(cls: type) -> None:
    """Raise BrokenPlugin for an __init__ whose parameters are no fields, so that no spec sets them.

    One that passes **fields on is left alone.
    """
    own_init = _own_method(cls, "__init__")
    if own_init is None:
        return
    parameters = list(inspect.signature(own_init).parameters.values())[1:]
    names = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    fields = getattr(cls, "__dataclass_fields__", {})
    if all(name in fields for name in names):
        return
    raise BrokenPlugin(
        f"{_place_of(own_init)}: {cls.__name__} has an __init__ of its own, whose parameters no"
        f" spec can set: write them as fields in the class, as in `{names[0]}: int = 1`, and what"
        " it computes from them in validate()"
    )


def check_initialised(component: Any, kind: str) -> None:
    """Raise BrokenPlugin for a component whose own __init__ or __post_init__ left the base out."""
    mark = _MARKS.get(kind)
    if mark is None or getattr(component, mark, None):
        return
    cls = type(component)
    for name in ("__init__", "__post_init__"):
        if own := _own_method(cls, name):
            raise BrokenPlugin(
                f"{_place_of(own)}: {cls.__name__}.{name} does not call super().{name}(): leave it"
                " out, and write fields in the class and validate()"
            )


def check_call(component: Any, kind: str) -> None:
    """Raise BrokenPlugin for a purify or a run that cannot be called with its arguments."""
    name, arguments = _CALLS.get(kind, ("", ()))
    method = getattr(component, name, None) if name else None
    own = _own_method(type(component), name) if method is not None else None
    if method is None or own is None:
        return
    try:
        inspect.signature(method).bind(*arguments)
    except TypeError as e:
        raise BrokenPlugin(
            f"{_place_of(own)}: {type(component).__name__}.{name}: expected"
            f" {name}(self, {', '.join(arguments)}): {e}"
        ) from None


def _own_method(cls: type, name: str) -> Any:
    """Return a method that an author wrote, None for those of dataclasses and of our bases."""
    method = getattr(cls, name, None)
    code = getattr(method, "__code__", None)
    return method if code is not None and _is_plugin(code.co_filename) else None


def _place_of(method: Any) -> str:
    code = method.__code__
    return f"{_short(code.co_filename)}, line {code.co_firstlineno}"
