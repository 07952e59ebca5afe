"""Data sets against what they promise: which pixels, which split, which order."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from defend.dataset import SPLITS, held_out
from defend.datasets.digits_m import DigitsM
from defend.datasets.faces import Faces
from defend.datasets.fashion_mnist import FashionMNIST
from defend.datasets.folders import averaged, overlaps
from defend.datasets.image_folder import ImageFolder
from defend.datasets.mnist import MNIST
from defend.errors import BadParameter, MissingData
from defend.loading import load
from defend.noise import Noise
from defend.testing.dataset_checks import no_network

CLAIMS = {
    "digits": {"Linf": 0.2},
    "digits-m": {"Linf": 16 / 255},
    "mnist": {"Linf": 0.3},
    "fashion-mnist": {"Linf": 0.1},
    "cifar10": {"Linf": 8 / 255, "L2": 0.5},
    "faces": {"Linf": 4 / 255},
}


def everything(data, split):
    return data.rows(split, 0, data.count(split))


def grey(x):
    """Levels 0..255, exactly."""
    levels = (x * 255).round()
    assert torch.allclose(levels / 255, x, atol=1e-7)
    return levels.numpy().astype(np.int64)


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_are_made_at_the_fixed_eps(name):
    assert dict(load(name, "dataset").card.claim) == CLAIMS[name]


# digits


def test_digits_are_scikit_learns_each_once():
    data = load("digits", "dataset")
    x = torch.cat([everything(data, s)[0] for s in SPLITS])
    y = torch.cat([everything(data, s)[1] for s in SPLITS])
    images, labels = load_digits(return_X_y=True)
    want = {(image.tobytes(), label) for image, label in zip(images.astype(np.int64), labels)}
    got = {
        (image.tobytes(), label)
        for image, label in zip((grey(x).reshape(-1, 64) * 16 + 127) // 255, y.tolist())
    }
    assert got == want and len(x) == len(want) == 1797


@pytest.mark.parametrize("name", ["digits", "digits-m"])
def test_each_class_is_in_each_split(name):
    data = load(name, "dataset")
    for split in SPLITS:
        y = everything(data, split)[1]
        assert y.bincount(minlength=10).min() >= len(y) / 20, split


# digits-m


def bilinear(image):
    """8x8 of 0..16 to 28x28 of 0..255, in a border of two, by torch: to within one level of the data set's own integers."""
    big = torch.nn.functional.interpolate(
        torch.tensor(image)[None, None] * (255 / 16),
        size=(28, 28),
        mode="bilinear",
        align_corners=False,
    )
    return np.pad(big[0, 0].numpy(), 2)


def scaled_digits(split, label):
    x, y = everything(load("digits", "dataset"), split)
    return [bilinear(image) for image in (x[y == label, 0] * 16).round().numpy()]


def halves():
    photos = [np.asarray(photo, np.int64) for photo in load_sample_images().images]
    return {"left": [p[:, :320] for p in photos], "right": [p[:, 320:] for p in photos]}


def crops_with_this_border(image, photos):
    """Where the digit is zero a blended image shows its photograph: every crop (32, 32, 3) of the photos that agrees there."""
    border = np.ones((32, 32), bool)
    border[2:-2, 2:-2] = False
    for photo in photos:
        tops, lefts = np.nonzero((photo[: -31 or None, : -31 or None] == image[0, 0]).all(-1))
        for top, left in zip(tops, lefts):
            crop = photo[top : top + 32, left : left + 32]
            if (crop[border] == image[border]).all():
                yield crop


def blends(split, n=12):
    """(name, half of the photographs, split of the digits, image, label)"""
    data = load("digits-m", "dataset")
    x, y = (
        data.stream("train", Noise.of(5, torch.arange(n)))
        if split == "stream"
        else data.rows(split, 0, n)
    )
    return zip(grey(x).transpose(0, 2, 3, 1), y.tolist())


@pytest.mark.parametrize(
    ("split", "half", "digits"),
    [
        ("train", "left", "train"),
        ("val", "left", "val"),
        ("test", "right", "test"),
        ("stream", "left", "train"),
    ],
)
def test_digits_m_is_the_distance_of_a_crop_and_a_digit(split, half, digits):
    """|crop - digit|, for a crop of the right half and a digit of the right split and label; and for no crop of the other half."""
    photos, other = halves(), {"left": "right", "right": "left"}[half]
    for image, label in blends(split):
        crops = list(crops_with_this_border(image, photos[half]))
        assert len(crops) == 1
        errors = [
            np.abs(np.abs(crops[0] - digit[..., None]) - image).max()
            for digit in scaled_digits(digits, label)
        ]
        assert sum(e <= 0.51 for e in errors) == 1
        assert not list(crops_with_this_border(image, photos[other]))


