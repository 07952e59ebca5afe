"""What the images of a run are: which repeat, and whether their classes are those of training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defend.benchmarks.near_copies import CopyFinder, list_runs
from defend.dataset import Dataset, Split
from defend.errors import MissingData
from defend.record_parts import ClassShares, ImageSample


@dataclass(frozen=True, kw_only=True)
class DescribedImages:
    """The n images that all cells of a run share."""

    clusters: int  # things that they show
    largest_class: float | None  # the share of the most frequent label; None without labels
    sample: ImageSample


class ImageDescriber:
    """Collect the images of a run range by range, and describe them."""

    def __init__(self) -> None:
        self._finder = CopyFinder()
        self._labels: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take images (b, c, h, w) in [0, 1] with labels (b,)."""
        self._finder.add(x)
        self._labels.append(y)

    def describe(self, data: Dataset, split: Split, has_claims: bool) -> DescribedImages:
        """Return what was collected of a split. Things that are shown again count once.

        has_claims: the classes are compared with those of training, which a claim needs.
        """
        firsts = self._finder.first_of_cluster(data.card.distinct.get(split))
        clusters, rows = np.unique(firsts, return_index=True)
        labels = torch.cat(self._labels).numpy()
        counts = np.bincount(labels[rows], minlength=data.classes)
        is_judged = data.labelled and has_claims
        return DescribedImages(
            clusters=len(clusters),
            largest_class=float(counts.max() / len(rows)) if data.labelled else None,
            sample=ImageSample(
                distinct=self._finder.distinct,
                copies=list_runs(firsts),
                classes=judge_classes(counts, count_training(data)) if is_judged else None,
            ),
        )


def count_training(data: Dataset) -> NDArray[np.int64] | None:
    """Return the number of training images of each class (classes,), None if there are none."""
    if "train" not in data.splits:
        return None
    try:
        counts = data.count_labels("train")
    except MissingData:
        return None
    return np.asarray(counts, np.int64) if sum(counts) else None


def judge_classes(counts: NDArray[np.int64], training: NDArray[np.int64] | None) -> ClassShares:
    """Return how the images of each class (classes,) compare with those of training.

    Of each class the exact binomial probability of so many images or more is taken, at its share in
    training (of which each class has one image more than was counted, so that none is impossible),
    or at an even share without training. The smallest stands for all, times their number
    (Bonferroni).
    """
    from scipy.stats import binom  # slow to import

    n, classes = int(counts.sum()), len(counts)
    known = np.zeros(classes) if training is None else training
    expected = (known + 1) / (known.sum() + classes)
    p = binom.sf(counts - 1, n, expected)
    label = int(np.argmin(p))
    return ClassShares(
        present=int((counts > 0).sum()),
        label=label,
        share=float(counts[label] / n),
        expected=float(expected[label]),
        against="even" if training is None else "train",
        p=min(1.0, float(p[label]) * classes),
    )
