"""Files that are complete or absent, folders that can be written, and the checkout that labels
results.

No torch.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from defend.errors import BadParameter

PART = ".part"  # the end of the name of a file that is being written


def user_path(path: str | Path) -> Path:
    """Return a path that a user typed, with ~ as the home folder: no shell expands it in quotes.

    Raise BadParameter for ~NAME of nobody on this machine, which would become a folder of that
    name.
    """
    expanded = os.path.expanduser(path)  # noqa: PTH111  Path.expanduser raises RuntimeError
    if expanded.startswith("~"):
        raise BadParameter(
            f"{path}: expected a path, or ~NAME of a user of this machine; write ./{path} if the"
            " name begins with ~"
        )
    return Path(expanded)


def cache_folder() -> Path:
    """Return the user's cache folder: XDG_CACHE_HOME/defend, else ~/.cache/defend."""
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "defend"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; afterwards sync that file and rename it to `path`.

    A file of the final name is therefore always complete.
    """
    # The process id: two processes may write the same file at a time.
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        yield part
        with part.open("rb+") as f:
            os.fsync(f.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_file(path: Path, content: bytes | str) -> None:
    """Write a complete file, text as UTF-8 with its line ends unchanged. Raise OSError."""
    with atomic_path(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def ensure_writable(folder: Path, option: str = "--out", make: bool = True) -> Path:
    """Return the folder after a trial write; create it if it is missing, unless make=False.

    Raise BadParameter, before any work is done in vain. option: the command line option that names
    the folder.
    """
    probe = folder / f".{os.getpid()}.probe"
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise BadParameter(
            f"{option} {folder}: cannot be written: {e.strerror}. Give another place with {option}."
        ) from None
    return folder


@cache
def checkout(under: str = ".") -> tuple[str, bool] | None:
    """Return the commit of the git checkout that `defend` runs from, and whether tracked files
    below `under` differ from it.

    Return None if `defend` is installed, not run from a checkout, or if git does not answer.
    """
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", under)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit, bool(changes)


def _git(root: Path, *arguments: str) -> str:
    """Return what a git command prints, stripped. Raise OSError, CalledProcessError."""
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()
