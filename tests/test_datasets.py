"""Data sets of fixed files: their pixels, splits, order, and errors for missing or damaged
files."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_files import all_rows, grey_levels
from sklearn.datasets import load_digits

from defend.dataset import SPLITS, held_out
from defend.datasets import idx
from defend.datasets.fashion_mnist import FashionMNIST
from defend.datasets.mnist import MNIST
from defend.errors import MissingData
from defend.loading import load
from defend.testing.no_network import no_network

CLAIMS = {
    "digits": {"Linf": 0.2},
    "digits-m": {"Linf": 16 / 255},
    "mnist": {"Linf": 0.3},
    "fashion-mnist": {"Linf": 0.1},
    "cifar10": {"Linf": 8 / 255, "L2": 0.5},
    "faces": {"Linf": 4 / 255},
}


@pytest.mark.parametrize("name", CLAIMS)
def test_the_claim_eps_is_the_fixed_one(name):
    assert dict(load(name, "dataset").card.claim) == CLAIMS[name]


# digits


def test_digits_are_those_of_scikit_learn_each_once():
    data = load("digits", "dataset")
    splits = [all_rows(data, split) for split in SPLITS]
    x, y = torch.cat([x for x, _ in splits]), torch.cat([y for _, y in splits])
    levels = (grey_levels(x).reshape(-1, 64) * 16 + 127) // 255
    actual = {(image.tobytes(), label) for image, label in zip(levels, y.tolist())}
    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.int64)
    expected = {(image.tobytes(), label) for image, label in zip(images, labels)}
    assert actual == expected
    assert len(x) == len(expected) == 1797


@pytest.mark.parametrize("name", ["digits", "digits-m"])
def test_each_split_contains_each_class(name):
    data = load(name, "dataset")
    for split in SPLITS:
        _, y = all_rows(data, split)
        assert y.bincount(minlength=10).min() >= len(y) / 20, split


# MNIST, Fashion-MNIST and CIFAR-10


def idx_bytes(array):
    """Return the array in the idx format.

    It has two zero bytes, 8 for unsigned bytes, the number of dimensions, the dimensions, the data.
    """
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_mnist(raw, train=50, test=20):
    """Write random images, with the labels 0 to 9 in turn, as MNIST's four files."""
    generator = np.random.default_rng(0)
    raw.mkdir(parents=True)
    for part, n in (("train", train), ("t10k", test)):
        images, labels = generator.integers(0, 256, (n, 28, 28)), np.arange(n) % 10
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))


@pytest.mark.parametrize(("cls", "folder"), [(MNIST, "MNIST"), (FashionMNIST, "FashionMNIST")])
def test_idx_files_are_read_unchanged(tmp_path, cls, folder):
    raw = tmp_path / folder / "raw"
    write_mnist(raw)
    data = cls(root=str(tmp_path))
    x, y = all_rows(data, "test")
    pixels = np.frombuffer((raw / "t10k-images-idx3-ubyte").read_bytes()[16:], np.uint8)
    assert np.array_equal(grey_levels(x).ravel(), pixels)
    assert y.tolist() == [i % 10 for i in range(20)]
    assert data.count("train") + data.count("val") == 50


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_idx_files_are_read_as_torchvision_reads_them(tmp_path, monkeypatch, split):
    write_mnist(tmp_path / "MNIST" / "raw")
    ours = MNIST(root=str(tmp_path)).arrays(split)
    monkeypatch.setattr(idx, "read_idx", refuse)
    for got, expected in zip(ours, MNIST(root=str(tmp_path)).arrays(split), strict=True):
        assert got.dtype == expected.dtype
        assert np.array_equal(got, expected)


def refuse(path):
    raise ValueError(f"{path} shall be read by torchvision")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("mnist", "MNIST/raw"),
        ("fashion-mnist", "FashionMNIST/raw"),
        ("cifar10", "cifar-10-batches-py"),
        ("faces", "lfw158"),
    ],
)
def test_the_error_for_missing_data_names_path_and_options(tmp_path, name, path):
    """A failed download must leave no empty folders behind."""
    with no_network(), pytest.raises(MissingData) as e:
        load(name, "dataset", root=str(tmp_path)).count("test")
    message = str(e.value)
    assert str(tmp_path / path) in message
    assert "--data-root" in message
    assert "DEFEND_DATA" in message
    assert "\n" not in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [-7, 20, 9, 0])
def test_a_truncated_file_is_reported_as_damaged(tmp_path, length):
    raw = tmp_path / "MNIST" / "raw"
    write_mnist(raw)
    images = raw / "t10k-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:length])
    with no_network(), pytest.raises(MissingData, match="damaged") as e:
        MNIST(root=str(tmp_path)).count("test")
    assert str(raw) in str(e.value)
    assert "\n" not in str(e.value)
    assert MNIST(root=str(tmp_path)).count("val") > 0


@pytest.mark.data("MNIST", "FashionMNIST")
@pytest.mark.parametrize(
    ("name", "labels"),
    [("mnist", [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]), ("fashion-mnist", [9, 2, 1, 1, 6, 1, 4, 6, 5, 7])],
)
def test_test_images_have_the_official_order(name, labels):
    data = load(name, "dataset")
    assert data.count("test") == 10000
    assert data.rows("test", 0, 10)[1].tolist() == labels
    assert data.count("train") + data.count("val") == 60000
    assert 4500 < data.count("val") < 5500


@given(st.permutations(range(30)))
def test_the_val_split_does_not_depend_on_the_order(order):
    x = np.random.default_rng(0).integers(0, 256, (30, 2, 2), np.uint8)
    assert np.array_equal(held_out(x[order], 0.3), held_out(x, 0.3)[order])
