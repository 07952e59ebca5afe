"""The tasks by name: a closed list, because records must be read without any plugin (ADR 9)."""

from __future__ import annotations

from functools import cache

from defend.errors import BadParameter, suggest_names
from defend.spec import parse_single, typed_params
from defend.tasks.classification import CLASSIFICATION, Classification
from defend.tasks.identification import Identification
from defend.tasks.reconstruction import Reconstruction
from defend.tasks.task import Task
from defend.tasks.verification import Verification

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Classification, Identification, Verification, Reconstruction)
}
DEFAULT = CLASSIFICATION.name


@cache
def load_task(text: str) -> Task:
    """Return the task of a spec, such as "identification:goal=impersonation".

    Raise BadSpec, BadParameter.
    """
    spec = parse_single(text, "task")
    if spec.name not in TASKS:
        hint = suggest_names(spec.name, TASKS)
        raise BadParameter(f"task {text!r}: expected {' or '.join(TASKS)}.{hint}")
    if spec.name == DEFAULT and not spec.params:
        return CLASSIFICATION
    task = TASKS[spec.name]
    return task(**typed_params(task, dict(spec.params), f"task '{spec.name}'"))
