"""Units: a cell restricted to a range of images, and everything that its key is made of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import torch

from defend.benchmarks.calibration import calibration_images
from defend.benchmarks.cell import Cell
from defend.benchmarks.code_hash import hash_packages
from defend.benchmarks.component_keys import modules_of, optional_versions, requirement_versions
from defend.benchmarks.components import Components
from defend.hashing import tensor_sha256
from defend.numerics import NumericSettings
from defend.tasks.registry import DEFAULT
from defend.threat_models import Pipeline

# Libraries whose code computes: they are known by their versions.
_LIBRARIES = ("adversarial-robustness-toolbox", "numpy", "pillow", "scipy", "torchvision")
CPU_SHARD = 256
GPU_SHARD = 4096  # at most, of small images
GPU_SHARD_VALUES = 2**24  # pixel values of a range: 111 images of 224x224 in colour
PHOTOGRAPH_VALUES = 2**19  # pixel values; attacks on a larger image take minutes
PHOTOGRAPHS = 4  # such images in a unit


def shard_size(shard: int | str, components: Components, task: str = DEFAULT) -> int:
    """Return the number of images in a unit, the same for all defenses of a run.

    Images of one size at the default task have the units that they had before there were others.
    """
    if isinstance(shard, int):
        return shard
    data = components.data
    values = data.channels * data.size**2
    has_old_units = data.uniform and task == DEFAULT
    if values > PHOTOGRAPH_VALUES and not has_old_units:
        return PHOTOGRAPHS
    if components.device.type == "cpu":
        return CPU_SHARD
    images = GPU_SHARD_VALUES // values
    return max(CPU_SHARD, min(GPU_SHARD, images))


def split_ranges(n: int, shard: int, changes: Sequence[int] = ()) -> list[tuple[int, int]]:
    """Return the (start, stop) of each unit of n images; none reaches over one of `changes`."""
    ends = [change for change in changes if 0 < change < n]
    ranges = []
    for first, last in pairwise([0, *ends, n]):
        for start in range(first, last, shard):
            ranges.append((start, min(start + shard, last)))
    return ranges


class KeyInputs:
    """All that decides a unit's outcomes; its key is their hash.

    What the ranges of a cell share is computed once for each cell.
    """

    def __init__(self, components: Components, numerics: NumericSettings) -> None:
        self._components, self._numerics = components, numerics
        self._code: dict[frozenset[str], dict[str, str]] = {}

    def of_cell(self, cell: Cell) -> dict[str, Any]:
        """Return everything but the images."""
        modules = self._modules(cell)
        return {
            "attacked": {
                **self._pipeline(cell.attacked),
                **self._gradient(cell),
                "drops": cell.threat_model.may_drop,
            },
            "scored": self._pipeline(cell.scored),
            "attack": self._components.key("attack", cell.bare_attack),
            "eps": cell.eps.value,
            "norm": cell.norm,
            "seed": cell.seed,
            "draws": cell.draws,
            "eot": cell.eot,
            **self._task(cell),
            **vars(self._numerics),
            "torch": str(torch.__version__),
            "libraries": _library_versions(modules),
            "code": self._code_hashes(modules),
        }

    def _task(self, cell: Cell) -> dict[str, Any]:
        """Return the task and what its thresholds are calibrated on; nothing of the default task.

        The hash of the code covers the modules of the cell's own task, and of no other.
        """
        if cell.task_spec == DEFAULT:
            return {}
        inputs: dict[str, Any] = {"name": cell.task.name, "settings": cell.task.settings}
        if cell.task.needs_calibration:
            inputs["calibration"] = self._calibration_hash
        return {"task": inputs}

    @cached_property
    def _calibration_hash(self) -> str:
        return tensor_sha256(*calibration_images(self._components.data))

    def code_of(self, cell: Cell) -> dict[str, str]:
        """Return the hashes of the code that computes a cell, as this process sees it."""
        return self._code_hashes(self._modules(cell))

    def _modules(self, cell: Cell) -> frozenset[str]:
        components = self._components
        modules = modules_of(components.attack(cell.bare_attack)) | modules_of(cell.task)
        for pipeline in (cell.attacked, cell.scored):
            modules |= modules_of(components.classifier(pipeline.classifier))
            modules |= modules_of(components.defense(pipeline.defense))
        return frozenset(modules)

    def _code_hashes(self, modules: frozenset[str]) -> dict[str, str]:
        if modules not in self._code:
            self._code[modules] = hash_packages(modules)
        return self._code[modules]

    def _pipeline(self, pipeline: Pipeline) -> dict[str, Any]:
        return {
            "classifier": self._components.key("classifier", pipeline.classifier),
            "defense": self._components.key("defense", pipeline.defense),
        }

    def _gradient(self, cell: Cell) -> dict[str, str | None]:
        """A learned gradient is its weights.

        Declared and identity are one for a purifier that declares the identity, unless the attack
        goes on from the declared gradient to others.
        """
        pipeline = cell.attacked
        if pipeline.gradient == "learned":
            network = self._components.bpda.hash(pipeline.classifier, pipeline.defense)
            return {"gradient": "learned", "learned": network}
        declared = self._components.defense(pipeline.defense).card.gradient
        goes_on = self._components.attack(cell.bare_attack).card.chooses_gradients
        if pipeline.gradient == "declared" and declared == "identity" and not goes_on:
            return {"gradient": "identity"}
        return {"gradient": pipeline.gradient}


@cache
def _library_versions(modules: frozenset[str]) -> dict[str, str]:
    """Return the versions of all libraries that compute, by their names.

    Extras are among them where these modules import them, and requirements of plugins.
    """
    versions = {name: version(name) for name in _LIBRARIES} | optional_versions(modules)
    for package in sorted({module.partition(".")[0] for module in modules}):
        versions |= requirement_versions(package)
    return versions
