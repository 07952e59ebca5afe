"""What every data set must do. Each check takes one fresh instance and asserts one thing.

Small on purpose: the first 64 images of a split, except where a split is compared with another. Where the data is absent, or says nothing
about the claim, a check is not applicable.
"""

from __future__ import annotations

import hashlib
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from defend.dataset import SPLITS, Dataset, Split
from defend.errors import BadParameter, DefendError, MissingData
from defend.noise import Noise
from defend.testing.runner import Check, NotApplicable

N = 64
BUDGET = (
    2 * 10**8
)  # pixels of a split that are hashed: all of CIFAR-10's training images, 5,000 of 112x112


def first(d: Dataset, split: Split, n: int = N) -> tuple[Tensor, Tensor]:
    """The first n images, fewer where there are fewer."""
    return d.rows(split, 0, min(n, there(d, split)))


def there(d: Dataset, split: Split) -> int:
    """How many images; NotApplicable where the data is absent."""
    try:
        return d.count(split)
    except MissingData as e:
        raise NotApplicable(str(e)) from None


def batches(d: Dataset) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The beginning of each split, and of the stream where there is one."""
    for split in SPLITS:
        yield split, *first(d, split)
    fresh = d.stream("train", streams(0))
    if fresh is not None:
        yield "stream", *fresh


def streams(seed: int) -> Noise:
    return Noise.of(seed, torch.arange(N))


def same(a: tuple[Tensor, Tensor] | None, b: tuple[Tensor, Tensor] | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def prints(x: Tensor) -> list[bytes]:
    """A hash of each image."""
    return [hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in x]


@contextmanager
def no_network() -> Iterator[list[str]]:
    """Every attempt to reach another machine fails, and is listed."""
    tried: list[str] = []

    def refuse(*args: Any, **_: Any) -> Any:
        tried.append(str(next((a for a in args if isinstance(a, str | tuple)), "?")))
        raise OSError("the network is off in this check")

    with (
        patch.object(socket, "getaddrinfo", refuse),
        patch.object(socket.socket, "connect", refuse),
    ):
        yield tried


def check_images_are_float_in_0_1(d: Dataset) -> None:
    for split, x, _ in batches(d):
        assert len(x), f"{split} is empty"
        assert x.dtype == torch.float32, f"{split}: images are {x.dtype}, not float32"
        assert x.shape[1:] == (d.channels, d.size, d.size), (
            f"{split}: images of {tuple(x.shape[1:])} for {d.channels} channels of {d.size}x{d.size}"
        )
        assert x.isfinite().all() and x.min() >= 0 and x.max() <= 1, (
            f"{split}: pixels from {x.min():.4g} to {x.max():.4g}"
        )
        assert x.max() > 1 / 8, f"{split}: no pixel above {x.max():.4g}: divided by 255 twice?"


def check_labels_are_classes(d: Dataset) -> None:
    for split, x, y in batches(d):
        assert y.dtype == torch.int64 and y.shape == (len(x),), (
            f"{split}: labels {y.dtype} {tuple(y.shape)} for {len(x)} images"
        )
        assert y.min() >= 0 and y.max() < d.classes, (
            f"{split}: labels from {y.min()} to {y.max()} of {d.classes} classes"
        )


def check_same_order_each_time(d: Dataset) -> None:
    """Whatever the caller does with what it got, whatever the global random state, and in a fresh instance."""
    again = rebuilt(d, d.root)
    for split in SPLITS:
        x, y = first(d, split)
        kept = x.clone(), y.clone()
        x.zero_(), y.zero_()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            assert same(first(d, split), kept), f"{split}: two calls for the same images differ"
            assert same(first(again, split), kept), f"{split}: a fresh instance gives other images"
    assert same(d.stream("train", streams(0)), d.stream("train", streams(0))), (
        "the same noise streams other images"
    )


def check_first_n_are_a_prefix(d: Dataset) -> None:
    for split in SPLITS:
        x, y = first(d, split)
        n, k = len(x), len(x) // 3
        assert same(d.rows(split, 0, k), (x[:k], y[:k])), (
            f"{split}: the first {k} are not the beginning of the first {n}"
        )
        assert same(d.rows(split, k, n), (x[k:], y[k:])), (
            f"{split}: images {k} to {n} differ when asked for alone"
        )


def check_checksum_of_first_64(d: Dataset) -> None:
    """`checksum`, where the class declares one: `checksum_of` the test split. Other images under the same name are found here."""
    wanted = getattr(d, "checksum", "")
    if not wanted:
        raise NotApplicable(f"{type(d).__name__} declares no checksum")
    got = checksum_of(d)
    assert got == wanted, (
        f"the first {N} test images and labels have the checksum {got}, declared is {wanted}: other data, or another order"
    )


def checksum_of(d: Dataset) -> str:
    """sha256 of the first 64 test images, as bytes 0..255, and of their labels: its first 16 hex digits."""
    x, y = first(d, "test")
    return hashlib.sha256(
        (x * 255).round().to(torch.uint8).numpy().tobytes() + y.numpy().tobytes()
    ).hexdigest()[:16]


def check_names_match_classes(d: Dataset) -> None:
    there(d, "test")
    assert len(d.names) == d.classes, f"{len(d.names)} names for {d.classes} classes"
    assert all(isinstance(n, str) and n for n in d.names) and len(set(d.names)) == d.classes, (
        f"names must be different, not empty: {d.names[:10]}"
    )


def check_no_network_and_a_clear_error(d: Dataset) -> None:
    """What lies on disk is read without a network; where nothing lies, one line names the place."""
    with tempfile.TemporaryDirectory() as empty, no_network() as tried:
        message = error_without_data(d, empty)
        assert message or not tried, f"embedded data asked the network for {tried[0]}"
        assert not message or (empty in message and "\n" not in message), (
            f"without data, the error must be one line that names {empty}: {message}"
        )
        tried.clear()
        for split in SPLITS:
            first(d, split, 1)
        assert not tried, f"data that lies on disk asked the network for {tried[0]}"


def error_without_data(d: Dataset, empty: str) -> str:
    """What it says on an empty data root; nothing where it needs none."""
    try:
        first(rebuilt(d, empty), "test", 1)
    except (NotApplicable, MissingData) as e:
        return str(e)
    except Exception as e:
        raise AssertionError(f"without data: {type(e).__name__} instead of MissingData: {e}") from e
    return ""


def check_more_than_there_is_an_error(d: Dataset) -> None:
    n = there(d, "test")
    for start, stop in ((0, n + 1), (n, n + 1), (-1, 1), (2, 1)):
        message = refusal(d, start, stop)
        assert str(n) in message, (
            f"images {start} to {stop}: the error must say that there are {n}: {message}"
        )


def refusal(d: Dataset, start: int, stop: int) -> str:
    try:
        x, _ = d.rows("test", start, stop)
    except BadParameter as e:
        return str(e)
    raise AssertionError(
        f"images {start} to {stop} of test: got a batch of {len(x)} instead of an error"
    )


def check_splits_share_no_image(d: Dataset) -> None:
    limit = BUDGET // (d.channels * d.size**2)
    seen = {split: set(hashes(d, split, min(there(d, split), limit))) for split in SPLITS}
    if fresh := d.stream("train", streams(0)):
        seen["train"] |= set(prints(fresh[0]))
    for a, b in combinations(SPLITS, 2):
        shared = len(seen[a] & seen[b])
        assert not shared, f"{a} and {b} share {shared} images"


def hashes(d: Dataset, split: Split, n: int, step: int = 500) -> Iterator[bytes]:
    for start in range(0, n, step):
        yield from prints(d.rows(split, start, min(start + step, n))[0])


def check_card_names_source_and_licence(d: Dataset) -> None:
    assert d.card.source.startswith(("arXiv:", "doi:", "https://", "none: ")), (
        f"card.source {d.card.source!r}: expected arXiv:, doi:, https:// or 'none: why'"
    )
    assert d.card.licence.strip() and (type(d).__doc__ or "").strip(), (
        "the card must name a licence, and the class needs a docstring"
    )
    assert all(s in SPLITS and k > 0 for s, k in d.card.distinct.items()), (
        f"card.distinct {dict(d.card.distinct)}: expected split -> images > 0"
    )
    assert all(norm in ("Linf", "L2") and eps > 0 for norm, eps in d.card.claim.items()), (
        f"card.claim {dict(d.card.claim)}: expected norm -> eps > 0"
    )


def rebuilt(d: Dataset, root: str | None) -> Dataset:
    """A fresh instance with the same settings, on another data root."""
    try:
        return type(d)(root=root, **d.settings)
    except MissingData:  # a fair answer to an empty root
        raise
    except (DefendError, TypeError) as e:
        raise AssertionError(f"type(d)(**d.settings) does not rebuild it: {e}") from e


def dataset_checks() -> Iterator[Check]:
    for name, value in list(globals().items()):
        if name.startswith("check_"):
            yield value
