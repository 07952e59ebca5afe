"""Components in files of the user: PATH.py:NAME stands where a registered name may stand.

The file is imported when the component is loaded, as the module "local_STEM_HASH". The hash is that
of its syntax tree, so that results are known by what the code does, not by where it lies. Modules
beside the file can be imported, and count as parts of it.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import invalidate_caches
from importlib.metadata import EntryPoint
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from defend.errors import BadParameter, BrokenPlugin, MissingPackage, one_line, suggest_names
from defend.files import user_path
from defend.hashing import hash_source

PREFIX = "local_"  # of the names of their modules
_HASH_DIGITS = 12
_folders: list[str] = []  # of the files that were imported, the last one at the end


@dataclass(frozen=True)
class LocalCode:
    """What a name PATH.py:NAME means."""

    path: Path
    attribute: str

    @classmethod
    def of_name(cls, name: str) -> LocalCode:
        """Return the code of a name PATH.py:NAME."""
        path, _, attribute = name.rpartition(":")
        return cls(user_path(path), attribute)

    @property
    def label(self) -> str:
        """The name that records and weights carry, without the folder."""
        return f"{self.path.name}:{self.attribute}"

    @property
    def entry_point(self) -> EntryPoint:
        """The entry point by which an installed package would name it."""
        return EntryPoint(self.attribute, f"{self.module_name}:{self.attribute}", "local")

    @property
    def module_name(self) -> str:
        """The name of the file's module. Raise BadParameter if the file cannot be read."""
        digest = self._digest()[:_HASH_DIGITS]
        stem = "".join(c if c.isalnum() else "_" for c in self.path.stem)
        return f"{PREFIX}{stem}_{digest}"

    def _digest(self) -> str:
        """Return the hash of the file, and of the modules beside it that it imports."""
        source = self._source()
        beside = imported_siblings(self.path, source)
        if not beside:
            return hash_source(source)
        texts = [f"{path.name} {_hash_file(path)}" for path in beside]
        return hashlib.sha256("".join([hash_source(source), *texts]).encode()).hexdigest()

    def _source(self) -> str:
        """Return the text of the file, which is Python. Raise BadParameter."""
        try:
            text = self.path.read_text(encoding="utf-8-sig")
            ast.parse(text)
        except OSError as e:
            raise BadParameter(
                f"{self.path}: expected a file of Python code, got: {e.strerror}; check the path"
            ) from None
        except UnicodeDecodeError:
            raise BadParameter(
                f"{self.path}: expected Python code in UTF-8; save it as such"
            ) from None
        except (SyntaxError, ValueError) as e:
            line = f", line {e.lineno}" if isinstance(e, SyntaxError) else ""
            message = e.msg if isinstance(e, SyntaxError) else one_line(e)
            raise BadParameter(
                f"{self.path}{line}: expected Python code: {message}; mend the file"
            ) from None
        return text

    def load(self) -> Callable[..., Any]:
        """Return the class or the function. Raise BadParameter, BrokenPlugin, MissingPackage."""
        module = self._import()
        if not hasattr(module, self.attribute):
            own = [n for n, value in vars(module).items() if _is_defined_in(value, module)]
            raise BadParameter(
                f"{self.path}: has no {self.attribute}."
                f"{suggest_names(self.attribute, own)} It defines {', '.join(own) or 'nothing'}."
            )
        factory = getattr(module, self.attribute)
        if not callable(factory):
            raise BadParameter(
                f"{self.path}:{self.attribute}: expected a class or a function, got"
                f" {type(factory).__name__}; name a function that returns it"
            )
        return factory  # type: ignore[no-any-return]

    def _import(self) -> ModuleType:
        """Return the module of the file, which is run once for each content."""
        name = self.module_name
        if name in sys.modules:
            return sys.modules[name]
        spec = spec_from_file_location(name, self.path.resolve())
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        sys.modules[name] = module
        try:
            with siblings_first(self.path):
                spec.loader.exec_module(module)
        except (Exception, SystemExit) as e:  # the user's code may raise anything
            del sys.modules[name]
            raise self._describe(e) from e
        return module

    def _describe(self, error: BaseException) -> Exception:
        """Return the error for what importing the file raised, with the line where it was."""
        place = locate(error, self.path)
        if isinstance(error, ModuleNotFoundError):
            missing = str(error.name).partition(".")[0]
            return MissingPackage(
                f"{place}: needs the package {missing}, which is not installed; type"
                f" `pip install {missing}`"
            )
        return BrokenPlugin(
            f"{place}: {type(error).__name__}: {one_line(error)}; mend the file (--debug before the"
            " command shows the traceback)"
        )


@contextmanager
def siblings_first(path: Path) -> Iterator[None]:
    """Let the code of a file import the modules beside it, not those of another file's folder.

    The folder stays the last of `sys.path`: a file beside it hides no installed package.
    """
    folder = str(path.parent.resolve())
    others = {other for other in _folders if other != folder}
    _folders[:] = [*(other for other in _folders if other != folder), folder]
    _forget_siblings(folder, others)
    before = list(sys.path)
    sys.path[:] = [place for place in before if str(Path(place).resolve()) not in others]
    sys.path[:] = sys.path if folder in sys.path else [*sys.path, folder]
    invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before if folder in before else [*before, folder]


def _forget_siblings(folder: str, others: set[str]) -> None:
    """Take modules of other folders out of `sys.modules` whose names are those of this folder's."""
    names = _names_beside(Path(folder))
    for name, module in list(sys.modules.items()):
        top = name.partition(".")[0]
        file = getattr(sys.modules.get(top, module), "__file__", None)
        if (
            top in names
            and file
            and {str(p) for p in list(Path(file).resolve().parents)[:2]} & others
        ):
            del sys.modules[name]


def _names_beside(folder: Path) -> set[str]:
    modules = {path.stem for path in folder.glob("*.py")}
    return modules | {path.parent.name for path in folder.glob("*/__init__.py")}


def imported_siblings(path: Path, source: str) -> list[Path]:
    """Return the files of the modules beside a file that it imports, however deep, sorted.

    Of a package all files count.
    """
    todo, reached = [source], set[Path]()
    while todo:
        for name in _imported_names(todo.pop()):
            file, package = path.parent / f"{name}.py", path.parent / name
            files = [file] if file.is_file() else []
            if (package / "__init__.py").is_file():
                files = list(package.rglob("*.py"))
            new = [item for item in files if item not in reached and item != path]
            reached.update(new)
            todo += map(_read, new)
    return sorted(reached)


def _hash_file(path: Path) -> str:
    try:
        return hash_source(_read(path))
    except (SyntaxError, ValueError):  # importing it says where
        return hashlib.sha256(path.read_bytes()).hexdigest()


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig", errors="replace")


def _imported_names(source: str) -> set[str]:
    """Return the top-level modules that Python code imports, inside functions too."""
    names: set[str] = set()
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # importing it says where
        return names
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def locate(error: BaseException, path: Path) -> str:
    """Return "PATH, line N" of the last line of this file that the error came through."""
    file = str(path.resolve())
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    return f"{path}, line {lines[-1]}" if lines else str(path)


def local_label(cls: type) -> str | None:
    """Return FILE.py:NAME for a class of a user's file, None for any other."""
    if not cls.__module__.startswith(PREFIX):
        return None
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return f"{Path(file).name}:{cls.__qualname__}" if file else None


def sibling_modules(module: str) -> set[str]:
    """Return the modules and packages beside the file of a local module: it may import them."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if not module.startswith(PREFIX) or file is None:
        return set()
    return _names_beside(Path(file).parent)


def _is_defined_in(value: Any, module: ModuleType) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__
