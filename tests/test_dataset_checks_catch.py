"""Every check of a data set has one that breaks it: a check nothing can fail is not a check."""

import socket
import urllib.request

import numpy as np
import pytest
import torch

from defend.dataset import ArrayDataset, Dataset, DatasetCard
from defend.errors import MissingData
from defend.testing import dataset_checks as dc
from defend.testing.runner import NotApplicable

CARD = DatasetCard(source="none: made for this test", licence="MIT", claim={})


class Small(ArrayDataset):
    """Random images, different in each split."""

    card = CARD
    channels, size, names = 3, 8, ("cat", "dog")

    def arrays(self, split):
        draw = np.random.default_rng(["train", "val", "test"].index(split))
        return draw.integers(0, 256, (90, 3, 8, 8), np.uint8), draw.integers(0, 2, 90)


def broken(**methods):
    return type("Broken", (Small,), {"__doc__": "broken", **methods})()


def twice_divided(self, split, start, stop):
    x, y = Small._rows(self, split, start, stop)
    return x / 255, y


def classes_from_one(self, split):
    x, y = Small.arrays(self, split)
    return x, y + 1


def lends_its_memory(self, split, start, stop):
    kept = self.__dict__.setdefault("kept", Small._rows(self, split, 0, 90))
    return kept[0][start:stop], kept[1][start:stop]


def shuffled(self, split, start, stop):
    order = torch.randperm(90, generator=torch.Generator().manual_seed(stop))
    x, y = Small._rows(self, split, 0, 90)
    return x[order][start:stop], y[order][start:stop]


def cut_short(self, split, start, stop):
    start, stop = max(start, 0), min(stop, self.count(split))
    return self._rows(split, start, max(start, stop))


def looks_for_news(self, split):
    with pytest.raises(OSError):
        urllib.request.urlopen("http://localhost:9/news", timeout=1)
    return Small.arrays(self, split)


def says_nothing_useful(self, split):
    if self.root:
        raise MissingData("no data")
    return Small.arrays(self, split)


def crashes_without_data(self, split):
    if self.root:
        raise KeyError("images")
    return Small.arrays(self, split)


BROKEN = {
    "check_images_are_float_in_0_1": [
        lambda: broken(_rows=twice_divided),
        lambda: broken(size=9),
        lambda: broken(_rows=lambda s, *a: (Small._rows(s, *a)[0].double(), Small._rows(s, *a)[1])),
        lambda: broken(_rows=lambda s, *a: (Small._rows(s, *a)[0] * 2 - 1, Small._rows(s, *a)[1])),
        lambda: broken(arrays=lambda *_: (np.zeros((0, 3, 8, 8), np.uint8), np.zeros(0))),
    ],
    "check_labels_are_classes": [
        lambda: broken(arrays=classes_from_one),
        lambda: broken(_rows=lambda s, *a: (Small._rows(s, *a)[0], Small._rows(s, *a)[1].int())),
    ],
    "check_same_order_each_time": [
        lambda: broken(_rows=lends_its_memory),
        lambda: broken(
            _rows=lambda s, *a: (Small._rows(s, *a)[0] + torch.rand(1) / 100, Small._rows(s, *a)[1])
        ),
        lambda: broken(
            stream=lambda _s, _split, noise: (
                torch.rand(len(noise), 3, 8, 8),
                torch.zeros(len(noise), dtype=torch.int64),
            )
        ),
    ],
    "check_first_n_are_a_prefix": [lambda: broken(_rows=shuffled)],
    "check_checksum_of_first_64": [lambda: broken(checksum="0123456789abcdef")],
    "check_names_match_classes": [
        lambda: broken(names=("cat", "cat")),
        lambda: broken(classes=3),
        lambda: broken(names=("cat", "")),
    ],
    "check_no_network_and_a_clear_error": [
        lambda: broken(arrays=looks_for_news),
        lambda: broken(arrays=says_nothing_useful),
        lambda: broken(arrays=crashes_without_data),
    ],
    "check_more_than_there_is_an_error": [lambda: broken(rows=cut_short)],
    "check_splits_share_no_image": [
        lambda: broken(arrays=lambda s, _: Small.arrays(s, "train")),
        lambda: broken(stream=lambda s, *_: Small.rows(s, "test", 0, 9)),
    ],
    "check_card_names_source_and_licence": [
        lambda: broken(card=DatasetCard(source="trust me", licence="MIT", claim={})),
        lambda: broken(card=DatasetCard(source="arXiv:1", licence="", claim={})),
        lambda: broken(card=DatasetCard(source="arXiv:1", licence="MIT", claim={"Linf": 0})),
    ],
}


def test_every_check_has_a_breaker():
    assert {c.__name__ for c in dc.dataset_checks()} == set(BROKEN)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        pytest.param(name, make, id=f"{name}-{i}")
        for name, makes in BROKEN.items()
        for i, make in enumerate(makes)
    ],
)
def test_check_catches(name, make):
    with pytest.raises(AssertionError):
        getattr(dc, name)(make())


@pytest.mark.parametrize("check", list(dc.dataset_checks()), ids=lambda c: c.__name__)
def test_a_sound_data_set_passes(check):
    check(broken(checksum=dc.checksum_of(Small())))


@pytest.mark.parametrize("check", list(dc.dataset_checks()), ids=lambda c: c.__name__)
def test_absent_data_is_a_reason_not_a_failure(check):
    class Absent(Small):
        """Images that nobody has."""

        def arrays(self, split):
            raise MissingData(f"absent: nothing in {self.root}")

    if "card" in check.__name__:  # the only claim that needs no image
        return check(Absent(root="here"))
    with pytest.raises(NotApplicable, match=r"nothing in here|declares no checksum"):
        check(Absent(root="here"))
    return None


def test_the_network_comes_back():
    before = socket.getaddrinfo, socket.socket.connect
    with dc.no_network() as tried, pytest.raises(OSError):
        socket.create_connection(("localhost", 9))
    assert tried == ["localhost"] and (socket.getaddrinfo, socket.socket.connect) == before


def test_rows_refuse_a_split_that_is_none():
    with pytest.raises(ValueError, match="train, val, test"):
        Dataset.rows(Small(), "eval", 0, 1)
