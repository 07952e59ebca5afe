"""The records of one or several run folders, which are read and never written to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from defend.errors import BadParameter
from defend.records import FILE_NAME, Record, read_records
from defend.results.versions import label_versions


def collect_records(
    folders: Sequence[Path], records: Sequence[Record] | None = None
) -> tuple[list[Record], list[Record]]:
    """Return the records to show, by default all, and others of the same folders.

    Of a cell that is in several folders the last counts. Raises BadParameter if a folder has no
    records, or if there is nothing to show.
    """
    if not (folders if records is None else records):
        raise BadParameter(
            "nothing to report: give the folder of a run, as runs/embedded;"
            " `defend bench` writes one"
        )
    if records is None:
        return _read_all(folders), []
    beside: list[Record] = []
    for folder in folders:
        beside += read_records(folder)
    return list(records), beside


def _read_all(folders: Sequence[Path]) -> list[Record]:
    """Return the records of all folders, each cell once.

    Two versions of one component are labelled by run, and their cells are different ones. Raises
    BadParameter if a folder has no records.
    """
    runs = []
    for folder in folders:
        runs.append(read_records(folder))
        if not runs[-1]:
            raise BadParameter(f"{folder}: holds no records: {_explain_absence(folder)}")
    cells: dict[tuple[str, str, str], Record] = {}
    for records in label_versions(folders, runs):
        for record in records:
            cells[record.cell_id, record.classifier_label, record.defense_label] = record
    return list(cells.values())


def _explain_absence(folder: Path) -> str:
    """Return why there may be no records, and what to do."""
    damaged = folder / f"{FILE_NAME}.damaged"
    if damaged.is_file():
        return (
            f"{FILE_NAME} could not be read, and lies there as {damaged.name}; the same"
            " `defend bench` with the same --out makes it again from its units"
        )
    if folder.is_file():
        return f"it is a file; give the folder of the run, {folder.parent}"
    if (folder / "run.json").is_file():
        return (
            f"the run was stopped before its end, or {FILE_NAME} was taken away; the same"
            " `defend bench` with the same --out goes on with it"
        )
    return f"expected {folder / FILE_NAME}; give the folder of a run, as runs/embedded"
