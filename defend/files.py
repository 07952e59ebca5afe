"""Files that are whole or absent, folders that can be written, and the checkout that results are labelled with. No torch."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from defend.errors import BadParameter

PART = ".part"  # how names of what is being written end


def cache_folder() -> Path:
    """The user's: XDG_CACHE_HOME/defend, else ~/.cache/defend."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "defend"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write to; what was written is synced and renamed to `path`, so that a file that exists is complete."""
    part = path.with_name(
        f"{path.name}.{os.getpid()}{PART}"
    )  # two processes may write the same file
    try:
        yield part
        with part.open("rb+") as f:
            os.fsync(f.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write(path: Path, what: bytes | str) -> None:
    """Text as UTF-8 with its line ends as they are. Raises OSError."""
    with whole(path) as part:
        part.write_bytes(what.encode() if isinstance(what, str) else what)


def writable(folder: Path, option: str = "--out", make: bool = True) -> Path:
    """The folder, made where it was missing unless make=False. Raises BadParameter before any work is done for nothing."""
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
    """(commit, do tracked files under this path differ from it?) of the checkout that `defend` runs from; None where it is installed."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no", "--", under],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head, bool(changed.strip())
