"""Which images show the same thing: copies, near copies, and what the card of a data set says."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn.functional import avg_pool2d

# Two images are near copies if their pixels differ by so much or less, as a root mean square, which
# an L-inf distance of 8 grey levels implies. Of 10,000 test images of MNIST and of CIFAR-10 no two
# are as near (9.8 and 16.1 levels), and of Fashion-MNIST one pair is (1.5).
NEAR = 8 / 255
SIDE = 32  # pixels, to which larger images are averaged before they are compared
ROWS = 1024  # images that are compared with all earlier ones at once


class CopyFinder:
    """Collect images range by range, and say which show the same thing."""

    def __init__(self) -> None:
        self._hashes: set[bytes] = set()
        self._small: list[Tensor] = []  # (b, values) for each range

    def add(self, x: Tensor) -> None:
        """Take images (b, c, h, w) in [0, 1]."""
        levels = (x.detach().cpu() * 255).round().to(torch.uint8)
        for image in levels.numpy():
            content = repr(image.shape).encode() + image.tobytes()
            self._hashes.add(hashlib.blake2b(content, digest_size=16).digest())
        side = ceil(max(x.shape[2:]) / SIDE)
        small = avg_pool2d(levels.float() / 255, side, ceil_mode=True, count_include_pad=False)
        self._small.append(small.flatten(1))

    @property
    def distinct(self) -> int:
        """The number of images that differ on the grid of 256 levels."""
        return len(self._hashes)

    def first_of_cluster(self, period: int | None = None) -> NDArray[np.int64]:
        """Return for each image the first one that shows the same thing (n,).

        Near copies of one image are of one cluster, as are images a multiple of `period` apart.
        """
        n = sum(map(len, self._small))
        pairs = [np.empty((0, 2), np.int64), *_near_pairs(self._small)]
        if period is not None and period < n:
            repeats = np.arange(period, n)
            pairs.append(np.stack([repeats, repeats - period], 1))
        return _join_pairs(np.concatenate(pairs), n)


def _near_pairs(ranges: Sequence[Tensor]) -> Iterator[NDArray[np.int64]]:
    """Yield the pairs (m, 2) of near copies; images of different sizes are none."""
    starts = np.cumsum([0, *map(len, ranges)])
    by_size: dict[int, list[int]] = {}
    for i, images in enumerate(ranges):
        by_size.setdefault(images.shape[1], []).append(i)
    for members in by_size.values():
        images = torch.cat([ranges[i] for i in members])
        places = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in members])
        for first in range(0, len(images), ROWS):
            stop = first + ROWS
            rows, others = _find_near(images[first:stop], images[:stop])
            yield np.stack([places[first + rows], places[others]], 1)


def _find_near(some: Tensor, images: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of `some` and of `images` that are nearly equal."""
    distance = torch.cdist(some, images, compute_mode="use_mm_for_euclid_dist")
    is_near = distance <= NEAR * images.shape[1] ** 0.5
    rows, others = is_near.nonzero(as_tuple=True)
    return rows.numpy(), others.numpy()


def _join_pairs(pairs: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return for each of n images the first of those that the pairs (m, 2) join with it."""
    graph = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), (n, n))
    _, members = connected_components(graph, directed=False)
    _, firsts = np.unique(members, return_index=True)
    return np.asarray(firsts[members], np.int64)


def list_runs(firsts: NDArray[np.int64]) -> tuple[tuple[int, int, int], ...]:
    """Return the runs (start, stop, first) of images that show what earlier ones show.

    They are those of `ImageSample.copies`.
    """
    runs: list[tuple[int, int, int]] = []
    for i in np.flatnonzero(firsts != np.arange(len(firsts))).tolist():
        first = int(firsts[i])
        start, stop, of = runs[-1] if runs else (0, -1, 0)
        if i == stop and first == of + (i - start) % (start - of):
            runs[-1] = (start, i + 1, of)
        else:
            runs.append((i, i + 1, first))
    return tuple(runs)
