"""What stands in the place of a classifier at a task that measures the purified image itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from defend.trained_on import TrainedOn


class NoClassifier:
    """The identity: the output of the pipeline is the purified image (b, c, h, w)."""

    settings: Mapping[str, Any] = {}
    weights_sha256: Mapping[str, str] = {}
    trained_on: tuple[TrainedOn, ...] = ()

    def __init__(self) -> None:
        self.network = nn.Identity()

    def run_as(self, precision: str, layout: str) -> None:
        """Do nothing: the identity has no precision and no layout."""
