"""Parts of a record: the settings of its components, and what its images are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, field_validator


class RecordPart(BaseModel):
    """Abstract base: it cannot be changed, and has no fields that nobody knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class AttackedSettings(RecordPart):
    """Settings in force of the pipeline that was attacked."""

    classifier: Mapping[str, Any] = {}
    defense: Mapping[str, Any] = {}


class Settings(RecordPart):
    """All settings in force, defaults included, of every component of the cell."""

    classifier: Mapping[str, Any] = {}
    defense: Mapping[str, Any] = {}
    attack: Mapping[str, Any] = {}
    dataset: Mapping[str, Any] = {}
    attacked: AttackedSettings = AttackedSettings()


class PipelineHash(RecordPart):
    """Short hashes of the settings and weights of what was scored, however it was spelled."""

    classifier: str = ""
    defense: str = ""


class ScoredWeights(RecordPart):
    """The weights files of what was scored: name -> sha256."""

    classifier: Mapping[str, str] = {}
    defense: Mapping[str, str] = {}


End = Literal["nothing stands", "idle", "rounds"]


class SearchRounds(RecordPart):
    """How far a search in rounds came."""

    standing: tuple[float, ...]  # the share of images not broken: at first, after round 1, 2, ...
    broken_by: Mapping[str, int]  # how it attacked -> how many images that broke
    # Why it ended: "rounds" if it made all its rounds and images still fell. The worst reason of
    # its units; None in records of older versions, which do not say it.
    ended: End | None = None

    @property
    def lost_last(self) -> float | None:
        """Return the share of images that the last round broke, if the search was still winning."""
        if self.ended != "rounds" or len(self.standing) < 2:
            return None
        return max(0.0, self.standing[-2] - self.standing[-1])


class ClassShares(RecordPart):
    """How many classes the images show, and the class that is most above what it should be.

    Images that show the same thing count once. Shares are in [0, 1].
    """

    present: int
    label: int  # of the class with the smallest p-value
    share: float  # of the images
    expected: float  # the share in `against`
    against: Literal["train", "even"]  # even: the data set has no images of train
    # Exact, of so many or more images of this class by chance, times the number of classes.
    p: float


class ImageSample(RecordPart):
    """Which of the n images of a cell are the same, or nearly so."""

    distinct: int  # images whose pixels differ on the grid of 256 levels
    # (start, stop, first): the images from start to stop show in turn, again and again, what those
    # from `first` to start show. They are copies, near copies, or repeats by the data set's card.
    copies: tuple[tuple[int, int, int], ...] = ()
    classes: ClassShares | None = None  # None of images without labels, and at other tasks

    @field_validator("copies")
    @classmethod
    def _are_of_earlier_images(
        cls, copies: tuple[tuple[int, int, int], ...]
    ) -> tuple[tuple[int, int, int], ...]:
        """Raise ValueError for copies of no earlier image."""
        if not all(0 <= first < start < stop for start, stop, first in copies):
            raise ValueError("expected runs of images that show what earlier ones show")
        return copies

    def clusters(self, n: int) -> NDArray[np.int64] | None:
        """Return for each image the first that shows the same thing (n,); None if none repeats."""
        if not self.copies:
            return None
        ids = np.arange(n)
        for start, stop, first in self.copies:
            images = np.arange(start, min(stop, n))
            ids[images] = first + (images - start) % (start - first)
        return ids
