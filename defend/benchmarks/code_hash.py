"""The identity of code: a hash of what it does, over the modules that a component really imports.

Docstrings, comments, layout and the words of error messages are not part of it, nor is a module
that is never imported: editing prose or a report throws no measurement away. Another version of
Python may write the same tree in another way, and then everything is computed again.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from defend.errors import BadParameter
from defend.hashing import cache_key, hash_tree
from defend.hashing import hash_source as hash_source
from defend.local_files import sibling_modules

HOME = "defend"
_DYNAMIC_IMPORTS = ("import_module", "__import__")
_OPTIONAL_IMPORT = "import_extra"  # of weights/third_party.py
_EXECUTION = "defend.benchmarks.execute"  # imports all that runs between an image and its outcome
_TASK = "defend.tasks.task"  # the contract, which every cell computes by
_TASKS = "defend.tasks."  # of the others, a cell computes by its own: callers name its modules


def hash_packages(modules: Iterable[str]) -> dict[str, str]:
    """Return top-level package -> hash, of what these modules and the bench import.

    Only packages of these modules are followed, and what lies beside a file of the user; other
    libraries are known by their versions. Tasks count where these modules hold them, not where the
    bench imports the list of all.
    Raises BadParameter where a module has no source to be identified by.
    """
    roots = {*modules, _EXECUTION}
    packages = {module.partition(".")[0] for module in roots}
    packages = packages.union(*(sibling_modules(module) for module in roots))
    hashes: dict[str, dict[str, str]] = {package: {} for package in packages}
    for module in sorted(_reachable(roots, packages)):
        hashes[module.partition(".")[0]][module] = hash_module(module)
    return {package: cache_key(hashes[package]) for package in sorted(packages) if hashes[package]}


def optional_libraries(modules: Iterable[str]) -> frozenset[str]:
    """Return the libraries that these modules, or what they import, take by `import_extra`.

    Libraries that the bench itself may take are left out: they load files and compute nothing.
    """
    packages = {module.partition(".")[0] for module in modules}
    own = _reachable(set(modules), packages) - _reachable({_EXECUTION}, {HOME})
    return frozenset(name for module in own for name in _extras(module))


@cache
def _extras(module: str) -> frozenset[str]:
    """Return the top-level packages that the calls of `import_extra` in a module name."""
    calls = [] if _file(module) is None else ast.walk(_tree(module))
    names = set()
    for node in calls:
        if isinstance(node, ast.Call) and _called_name(node) == _OPTIONAL_IMPORT and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                names.add(name.value.partition(".")[0])
    return frozenset(names)


def _reachable(roots: set[str], packages: set[str]) -> set[str]:
    """Return the roots and every module of these packages that they import, however deep."""
    reached: set[str] = set()
    todo = list(roots)
    while todo:
        module = todo.pop()
        if module in reached:
            continue
        reached.add(module)
        inside = [name for name in _imports(module) if name.partition(".")[0] in packages]
        if not module.startswith(_TASKS):
            inside = [name for name in inside if name == _TASK or not name.startswith(_TASKS)]
        todo += [name for name in inside if _file(name) is not None]  # others are no modules
    return reached


@cache
def hash_module(module: str) -> str:
    """Return the hash of a module's syntax tree without prose. Raises BadParameter."""
    return hash_tree(_tree(module))


@cache
def _tree(module: str) -> ast.Module:
    """Return a module's syntax tree; `hash_tree` removes its prose, where no import stands."""
    file = _file(module)
    if file is None:
        package = module.partition(".")[0]
        raise BadParameter(
            f"package {package}: module {module} has no .py file to identify its results by;"
            " the bench runs components of installed packages"
        )
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def _file(module: str) -> Path | None:
    """Return a module's source file; None for built-in and compiled modules."""
    loaded = sys.modules.get(module)
    origin = getattr(loaded, "__file__", None)
    if origin is None:
        try:
            spec = find_spec(module)
        except (ImportError, ValueError):  # no such module; __main__
            return None
        origin = spec.origin if spec else None
    return Path(origin) if origin and origin.endswith(".py") else None


@cache
def _imports(module: str) -> tuple[str, ...]:
    """Return the modules that a module imports, inside functions too.

    A package that imports by computed names may import anything: then all its modules count.
    """
    file = _file(module)
    if file is None or module == HOME:  # which only lists public names
        return ()
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    names: list[str] = []
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += _from_import(node, package)
        elif isinstance(node, ast.Call) and _called_name(node) in _DYNAMIC_IMPORTS:
            names += _all_modules(module.partition(".")[0])
    with_parents = [parent for name in names for parent in _parents(name)]
    return tuple(dict.fromkeys(with_parents))


def _from_import(node: ast.ImportFrom, package: str) -> Iterator[str]:
    """Yield what `from x import y` may load: x, and x.y where y is a module."""
    base = node.module or ""
    if node.level:
        parts = package.split(".")
        above = parts[: len(parts) - node.level + 1]
        base = ".".join([*above, base] if base else above)
    if base != HOME:  # which only lists public names; the bench imports their modules
        yield base
    for alias in node.names:
        yield f"{base}.{alias.name}"


def _called_name(node: ast.Call) -> str:
    return ast.unparse(node.func).rpartition(".")[2]


def _parents(name: str) -> list[str]:
    """Return a.b.c as a, a.b, a.b.c: importing a module runs its packages too."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts) + 1)]


def _all_modules(package: str) -> Iterator[str]:
    file = _file(package)
    if file is None:
        return
    if file.name != "__init__.py":
        yield package
        return
    for path in sorted(file.parent.rglob("*.py")):
        relative = path.relative_to(file.parent).with_suffix("")
        parts = [part for part in relative.parts if part != "__init__"]
        yield ".".join([package, *parts])
