"""Confirm records by their units: read every unit again, and recompute what the record says.

A checksum shows damage and careless edits. It is no signature: who writes new units with new
checksums is caught by running the bench again alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from defend.errors import count_of
from defend.files import user_path
from defend.records import Record
from defend.results.diagnostics import describe_cell
from defend.results.recompute import compare_with_keys, compare_with_units
from defend.results.run_folders import collect_records
from defend.unit_files import Unit, find_unit, read_unit, unit_path

SUFFIX = ".safetensors"


class ProblemCode(StrEnum):
    """Why a record, or a file of a run folder, is not confirmed."""

    MISSING = "missing"
    DAMAGED = "damaged"
    EDITED = "edited"
    ADDED = "added"


LOST = (ProblemCode.MISSING, ProblemCode.DAMAGED)  # of units, which say nothing then


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that keeps a cell from being confirmed, or a file that no run wrote."""

    code: ProblemCode
    subject: str  # the cell or the file
    text: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What reading a run folder again shows."""

    confirmed: int  # records whose numbers their units give again
    failed: int  # records of failed cells, which have no numbers
    unused: int  # sound units that no record names, as an earlier command leaves them
    problems: tuple[Problem, ...]


def verify_run(run_dir: Path | str) -> Verification:
    """Return what of a run folder its units confirm. Nothing is written.

    Raises BadParameter if it holds no records.
    """
    folder = user_path(run_dir)
    records, _ = collect_records([folder])
    problems: list[Problem] = []
    confirmed = 0
    for record in records:
        of_record = verify_record(record, [folder])
        problems += of_record
        confirmed += not of_record and not record.failed
    unused, of_files = _verify_files(folder, {key for r in records for key in r.units})
    return Verification(
        confirmed=confirmed,
        failed=sum(r.failed for r in records),
        unused=unused,
        problems=(*problems, *of_files),
    )


def verify_record(record: Record, run_dirs: Sequence[Path]) -> list[Problem]:
    """Return what keeps a record from being confirmed; nothing for a failed cell without units."""
    subject = f"{record.classifier}, {describe_cell(record)}, eps {record.eps_text}"
    problems = []
    for code, text in _check(record, run_dirs):
        problems.append(Problem(code=code, subject=subject, text=text))
    return problems


def _check(record: Record, run_dirs: Sequence[Path]) -> Iterator[tuple[ProblemCode, str]]:
    units = {key: find_unit(key, run_dirs) for key in record.units}
    if record.failed:
        if units and None not in units.values():
            yield ProblemCode.EDITED, "it is said to have failed, and all its units are there"
        return
    if not units:
        yield ProblemCode.ADDED, "it names no units"
        return
    lost = list(_lost_units(units, run_dirs))
    if lost:
        yield from lost
        return
    present = [unit for unit in map(units.get, record.units) if unit is not None]
    for text in (*compare_with_keys(record, present), *compare_with_units(record, present)):
        yield ProblemCode.EDITED, text


def _lost_units(
    units: Mapping[str, Unit | None], run_dirs: Sequence[Path]
) -> Iterator[tuple[ProblemCode, str]]:
    """Yield a line for missing and for damaged units."""
    lost = [key for key, unit in units.items() if unit is None]
    damaged = [key for key in lost if any(unit_path(d, key).exists() for d in run_dirs)]
    missing = [key for key in lost if key not in damaged]
    for code, keys in ((ProblemCode.MISSING, missing), (ProblemCode.DAMAGED, damaged)):
        if keys:
            what = "no such file" if code == ProblemCode.MISSING else "the checksum does not fit"
            yield code, f"{len(keys)} of {count_of(len(units), 'unit')}: {what}: {keys[0]}{SUFFIX}"


def _verify_files(folder: Path, keys: set[str]) -> tuple[int, list[Problem]]:
    """Return how many sound units no record names, and what else lies among the units."""
    unused, problems = 0, []
    for path in sorted((folder / "units").rglob("*")):
        if path.is_dir() or path.name.endswith(".part") or path.stem in keys:
            continue
        is_unit = path == unit_path(folder, path.stem) and read_unit(folder, path.stem) is not None
        if is_unit:
            unused += 1
            continue
        subject = str(path.relative_to(folder))
        text = "no record names it, and it is no sound unit"
        problems.append(Problem(code=ProblemCode.ADDED, subject=subject, text=text))
    return unused, problems
