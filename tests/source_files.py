"""The source files of the repository, for the tests that read them. Nothing is imported."""

import ast
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "defend"
# Folders that tools write, and folders of data files inside the package.
GENERATED = {"build", "dist", "runs", "site"}
DATA_FOLDERS = {"zoo"}


@dataclass(frozen=True)
class SourceFile:
    """A Python file: its path from the top of the repository, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self):
        return ast.parse(self.text)

    @cached_property
    def lines(self):
        return self.text.splitlines()

    @property
    def room(self):
        """The folder or the module at the top of the package: "attacks", "spec", "__init__"."""
        return self.path.split("/")[1].removesuffix(".py")

    @property
    def module(self):
        """The dotted name, as an import writes it."""
        name = self.path.removesuffix(".py").replace("/", ".")
        return name.removesuffix(".__init__")


def read_files(folder):
    """Return the Python files below a folder, without hidden and generated folders."""
    files = []
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(REPOSITORY)
        folders = relative.parts[:-1]
        if any(f.startswith(".") or f in GENERATED for f in folders):
            continue
        files.append(SourceFile(relative.as_posix(), path.read_text()))
    return files


REPOSITORY_FILES = read_files(REPOSITORY)
PACKAGE_FILES = [
    f for f in REPOSITORY_FILES if f.path.startswith("defend/") and f.room not in DATA_FOLDERS
]


def report(violations):
    """Fail with every violation on a line of its own, if there is one."""
    assert not violations, "\n" + "\n".join(violations)
