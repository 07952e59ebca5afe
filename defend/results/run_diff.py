"""Two runs compared: cell by cell, paired over the same images, with Holm's correction."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from defend.errors import BadParameter
from defend.files import user_path
from defend.records import Measured, Record
from defend.results.cell_pairs import PIPELINE, Pair, explain_nothing_common, pair_cells, values_of
from defend.results.diagnostics import describe_cell
from defend.results.outcomes import Bits, Outcomes, clusters_of, read_outcomes
from defend.results.run_changes import Header, list_changes
from defend.results.run_folders import collect_records
from defend.results.unit_headers import read_header
from defend.results.verify import LOST, verify_record
from defend.stats import holm
from defend.tasks.registry import load_task
from defend.tasks.task import Summary, Unit

ALPHA = 0.05  # of the adjusted p-values
_CLEAN = (*PIPELINE, "seed", "n", "draws", "precision", "layout", "threads")


@dataclass(frozen=True, kw_only=True)
class CellDiff:
    """One cell in two runs, on the images that both have."""

    cell: str
    unit: Unit
    images: int
    changed: int  # images whose mean over draws is not the same
    old: Measured
    new: Measured
    difference: float  # new - old, as shares, or in the unit of the task
    low: float
    high: float
    p: float  # adjusted by Holm over all cells of the comparison
    test: str

    @property
    def significant(self) -> bool:
        """Return True if the difference is significant among all cells that were compared."""
        return self.p < ALPHA


@dataclass(frozen=True, kw_only=True)
class RunDiff:
    """What differs between two runs."""

    same: int  # cells with the very same units, which need no test
    cells: tuple[CellDiff, ...]  # compared, the least p-value first
    changes: tuple[str, ...]  # keys, code, weights, versions that differ
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    not_compared: tuple[str, ...]  # cells in both, with the reason
    failed_in_one: bool
    unconfirmed: tuple[str, ...]  # records that their units contradict, with the run

    @property
    def significant(self) -> list[CellDiff]:
        """Return the cells that differ significantly."""
        return [cell for cell in self.cells if cell.significant]

    @property
    def is_sound(self) -> bool:
        """Return True if every common cell was compared, is confirmed, and does not differ."""
        is_whole = not (self.not_compared or self.failed_in_one or self.unconfirmed)
        return is_whole and not self.significant


def compare_runs(old: Path | str, new: Path | str, same: Sequence[tuple[str, str]] = ()) -> RunDiff:
    """Compare the cells that two run folders have in common, paired over the same images.

    The test of each cell is that of its task: McNemar's where both are deterministic, else the
    paired permutation test. The clean images of each pipeline are compared as a cell. same: specs
    (of the old run, of the new run) that are taken for one component. Raises BadParameter if a
    folder has no records, if a run has no such spec, or if no cell can be compared.
    """
    folders = (user_path(old), user_path(new))
    records = [collect_records([folder])[0] for folder in folders]
    pairs = pair_cells(records[0], records[1], same)
    if not pairs:
        raise BadParameter(explain_nothing_common(folders, records))
    comparisons = [_Comparison(pair, folders) for pair in pairs]
    different = [c for c in comparisons if not c.is_same]
    cells = _adjust([cell for c in different if not c.reason for cell in c.compare()])
    not_compared = tuple(f"{c.name}: {c.reason}" for c in different if c.reason)
    if len(not_compared) == len(comparisons):
        raise BadParameter(
            f"{old} and {new}: none of {len(pairs)} common cells can be compared; {not_compared[0]}"
        )
    paired = {id(record) for pair in pairs for record in pair}
    only = [tuple(_name(r) for r in run if id(r) not in paired) for run in records]
    return RunDiff(
        same=len(comparisons) - len(different),
        cells=cells,
        changes=list_changes((c.pair, c.first_headers) for c in different),
        only_old=only[0],
        only_new=only[1],
        not_compared=not_compared,
        failed_in_one=any(a.failed != b.failed for a, b in pairs),
        unconfirmed=tuple(_list_unconfirmed(pairs, folders)),
    )


def _list_unconfirmed(pairs: Sequence[Pair], folders: Sequence[Path]) -> Iterator[str]:
    """Yield a line for each paired record that its units contradict.

    Units that are missing or damaged are told as the reason why a cell cannot be compared.
    """
    for run, folder, records in zip(("old", "new"), folders, zip(*pairs, strict=True), strict=True):
        for record in records:
            problems = [p.text for p in verify_record(record, [folder]) if p.code not in LOST]
            if problems:
                yield f"{run} run: {_name(record)}: {'; '.join(problems)}"


def _name(record: Record) -> str:
    return f"{record.classifier}, {describe_cell(record)}, eps {record.eps_text}"


class _Comparison:
    """One cell in both runs, and why it cannot be compared, if it cannot."""

    def __init__(self, pair: Pair, folders: Sequence[Path]) -> None:
        self.pair, self._folders = pair, folders
        self.name = _name(pair[0])

    @cached_property
    def is_same(self) -> bool:
        """Return True if both records name the same units, and both runs hold them alike.

        Of a cell that failed in both the errors are the same.
        """
        old, new = self.pair
        if old.units != new.units or old.error != new.error or not old.units:
            return False
        if old.failed:
            return True
        before, after = self._outcomes
        if before is None or after is None:
            return False
        return np.array_equal(before.score, after.score) and np.array_equal(
            before.clean_score, after.clean_score
        )

    @cached_property
    def first_headers(self) -> list[Header | None]:
        """Return the header of the first unit of each run."""
        headers: list[Header | None] = []
        for record, folder in zip(self.pair, self._folders, strict=True):
            headers.append(read_header(folder, record.units[0]) if record.units else None)
        return headers

    @cached_property
    def reason(self) -> str:
        """Return why no image of the cell can be compared, "" if some can."""
        for run, record in zip(("old", "new"), self.pair, strict=True):
            if record.error is not None:
                return f"failed in the {run} run: {record.error}"
        for run, outcomes in zip(("old", "new"), self._outcomes, strict=True):
            if outcomes is None:
                return f"units of the {run} run are missing or damaged"
        return "" if self._has_same_images() else "the images differ"

    @cached_property
    def _outcomes(self) -> list[Outcomes | None]:
        pairs = zip(self.pair, self._folders, strict=True)
        return [read_outcomes(record, [folder]) for record, folder in pairs]

    def _has_same_images(self) -> bool:
        """Return True unless a range of images that both have differs in its hash."""
        hashes = []
        for record, folder in zip(self.pair, self._folders, strict=True):
            headers = [read_header(folder, key) or {} for key in record.units]
            inputs = [header["key_inputs"] for header in headers]
            hashes.append({tuple(i.get("range", ())): i.get("data") for i in inputs})
        old, new = hashes
        return all(old[images] == new[images] for images in old.keys() & new.keys())

    def compare(self) -> Iterator[tuple[Hashable, CellDiff]]:
        """Yield the clean images of the pipeline and the cell, each with what names it."""
        old, new = self._outcomes
        assert old is not None and new is not None, "there is no reason against it"
        record = self.pair[0]
        clean_key = tuple(values_of(r, _CLEAN) for r in self.pair)
        clean_name = f"{record.classifier}, {record.defense}, clean"
        yield clean_key, self._compare(clean_name, old.clean_score, new.clean_score)
        yield id(self), self._compare(self.name, old.score, new.score)

    def _compare(self, name: str, old: Bits, new: Bits) -> CellDiff:
        task, seed = load_task(self.pair[0].task), self.pair[0].seed
        images = min(len(old), len(new))
        old, new = old[:images], new[:images]
        clusters = clusters_of(reversed(self.pair))
        clusters = None if clusters is None else clusters[:images]
        comparison = task.compare(new, old, seed, clusters)
        return CellDiff(
            cell=name,
            unit=task.unit,
            images=images,
            changed=int((abs(new.mean(1) - old.mean(1)) > 1e-9).sum()),
            old=_measured(task.summarise(old, seed, clusters)),
            new=_measured(task.summarise(new, seed, clusters)),
            difference=comparison.difference,
            low=comparison.low,
            high=comparison.high,
            p=comparison.p,
            test=comparison.test,
        )


def _measured(summary: Summary) -> Measured:
    return Measured(value=summary.value, low=summary.low, high=summary.high)


def _adjust(cells: Sequence[tuple[Hashable, CellDiff]]) -> tuple[CellDiff, ...]:
    """Return each cell once with its p-value by Holm over all, the least first."""
    distinct = list(dict(reversed(cells)).values())[::-1]
    adjusted = holm([cell.p for cell in distinct])
    by_p = [replace(cell, p=p) for cell, p in zip(distinct, adjusted, strict=True)]
    return tuple(sorted(by_p, key=lambda cell: cell.p))