def test_digits_m_shows_every_digit_once_before_any_twice():
    data = load("digits-m", "dataset")
    for split, n in {s: load("digits", "dataset").count(s) for s in SPLITS}.items():
        (x, y), copies = everything(data, split), data.count(split) // n
        assert data.count(split) == copies * n >= 1000
        assert torch.equal(y, y[:n].repeat(copies))
        assert len({image.numpy().tobytes() for image in x}) == len(x)


def test_a_stream_belongs_to_its_noise():
    data = load("digits-m", "dataset")
    x, y = data.stream("train", Noise.of(3, torch.arange(40)))
    again, labels = data.stream(
        "train", Noise.of(3, torch.arange(40)).take(torch.tensor([7, 30, 2]))
    )
    assert torch.equal(again, x[[7, 30, 2]]) and torch.equal(labels, y[[7, 30, 2]])
    noise = Noise.of(4, torch.arange(400))
    images = torch.cat([data.stream("train", noise)[0], data.stream("train", noise)[0], x])
    assert len({image.numpy().tobytes() for image in images}) == len(images) == 840


def test_a_stream_draws_every_digit_and_both_photographs_evenly():
    data = load("digits-m", "dataset")
    n = 20000
    u = torch.stack(
        [Noise.of(9, torch.arange(n)).uniform(torch.empty(n, 4))[:, k] for k in range(4)]
    )
    assert ((u.mean(1) - 0.5).abs() < 5 * (1 / 12 / n) ** 0.5).all()
    y = data.stream("train", Noise.of(9, torch.arange(n)))[1]
    share = everything(load("digits", "dataset"), "train")[1].bincount() / load(
        "digits", "dataset"
    ).count("train")
    assert ((y.bincount() / n - share).abs() < 5 * (share / n) ** 0.5).all()


# MNIST and its kin


def idx(array):
    """The idx format: two zero bytes, 8 for unsigned bytes, the number of dimensions, the dimensions, the bytes."""
    return (
        struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        + array.astype(np.uint8).tobytes()
    )


def write_mnist(raw, train=50, test=20):
    draw = np.random.default_rng(0)
    raw.mkdir(parents=True)
    for part, n in (("train", train), ("t10k", test)):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(draw.integers(0, 256, (n, 28, 28))))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(n) % 10))


@pytest.mark.parametrize(("cls", "folder"), [(MNIST, "MNIST"), (FashionMNIST, "FashionMNIST")])
def test_idx_files_are_read_as_they_stand(tmp_path, cls, folder):
    write_mnist(tmp_path / folder / "raw")
    data = cls(root=str(tmp_path))
    x, y = everything(data, "test")
    raw = np.frombuffer(
        (tmp_path / folder / "raw" / "t10k-images-idx3-ubyte").read_bytes()[16:], np.uint8
    )
    assert np.array_equal(grey(x).ravel(), raw) and y.tolist() == [i % 10 for i in range(20)]
    assert data.count("train") + data.count("val") == 50


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("mnist", "MNIST/raw"),
        ("fashion-mnist", "FashionMNIST/raw"),
        ("cifar10", "cifar-10-batches-py"),
        ("faces", "lfw158"),
    ],
)
def test_missing_data_names_the_place_and_the_cure(tmp_path, name, place):
    with no_network(), pytest.raises(MissingData) as e:
        load(name, "dataset", root=str(tmp_path)).count("test")
    message = str(e.value)
    assert (
        str(tmp_path / place) in message
        and "--data-root" in message
        and "DEFEND_DATA" in message
        and "\n" not in message
    )
    assert not list(tmp_path.iterdir())  # a failed download leaves no empty folders behind


@pytest.mark.parametrize("length", [-7, 20, 9, 0])
def test_a_truncated_file_is_called_damaged(tmp_path, length):
    raw = tmp_path / "MNIST" / "raw"
    write_mnist(raw)
    images = raw / "t10k-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:length])
    with no_network(), pytest.raises(MissingData, match="damaged") as e:
        MNIST(root=str(tmp_path)).count("test")
    assert str(raw) in str(e.value) and "\n" not in str(e.value)
    assert MNIST(root=str(tmp_path)).count("val") > 0


