"""The conformance kit of data sets. Each check takes one data set and asserts one property.

The checks are small on purpose: they read the first 64 images of a split, except where splits are
compared. A check is not applicable if the data is absent, or if it is about a claim that the data
set does not make.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Iterator
from itertools import combinations, pairwise

import torch
from torch import Tensor

from defend.dataset import SPLITS, Dataset, Split
from defend.errors import BadParameter, DefendError, MissingData
from defend.noise import Noise
from defend.testing.no_network import no_network as no_network
from defend.testing.runner import (
    ConformanceCheck,
    NotApplicable,
    checks_defined_in,
    reads_only,
)

FIRST = 64  # images
# Pixels of a split that are hashed: all of CIFAR-10's training images, or 5,000 of 112x112.
HASHED_PIXELS = 2 * 10**8


def first_images(d: Dataset, split: Split, n: int = FIRST) -> tuple[Tensor, Tensor]:
    """Return the first n images with their labels, or all of one size if there are fewer."""
    ends = [n, count_images(d, split), *d.size_changes(split)]
    return d.rows(split, 0, min(ends))


def count_images(d: Dataset, split: Split) -> int:
    """Return the number of images. Raise NotApplicable if the data is absent."""
    try:
        return d.count(split)
    except MissingData as e:
        raise NotApplicable(str(e)) from None


def batch_of_each_source(d: Dataset) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield the first images of each split, and of the stream if there is one, with its name."""
    for split in d.splits:
        yield split, *first_images(d, split)
    streamed = d.stream("train", stream_noise())
    if streamed is not None:
        yield "stream", *streamed


def stream_noise() -> Noise:
    """Return the noise from which a stream draws 64 images."""
    return Noise.of(0, torch.arange(FIRST))


def equal_batches(a: tuple[Tensor, Tensor] | None, b: tuple[Tensor, Tensor] | None) -> bool:
    """Return True if images and labels are equal, or both batches are None."""
    if a is None or b is None:
        return a is b
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def image_hashes(x: Tensor) -> list[bytes]:
    """Return a hash of each image."""
    return [hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in x]


def split_hashes(d: Dataset, split: Split, n: int, batch: int = 500) -> Iterator[bytes]:
    """Yield a hash of each of the first n images of a split."""
    ends = [end for end in d.size_changes(split) if end < n]
    for first, last in pairwise([0, *ends, n]):
        for start in range(first, last, batch):
            x, _ = d.rows(split, start, min(start + batch, last))
            yield from image_hashes(x)


def rebuilt(d: Dataset, root: str | None) -> Dataset:
    """Return a fresh data set with the same settings, on another data root.

    Raise MissingData, which is a fair answer to an empty root.
    """
    try:
        return type(d)(root=root, **d.settings)
    except MissingData:
        raise
    except (DefendError, TypeError) as e:
        raise AssertionError(f"type(d)(**d.settings) does not rebuild it: {e}") from e


@reads_only
def check_images_are_float_in_0_1(d: Dataset) -> None:
    """Fail if a split is empty, or its images are not float32 in [0, 1] of the declared shape."""
    for source, x, _ in batch_of_each_source(d):
        shape = (d.channels, d.size, d.size)
        if not d.uniform and max(x.shape[2:]) == d.size:
            shape = (d.channels, *x.shape[2:])
        assert len(x), f"{source}: expected images, got none"
        assert x.dtype == torch.float32, f"{source}: expected float32 images, got {x.dtype}"
        assert x.shape[1:] == shape, f"{source}: expected images {shape}, got {tuple(x.shape[1:])}"
        assert x.isfinite().all() and x.min() >= 0 and x.max() <= 1, (
            f"{source}: expected pixels in [0, 1], got {x.min():.4g} to {x.max():.4g}"
        )
        assert x.max() > 1 / 8, (
            f"{source}: expected pixels up to 1, got none above {x.max():.4g}; "
            "were they divided by 255 twice?"
        )


