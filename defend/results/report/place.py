"""Where a report is written: nothing is overwritten unasked, and no folder that is only read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

from defend.errors import BadParameter

NEW_FOLDER = "report"  # in the current directory, with a number if it exists


def choose_folder(
    run_dirs: Sequence[Path], out: Path | None, names: Iterable[str], overwrite: bool
) -> Path:
    """Return the folder to write the files of these names into.

    It is `out`; else the folder of a single run, whose own report is made again; else a new folder
    in the current directory, because several runs have no place of their own. Raises BadParameter
    if `out` holds a report of something else.
    """
    if out is not None:
        if [out.resolve()] != [folder.resolve() for folder in run_dirs]:
            check_free(out, names, overwrite)
        return out
    if len(run_dirs) == 1:
        return run_dirs[0]
    return _make_new_folder()


def check_free(out: Path, names: Iterable[str], overwrite: bool) -> None:
    """Raise BadParameter if `out` is no folder, or holds one of these files unasked."""
    if out.exists() and not out.is_dir():
        raise BadParameter(f"{out}: expected a folder for the report, got a file")
    occupied = [name for name in names if (out / name).exists()]
    if occupied and not overwrite:
        raise BadParameter(
            f"{out}: holds {', '.join(occupied)} already; give another folder with --out, or"
            " --overwrite to replace them"
        )


def _make_new_folder() -> Path:
    for number in count(1):
        folder = Path(NEW_FOLDER if number == 1 else f"{NEW_FOLDER}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        except OSError as e:
            raise BadParameter(
                f"{folder}: cannot be made in the current directory: {e.strerror}. Give a place"
                " with --out."
            ) from None
        return folder
    raise AssertionError("count() has no end")
