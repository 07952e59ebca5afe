"""Each check of the data set kit fails for data sets that break its property."""

# ruff: noqa: ARG001, ARG005 (a broken method has the arguments of the one that it replaces)

import socket
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
import torch

from defend.dataset import ArrayDataset, Dataset, DatasetCard
from defend.errors import MissingData
from defend.testing import NotApplicable, dataset_checks, kit

CARD = DatasetCard(source="none: made for this test", licence="MIT", claim={})


class Small(ArrayDataset):
    """Random images, different in each split."""

    card = CARD
    channels, size, names = 3, 8, ("cat", "dog")

    def arrays(self, split):
        draw = np.random.default_rng(["train", "val", "test"].index(split))
        return draw.integers(0, 256, (90, 3, 8, 8), np.uint8), draw.integers(0, 2, 90)


def broken(**methods):
    """Return a data set of a class with these methods and attributes."""
    return type("Broken", (Small,), {"__doc__": "broken", **methods})()


def classes_from_one(self, split, start, stop):
    x, y = Small._rows(self, split, start, stop)
    return x, y + 1


def lends_its_memory(self, split, start, stop):
    x, y = self.__dict__.setdefault("batch", Small._rows(self, split, 0, 90))
    return x[start:stop], y[start:stop]


def shuffled(self, split, start, stop):
    order = torch.randperm(90, generator=torch.Generator().manual_seed(stop))
    x, y = Small._rows(self, split, 0, 90)
    return x[order][start:stop], y[order][start:stop]


def cut_short(self, split, start, stop):
    start, stop = max(start, 0), min(stop, self.count(split))
    return self._rows(split, start, max(start, stop))


def asks_the_network(self, split):
    with pytest.raises(OSError):
        urllib.request.urlopen("http://localhost:9/news", timeout=1)
    return Small.arrays(self, split)


def names_no_folder(self, split):
    if self.root:
        raise MissingData("no data")
    return Small.arrays(self, split)


def crashes_without_data(self, split):
    if self.root:
        raise KeyError("images")
    return Small.arrays(self, split)


def with_images(change):
    """Return a `_rows` that changes the images of Small."""

    def rows(self, split, start, stop):
        x, y = Small._rows(self, split, start, stop)
        return change(x), y

    return rows


def changes_at(row):
    """Return a `size_changes` of one change."""
    return lambda self, split: (row,)


def two_sizes(self, split, start, stop):
    """Return images of 8x8, and of 8x4 from the 30th on."""
    x, y = Small._rows(self, split, start, stop)
    return (x if start < 30 else x[..., :4]), y


def int32_labels(self, split, start, stop):
    x, y = Small._rows(self, split, start, stop)
    return x, y.int()


def no_images(self, split):
    return np.zeros((0, 3, 8, 8), np.uint8), np.zeros(0, np.int64)


def stream_of_global_noise(self, split, noise):
    return torch.rand(len(noise), 3, 8, 8), torch.zeros(len(noise), dtype=torch.int64)


def stream_of_test_images(self, split, noise):
    return Small.rows(self, "test", 0, 9)


def card(**changed):
    """Return a sound card with changes."""
    return replace(CARD, **changed)


BROKEN = {
    "check_images_are_float_in_0_1": [
        lambda: broken(_rows=with_images(lambda x: x / 255)),
        lambda: broken(size=9),
        lambda: broken(_rows=with_images(lambda x: x.double())),
        lambda: broken(_rows=with_images(lambda x: x * 2 - 1)),
        lambda: broken(arrays=no_images),
    ],
    "check_labels_are_classes": [
        lambda: broken(_rows=classes_from_one),
        lambda: broken(_rows=int32_labels),
    ],
    "check_sizes_change_where_it_says": [
        lambda: broken(size_changes=changes_at(30)),
        lambda: broken(size_changes=changes_at(30), uniform=False),
        lambda: broken(size_changes=changes_at(0), uniform=False, _rows=two_sizes),
        lambda: broken(size_changes=changes_at(40), uniform=False, _rows=two_sizes),
    ],
    "check_same_order_each_time": [
        lambda: broken(_rows=lends_its_memory),
        lambda: broken(_rows=with_images(lambda x: x + torch.rand(1) / 100)),
        lambda: broken(stream=stream_of_global_noise),
    ],
    "check_first_n_are_a_prefix": [lambda: broken(_rows=shuffled)],
    "check_checksum_of_first_64": [lambda: broken(checksum="0123456789abcdef")],
    "check_names_match_classes": [
        lambda: broken(names=("cat", "cat")),
        lambda: broken(classes=3),
        lambda: broken(names=("cat", "")),
    ],
    "check_no_network_and_a_clear_error": [
        lambda: broken(arrays=asks_the_network),
        lambda: broken(arrays=names_no_folder),
        lambda: broken(arrays=crashes_without_data),
    ],
    "check_more_than_there_is_an_error": [lambda: broken(rows=cut_short)],
    "check_splits_share_no_image": [
        lambda: broken(arrays=lambda s, _: Small.arrays(s, "train")),
        lambda: broken(stream=stream_of_test_images),
    ],
    "check_card_names_source_and_licence": [
        lambda: broken(card=card(source="trust me")),
        lambda: broken(card=card(licence="")),
        lambda: broken(card=card(claim={"Linf": 0})),
    ],
}


def test_every_check_has_a_broken_example():
    assert {check.__name__ for check in kit("dataset")} == set(BROKEN)


CASES = []
for name, makers in BROKEN.items():
    for i, make_dataset in enumerate(makers):
        CASES.append(pytest.param(name, make_dataset, id=f"{name}-{i}"))


@pytest.mark.parametrize(("name", "make_dataset"), CASES)
def test_check_catches(name, make_dataset):
    check = getattr(dataset_checks, name)
    with pytest.raises(AssertionError):
        check(make_dataset())


@pytest.mark.parametrize("check", kit("dataset"), ids=lambda c: c.__name__)
def test_a_sound_data_set_passes(check):
    check(broken(checksum=dataset_checks.checksum_of(Small())))


class Absent(Small):
    """Images that are not on disk."""

    def arrays(self, split):
        raise MissingData(f"absent: nothing in {self.root}")


NEEDS_NO_IMAGE = {"check_card_names_source_and_licence"}


@pytest.mark.parametrize("check", kit("dataset"), ids=lambda c: c.__name__)
def test_checks_of_absent_data_are_not_applicable(check):
    if check.__name__ in NEEDS_NO_IMAGE:
        check(Absent(root="here"))
        return
    with pytest.raises(NotApplicable, match=r"nothing in here|declares no checksum"):
        check(Absent(root="here"))


def test_the_network_comes_back():
    before = socket.getaddrinfo, socket.socket.connect
    with dataset_checks.no_network() as attempts, pytest.raises(OSError):
        socket.create_connection(("localhost", 9))
    assert attempts == ["localhost"]
    assert (socket.getaddrinfo, socket.socket.connect) == before


def test_rows_refuse_an_unknown_split():
    with pytest.raises(ValueError, match="train, val, test"):
        Dataset.rows(Small(), "eval", 0, 1)