@reads_only
def check_labels_are_classes(d: Dataset) -> None:
    """Fail if the labels are not int64 numbers of classes, one for each image."""
    try:
        batches = list(batch_of_each_source(d))
    except BadParameter as e:  # `rows` refuses labels that are no class
        raise AssertionError(str(e)) from None
    for source, x, y in batches:
        assert y.dtype == torch.int64 and y.shape == (len(x),), (
            f"{source}: expected labels int64 ({len(x)},), got {y.dtype} {tuple(y.shape)}"
        )
        last = max(0, d.classes - 1)  # of images without labels all are 0
        assert y.min() >= 0 and y.max() <= last, (
            f"{source}: expected labels from 0 to {last}, got {y.min()} to {y.max()}"
        )


@reads_only
def check_sizes_change_where_it_says(d: Dataset) -> None:
    """Fail if images of several sizes do not change their size exactly where `size_changes` says.

    Elsewhere a range of images cannot be a batch.
    """
    for split in d.splits:
        n = count_images(d, split)
        changes = d.size_changes(split)
        assert not (d.uniform and changes), f"{split}: uniform=True, and sizes change at {changes}"
        assert all(0 < change < n for change in changes), (
            f"{split}: expected changes of size between image 1 and {n - 1}, got {changes}"
        )
        shapes = [d.rows(split, i, i + 1)[0].shape[1:] for i in (0, *changes)]
        for change, (before, after) in zip(changes, pairwise(shapes), strict=True):
            last = d.rows(split, change - 1, change)[0].shape[1:]
            assert last == before and after != before, (
                f"{split}: expected another size from image {change} on, got {tuple(last)} before"
                f" and {tuple(after)} after it"
            )


def check_same_order_each_time(d: Dataset) -> None:
    """Fail if the same images, asked for again, are others.

    The caller may overwrite what it got and move the global random state, and a fresh data set must
    give the same images too.
    """
    fresh = rebuilt(d, d.root)
    for split in d.splits:
        x, y = first_images(d, split)
        expected = x.clone(), y.clone()
        x.zero_()
        y.zero_()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            assert equal_batches(first_images(d, split), expected), (
                f"{split}: a second call for the same images gives others; return copies"
            )
            assert equal_batches(first_images(fresh, split), expected), (
                f"{split}: a fresh data set gives other images; fix their order"
            )
    first, second = d.stream("train", stream_noise()), d.stream("train", stream_noise())
    assert equal_batches(first, second), "stream: the same noise gives other images"


@reads_only
def check_first_n_are_a_prefix(d: Dataset) -> None:
    """Fail if an image depends on the range in which it is asked for."""
    for split in d.splits:
        x, y = first_images(d, split)
        n, k = len(x), len(x) // 3
        assert equal_batches(d.rows(split, 0, k), (x[:k], y[:k])), (
            f"{split}: images 0 to {k} differ from the beginning of images 0 to {n}"
        )
        assert equal_batches(d.rows(split, k, n), (x[k:], y[k:])), (
            f"{split}: images {k} to {n} differ from the end of images 0 to {n}"
        )


@reads_only
def check_checksum_of_first_64(d: Dataset) -> None:
    """Fail if the class declares a `checksum` that is not `checksum_of` the data: other images have
    the same name.
    """
    declared = getattr(d, "checksum", "")
    if not declared:
        raise NotApplicable(f"{type(d).__name__} declares no checksum")
    checksum = checksum_of(d)
    assert checksum == declared, (
        f"expected the checksum {declared} of the first {FIRST} test images and labels, "
        f"got {checksum}: these are other images, or they have another order"
    )


def checksum_of(d: Dataset) -> str:
    """Return the first 16 hex digits of the sha256 of the first 64 test images, as bytes from 0 to
    255, and of their labels.
    """
    x, y = first_images(d, "test")
    pixels = (x * 255).round().to(torch.uint8)
    return hashlib.sha256(pixels.numpy().tobytes() + y.numpy().tobytes()).hexdigest()[:16]


