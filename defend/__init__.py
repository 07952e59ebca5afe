"""Purifiers that are ART preprocessors, and benchmarks whose numbers survive an attacker who knows
them.

The public names are resolved on first use, so that `import defend` loads no torch.
"""

from __future__ import annotations

import itertools
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from defend.attack import Attack as Attack
    from defend.attack import AttackCard as AttackCard
    from defend.auditing import audit as audit
    from defend.benchmarks.run import bench as bench
    from defend.chain import Chain as Chain
    from defend.classifier import Classifier as Classifier
    from defend.classifier import ClassifierCard as ClassifierCard
    from defend.dataset import ArrayDataset as ArrayDataset
    from defend.dataset import Dataset as Dataset
    from defend.dataset import DatasetCard as DatasetCard
    from defend.gradients import identity as identity
    from defend.gradients import straight_through as straight_through
    from defend.loading import load as load
    from defend.noise import Noise as Noise
    from defend.purifier import Card as Card
    from defend.purifier import LearnedPurifier as LearnedPurifier
    from defend.purifier import Purifier as Purifier
    from defend.recomputation import recomputed as recomputed
    from defend.target import Target as Target

_HOMES = {
    "attack": ("Attack", "AttackCard"),
    "auditing": ("audit",),
    "benchmarks.run": ("bench",),
    "chain": ("Chain",),
    "classifier": ("Classifier", "ClassifierCard"),
    "dataset": ("ArrayDataset", "Dataset", "DatasetCard"),
    "gradients": (
        "PlainAutograd",
        "Relaxed",
        "identity",
        "relax",
        "soft_round",
        "straight_through",
    ),
    "loading": ("load",),
    "noise": ("Noise",),
    "purifier": ("Card", "LearnedPurifier", "Purifier"),
    "recomputation": ("recomputed",),
    "target": ("Target",),
}
__all__ = sorted(itertools.chain.from_iterable(_HOMES.values()))
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"defend.{module}"), name)
    raise AttributeError(f"module 'defend' has no attribute {name!r}")