@pytest.mark.data("MNIST", "FashionMNIST")
@pytest.mark.parametrize(
    ("name", "first"),
    [("mnist", [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]), ("fashion-mnist", [9, 2, 1, 1, 6, 1, 4, 6, 5, 7])],
)
def test_test_images_keep_the_official_order(name, first):
    data = load(name, "dataset")
    assert data.count("test") == 10000 and data.rows("test", 0, 10)[1].tolist() == first
    assert data.count("train") + data.count("val") == 60000 and 4500 < data.count("val") < 5500


@given(st.permutations(range(30)))
def test_what_is_held_out_does_not_depend_on_the_order(order):
    x = np.random.default_rng(0).integers(0, 256, (30, 2, 2), np.uint8)
    assert np.array_equal(held_out(x[order], 0.3), held_out(x, 0.3)[order])


# Folders


def write_folder(top, relative, seed=0, size=(9, 9)):
    """One random image for each relative path; which one depends on the path alone."""
    for name in relative:
        draw = np.random.default_rng([seed, *name.encode()])
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (*size, 3), np.uint8)).save(top / name)


FLAT = [f"{c}/{i:03d}.png" for c in ("ant", "bee", "cat") for i in range(60)]


def test_a_folder_does_not_depend_on_the_file_system(tmp_path):
    write_folder(tmp_path / "a", FLAT)
    write_folder(tmp_path / "b", FLAT[::-1])
    a, b = (ImageFolder(path=str(tmp_path / n), size=9) for n in "ab")
    for split in SPLITS:
        (x, y), (v, w) = everything(a, split), everything(b, split)
        assert torch.equal(x, v) and torch.equal(y, w)
        assert (y.diff() < 0).any()  # permuted: not class after class


def test_one_folder_is_cut_into_three(tmp_path):
    write_folder(tmp_path, FLAT)
    data = ImageFolder(path=str(tmp_path), size=9)
    n = {split: data.count(split) for split in SPLITS}
    seen = [image.numpy().tobytes() for split in SPLITS for image in everything(data, split)[0]]
    assert len(set(seen)) == len(seen) == len(FLAT) and data.names == ("ant", "bee", "cat")
    for split, share in {"train": 0.7, "val": 0.1, "test": 0.2}.items():
        assert abs(n[split] - share * len(FLAT)) < 4 * (share * (1 - share) * len(FLAT)) ** 0.5, n


def test_new_images_move_no_old_one(tmp_path):
    write_folder(tmp_path, FLAT[::2])
    before = {
        s: [
            image.numpy().tobytes()
            for image in everything(ImageFolder(path=str(tmp_path), size=9), s)[0]
        ]
        for s in SPLITS
    }
    write_folder(tmp_path, FLAT[1::2])
    for split in SPLITS:
        after = [
            image.numpy().tobytes()
            for image in everything(ImageFolder(path=str(tmp_path), size=9), split)[0]
        ]
        assert [image for image in after if image in set(before[split])] == before[split]


def test_folders_of_their_own_are_the_splits(tmp_path):
    write_folder(tmp_path, [f"{split}/{name}" for split in ("train", "test") for name in FLAT])
    data = ImageFolder(path=str(tmp_path), size=9)
    assert (
        data.count("test") == 180
        and data.count("train") + data.count("val") == 180
        and data.names == ("ant", "bee", "cat")
    )
    assert 0 < data.count("val") < 40
    write_folder(tmp_path, ["val/bee/1.png", "val/dog/1.png"])
    data = ImageFolder(path=str(tmp_path), size=9)
    assert [data.count(s) for s in SPLITS] == [180, 2, 180] and data.names == (
        "ant",
        "bee",
        "cat",
        "dog",
    )
    assert sorted(everything(data, "val")[1].tolist()) == [1, 3]


def test_a_class_may_be_called_train(tmp_path):
    write_folder(tmp_path, [f"{c}/{i}.png" for c in ("car", "train") for i in range(30)])
    data = ImageFolder(path=str(tmp_path), size=9)
    assert data.names == ("car", "train") and sum(data.count(s) for s in SPLITS) == 60


def test_images_are_decoded_when_they_are_asked_for(tmp_path):
    write_folder(tmp_path, FLAT)
    data = ImageFolder(path=str(tmp_path), size=9)
    victim = data._files("test")[4][0]
    victim.write_bytes(b"no image")
    assert data.count("test") > 5 and len(data.rows("test", 0, 4)[0]) == 4
    with pytest.raises(MissingData, match=victim.name):
        data.rows("test", 4, 5)