@reads_only
def check_names_match_classes(d: Dataset) -> None:
    """Fail if the names of the classes are not as many as the classes, different and not empty."""
    count_images(d, "test")
    assert len(d.names) == d.classes, f"expected {d.classes} names of classes, got {len(d.names)}"
    all_texts = all(isinstance(name, str) and name for name in d.names)
    assert all_texts and len(set(d.names)) == d.classes, (
        f"expected names that differ and are not empty, got {d.names[:10]}"
    )


def check_no_network_and_a_clear_error(d: Dataset) -> None:
    """Fail if data on disk needs a network, or if the error for absent data is not one line that
    names the folder.
    """
    with tempfile.TemporaryDirectory() as empty, no_network() as attempts:
        message = error_on_empty_root(d, empty)
        assert message or not attempts, (
            f"expected embedded data to need no network, got a request to {attempts[0]}"
        )
        assert not message or (empty in message and "\n" not in message), (
            f"without data: expected an error in one line that names {empty}, got: {message}"
        )
        attempts.clear()
        for split in d.splits:
            first_images(d, split, 1)
        assert not attempts, (
            f"expected data on disk to need no network, got a request to {attempts[0]}"
        )


def error_on_empty_root(d: Dataset, empty: str) -> str:
    """Return the error of the data set on an empty data root, or "" if it needs no data there."""
    try:
        first_images(rebuilt(d, empty), "test", 1)
    except (NotApplicable, MissingData) as e:
        return str(e)
    except Exception as e:
        raise AssertionError(
            f"without data: expected MissingData, got {type(e).__name__}: {e}"
        ) from e
    return ""


@reads_only
def check_more_than_there_is_an_error(d: Dataset) -> None:
    """Fail if a range beyond the split raises no BadParameter that says how many images exist."""
    n = count_images(d, "test")
    for start, stop in ((0, n + 1), (n, n + 1), (-1, 1), (2, 1)):
        message = refusal(d, start, stop)
        assert str(n) in message, (
            f"images {start} to {stop}: expected an error that says there are {n}, got: {message}"
        )


def refusal(d: Dataset, start: int, stop: int) -> str:
    """Return the error for a range of the test split. Raise AssertionError if it is accepted."""
    try:
        x, _ = d.rows("test", start, stop)
    except BadParameter as e:
        return str(e)
    raise AssertionError(
        f"images {start} to {stop} of test: expected BadParameter, got a batch of {len(x)}"
    )


@reads_only
def check_splits_share_no_image(d: Dataset) -> None:
    """Fail if an image is in two splits."""
    limit = HASHED_PIXELS // (d.channels * d.size**2)
    hashes = {}
    for split in d.splits:
        n = min(count_images(d, split), limit)
        hashes[split] = set(split_hashes(d, split, n))
    streamed = d.stream("train", stream_noise())
    if streamed is not None:
        hashes["train"] |= set(image_hashes(streamed[0]))
    for a, b in combinations(d.splits, 2):
        shared = len(hashes[a] & hashes[b])
        assert not shared, f"{a} and {b} share {shared} images"


@reads_only
def check_card_names_source_and_licence(d: Dataset) -> None:
    """Fail if the card lacks a source or a licence, or its numbers make no sense."""
    assert d.card.source.startswith(("arXiv:", "doi:", "https://", "none: ")), (
        f"card.source: expected arXiv:, doi:, https:// or 'none: <reason>', got {d.card.source!r}"
    )
    assert d.card.licence.strip(), "card.licence: expected the name of a licence, got nothing"
    assert (type(d).__doc__ or "").strip(), f"expected a docstring of {type(d).__name__}, got none"
    assert all(s in SPLITS and k > 0 for s, k in d.card.distinct.items()), (
        f"card.distinct: expected split -> images > 0, got {dict(d.card.distinct)}"
    )
    assert all(norm in ("Linf", "L2") and eps > 0 for norm, eps in d.card.claim.items()), (
        f"card.claim: expected norm -> eps > 0, got {dict(d.card.claim)}"
    )


def list_checks() -> Iterator[ConformanceCheck]:
    """Yield every check of a data set."""
    yield from checks_defined_in(sys.modules[__name__])
