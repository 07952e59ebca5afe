"""Jobs: what a worker does in one piece, and their form as JSON between processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from defend.benchmarks.cell import Cell
from defend.eps import Eps


@dataclass(frozen=True, kw_only=True)
class UnitTask:
    """One unit to be computed."""

    key: str
    key_inputs: dict[str, Any]
    cell: Cell


@dataclass(frozen=True, kw_only=True)
class AttackJob:
    """All missing units that share an attack's work.

    They have the same data, range, attacked pipeline, attack and seed; eps and defenses differ.
    """

    start: int
    stop: int
    tasks: tuple[UnitTask, ...]

    @property
    def cell(self) -> Cell:
        """Return one of the cells, for what all of them share."""
        return self.tasks[0].cell

    @property
    def images(self) -> int:
        """Return the number of images of the range."""
        return self.stop - self.start


OnUnitDone = Callable[[str, int, str | None], None]  # key, images, error


def job_to_json(job: AttackJob) -> dict[str, Any]:
    """Return the job as JSON data."""
    return {"start": job.start, "stop": job.stop, "tasks": [asdict(task) for task in job.tasks]}


def job_from_json(data: dict[str, Any]) -> AttackJob:
    """Return the job that `job_to_json` was given."""
    tasks = []
    for task in data["tasks"]:
        fields = task["cell"]
        cell = Cell(**{**fields, "eps": Eps(**fields["eps"])})
        tasks.append(UnitTask(key=task["key"], key_inputs=task["key_inputs"], cell=cell))
    return AttackJob(start=data["start"], stop=data["stop"], tasks=tuple(tasks))