def test_grey_is_one_channel_and_any_mode_of_pixels_is_read(tmp_path):
    write_folder(tmp_path, FLAT)
    for mode, name in (("L", "g.png"), ("RGBA", "a.png"), ("P", "p.gif"), ("1", "b.png")):
        Image.new(mode, (12, 20)).save(tmp_path / "ant" / name)
    for channels in (1, 3):
        x, _ = everything(ImageFolder(path=str(tmp_path), size=5, channels=channels), "train")
        assert x.shape[1:] == (channels, 5, 5)


def test_the_central_square_is_kept(tmp_path):
    wide = np.zeros((4, 10, 3), np.uint8)
    wide[:, 3:7] = 200
    for c in ("a", "b"):
        for i in range(20):
            write_folder(tmp_path, [f"{c}/{i}.png"])
            Image.fromarray(wide if i % 2 else wide.transpose(1, 0, 2)).save(
                tmp_path / c / f"{i}.png"
            )
    for size in (2, 4, 9):
        assert (
            grey(everything(ImageFolder(path=str(tmp_path), size=size), "train")[0]) == 200
        ).all()


@pytest.mark.parametrize(("n", "m"), [(12, 4), (112, 64), (9, 9), (7, 1), (100, 33)])
def test_shrinking_is_the_mean_over_areas(n, m):
    """Exactly the mean of blocks where they are whole; always a partition: rows sum to 1, columns to m / n."""
    w = overlaps(n, m)
    assert (
        np.allclose(w.sum(1), 1, atol=1e-5)
        and np.allclose(w.sum(0), m / n, atol=1e-5)
        and (w >= 0).all()
    )
    x = np.random.default_rng(0).integers(0, 256, (3, n, n), np.uint8)
    assert abs(averaged(x, m).mean() - x.mean()) < 0.5
    if n % m == 0:
        assert (
            np.abs(averaged(x, m) - x.reshape(3, m, n // m, m, n // m).mean((2, 4))).max() <= 0.51
        )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda top: ImageFolder(path=str(top / "nowhere")).count("test"),
            "there is no folder .*nowhere",
        ),
        (
            lambda top: ImageFolder(path="here-or-there", root=str(top)).count("test"),
            "here-or-there or .*here-or-there",
        ),
        (lambda top: ImageFolder(path=str(top)).count("test"), "two or more classes"),
        (
            lambda top: (
                write_folder(top, ["train/a/1.png", "train/b/1.png"]),
                ImageFolder(path=str(top)).count("test"),
            ),
            "there is no .*test; expected test/CLASS",
        ),
        (lambda top: Faces(root=str(top)).names, "there is no folder .*lfw158"),
    ],
)
def test_a_wrong_folder_is_one_clear_line(tmp_path, make, words):
    with pytest.raises(MissingData, match=words) as e:
        make(tmp_path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("fields", [{"size": 0}, {"channels": 2}])
def test_a_wrong_field_names_itself(fields):
    with pytest.raises(BadParameter, match=next(iter(fields))):
        ImageFolder(path=".", **fields)


def test_a_path_may_lie_in_the_data_root(tmp_path):
    write_folder(tmp_path / "mine", FLAT)
    assert load("image-folder:path=mine,size=8", "dataset", root=str(tmp_path)).count("train") > 0


@pytest.mark.data("lfw158")
def test_faces_are_158_people_in_three_splits():
    data = load("faces", "dataset")
    assert (data.channels, data.size, data.classes) == (3, 112, 158) and [
        data.count(s) for s in SPLITS
    ] == [3027, 427, 859]
    for split in SPLITS:
        assert {label for _, label in data._files(split)} == set(range(158))
    small = load("faces:size=56", "dataset").rows("test", 0, 8)[0]
    blocks = torch.nn.functional.avg_pool2d(data.rows("test", 0, 8)[0], 2)
    assert (small - blocks).abs().max() <= 0.51 / 255


def test_digits_m_comes_without_files_and_without_a_network(tmp_path):
    with no_network() as tried:
        assert DigitsM(root=str(tmp_path)).rows("test", 0, 3)[0].shape == (3, 3, 32, 32)
    assert not tried


@pytest.mark.gpu
def test_a_stream_is_the_same_on_a_gpu():
    data = load("digits-m", "dataset")
    x, y = data.stream("train", Noise.of(2, torch.arange(500)))
    v, w = data.stream("train", Noise.of(2, torch.arange(500, device="cuda")))
    assert (
        v.device.type == w.device.type == "cuda"
        and torch.equal(v.cpu(), x)
        and torch.equal(w.cpu(), y)
    )
