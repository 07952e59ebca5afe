"""Calibration of a task behind a pipeline: thresholds from clean images of `val`, then held."""

from __future__ import annotations

import torch
from torch import Tensor

from defend.benchmarks.cell import Cell
from defend.benchmarks.components import Components
from defend.benchmarks.purifier_checks import logits_after_purify, purify_once
from defend.dataset import Dataset
from defend.noise import Noise
from defend.tasks.task import Task
from defend.threat_models import Pipeline

CHUNK = 256  # images at once


def calibration_images(data: Dataset) -> tuple[Tensor, Tensor]:
    """Return all images (n, c, h, w) of `val` with their labels (n,)."""
    return data.rows("val", 0, data.count("val"))


class Calibrations:
    """The tasks with their thresholds, one for each scored pipeline, computed when needed."""

    def __init__(self, components: Components) -> None:
        self._components = components
        self._tasks: dict[tuple[str, Pipeline, int], Task] = {}

    def task_of(self, cell: Cell) -> Task:
        """Return the task of a cell, calibrated behind its scored pipeline if it needs that."""
        if not cell.task.needs_calibration:
            return cell.task
        key = (cell.task_spec, cell.scored, cell.seed)
        if key not in self._tasks:
            self._tasks[key] = self._calibrate(cell)
        return self._tasks[key]

    def _calibrate(self, cell: Cell) -> Task:
        """Return the task with thresholds from one draw of each image."""
        components, data = self._components, self._components.data
        purifier = components.defense(cell.defense)
        network = components.classifier(cell.classifier).network
        outputs, references = [], []
        for start in range(0, data.count("val"), CHUNK):
            stop = min(start + CHUNK, data.count("val"))
            x, y = (t.to(components.device) for t in data.rows("val", start, stop))
            rows = torch.arange(start, stop, device=components.device)
            noise = Noise.of(cell.seed, rows).fork("calibrate")
            outputs.append(logits_after_purify(purifier, network, purify_once(purifier, x, noise)))
            references.append(cell.task.reference(x, y, data.classes))
        return cell.task.calibrated(torch.cat(outputs), torch.cat(references))
