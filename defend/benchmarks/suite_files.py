"""The files of Python code that a suite names: where they lie, and whether they may be run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from defend.benchmarks.specs import COMPONENT_KINDS, spec_from_table
from defend.errors import BadParameter
from defend.files import user_path
from defend.spec import Spec, Value, parse


def resolve_local_code(keys: Mapping[str, Any], suite: Path, trust: bool) -> dict[str, Any]:
    """Return the keys of a suite file with its own files found from its folder.

    Raise BadParameter if the suite names a file of code, which would be run, and is not trusted.
    """
    resolved = dict(keys)
    files: list[str] = []
    for key in COMPONENT_KINDS:
        if key in keys:
            resolved[key] = _resolve(keys[key], suite.parent, files)
    if files and not trust:
        raise BadParameter(
            f"suite {suite} would run the code of {', '.join(dict.fromkeys(files))}: read it, and"
            " give --trust (in Python trust=True) if it may be run"
        )
    return resolved


def _resolve(value: Any, folder: Path, files: list[str]) -> Any:
    """Return a component, or a list of them, with the paths of files of code resolved.

    files: takes the paths.
    """
    if isinstance(value, list | tuple):
        return [_resolve(item, folder, files) for item in value]
    if isinstance(value, Mapping):
        return _resolve(str(spec_from_table(dict(value))), folder, files)
    if not isinstance(value, str):
        return value  # which the suite refuses
    members = parse(value)
    own = [spec.file for spec in members if spec.file is not None]
    if not own:
        return value
    files += [str(folder / file) for file in own]
    return "+".join(str(_resolve_spec(spec, folder)) for spec in members)


def _resolve_spec(spec: Spec, folder: Path) -> Spec:
    """Return the spec of a file of code with its paths as seen from the suite's folder."""
    if spec.file is None:
        return spec
    attribute = spec.name.rpartition(":")[2]
    params = tuple((key, _resolve_value(value, folder)) for key, value in spec.params)
    return Spec(f"{_from_folder(spec.file, folder)}:{attribute}", params)


def _resolve_value(value: Value, folder: Path) -> Value:
    """Return the path of a file that lies beside the suite; any other value as it is."""
    if isinstance(value, str) and (folder / value).is_file():
        return _from_folder(value, folder)
    return value


def _from_folder(path: str, folder: Path) -> str:
    resolved = str(folder / user_path(path))
    return resolved if resolved.startswith(("/", ".")) else f"./{resolved}"
