"""Folders of images: classes, splits, order, decoding and scaling."""

import numpy as np
import pytest
import torch
from image_files import THREE_CLASSES, all_rows, grey_levels, image_bytes, write_images
from PIL import Image

from defend.dataset import SPLITS
from defend.datasets.faces import Faces
from defend.datasets.identity_folder import IdentityFolder
from defend.datasets.image_folder import ImageFolder
from defend.datasets.pixels import area_weights, average_down
from defend.errors import BadParameter, MissingData
from defend.loading import load


def open_folder(path, size=9, **fields):
    """Return the data set of a folder."""
    return ImageFolder(path=str(path), size=size, **fields)


# Splits and order


def test_the_order_does_not_depend_on_the_file_system(tmp_path):
    """The order is that of hashes: it is not class after class."""
    write_images(tmp_path / "a", THREE_CLASSES)
    write_images(tmp_path / "b", THREE_CLASSES[::-1])
    for split in SPLITS:
        x_a, y_a = all_rows(open_folder(tmp_path / "a"), split)
        x_b, y_b = all_rows(open_folder(tmp_path / "b"), split)
        assert torch.equal(x_a, x_b)
        assert torch.equal(y_a, y_b)
        assert (y_a.diff() < 0).any()


def test_one_folder_is_cut_into_three_splits(tmp_path):
    """The sizes of the splits are within four standard deviations of their shares."""
    write_images(tmp_path, THREE_CLASSES)
    data, total = open_folder(tmp_path), len(THREE_CLASSES)
    images = []
    for split in SPLITS:
        images += image_bytes(data, split)
    assert len(set(images)) == len(images) == total
    assert data.names == ("ant", "bee", "cat")
    for split, share in {"train": 0.7, "val": 0.1, "test": 0.2}.items():
        deviation = (share * (1 - share) * total) ** 0.5
        assert abs(data.count(split) - share * total) < 4 * deviation, split


def test_additional_images_move_no_earlier_one(tmp_path):
    write_images(tmp_path, THREE_CLASSES[::2])
    before = {split: image_bytes(open_folder(tmp_path), split) for split in SPLITS}
    write_images(tmp_path, THREE_CLASSES[1::2])
    for split, earlier in before.items():
        after = image_bytes(open_folder(tmp_path), split)
        assert [image for image in after if image in set(earlier)] == earlier


def test_folders_of_train_and_test_are_splits_and_val_is_cut_from_train(tmp_path):
    for split in ("train", "test"):
        write_images(tmp_path / split, THREE_CLASSES)
    data = open_folder(tmp_path)
    assert data.count("test") == 180
    assert data.count("train") + data.count("val") == 180
    assert data.names == ("ant", "bee", "cat")
    assert 0 < data.count("val") < 40


def test_a_folder_of_val_is_a_split_and_may_have_more_classes(tmp_path):
    for split in ("train", "test"):
        write_images(tmp_path / split, THREE_CLASSES)
    write_images(tmp_path, ["val/bee/1.png", "val/dog/1.png"])
    data = open_folder(tmp_path)
    assert [data.count(split) for split in SPLITS] == [180, 2, 180]
    assert data.names == ("ant", "bee", "cat", "dog")
    assert sorted(all_rows(data, "val")[1].tolist()) == [1, 3]


def test_a_class_may_be_called_train(tmp_path):
    for name in ("car", "train"):
        write_images(tmp_path, [f"{name}/{i}.png" for i in range(30)])
    data = open_folder(tmp_path)
    assert data.names == ("car", "train")
    assert sum(data.count(split) for split in SPLITS) == 60


# Decoding and scaling


def test_images_are_decoded_when_they_are_read(tmp_path):
    write_images(tmp_path, THREE_CLASSES)
    data = open_folder(tmp_path)
    damaged, _ = data._files("test")[4]
    damaged.write_bytes(b"no image")
    assert data.count("test") > 5
    assert len(data.rows("test", 0, 4)[0]) == 4
    with pytest.raises(MissingData, match=damaged.name):
        data.rows("test", 4, 5)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_every_pixel_mode_get_the_number_of_channels(tmp_path, channels):
    write_images(tmp_path, THREE_CLASSES)
    for mode, name in (("L", "g.png"), ("RGBA", "a.png"), ("P", "p.gif"), ("1", "b.png")):
        Image.new(mode, (12, 20)).save(tmp_path / "ant" / name)
    x, _ = all_rows(open_folder(tmp_path, size=5, channels=channels), "train")
    assert x.shape[1:] == (channels, 5, 5)


@pytest.mark.parametrize("size", [2, 4, 9])
def test_the_central_square_is_read(tmp_path, size):
    wide = np.zeros((4, 10, 3), np.uint8)
    wide[:, 3:7] = 200
    tall = wide.transpose(1, 0, 2)
    for i in range(20):
        for name in ("a", "b"):
            path = tmp_path / name / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(wide if i % 2 else tall).save(path)
    x, _ = all_rows(open_folder(tmp_path, size=size), "train")
    assert (grey_levels(x) == 200).all()


@pytest.mark.parametrize(("n", "m"), [(12, 4), (112, 64), (9, 9), (7, 1), (100, 33)])
def test_the_weights_of_shrinking_are_a_partition(n, m):
    """Rows sum to 1, columns to m / n."""
    w = area_weights(n, m)
    assert np.allclose(w.sum(1), 1, atol=1e-5)
    assert np.allclose(w.sum(0), m / n, atol=1e-5)
    assert (w >= 0).all()


@pytest.mark.parametrize(("n", "m"), [(12, 4), (112, 64), (9, 9), (7, 1), (100, 33)])
def test_shrinking_is_the_mean_over_areas(n, m):
    """The result is the mean of blocks if m divides n."""
    x = np.random.default_rng(0).integers(0, 256, (3, n, n), np.uint8)
    shrunk = average_down(x, m)
    assert abs(shrunk.mean() - x.mean()) < 0.5
    if n % m == 0:
        blocks = x.reshape(3, m, n // m, m, n // m).mean((2, 4))
        assert np.abs(shrunk - blocks).max() <= 0.51


# Errors


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{tmp}/nowhere", "there is no folder .*nowhere"),
        ("relative", "relative or .*relative"),
        ("{tmp}/empty", "two or more classes"),
        ("{tmp}/untested", "there is no .*test; expected test/CLASS"),
    ],
)
def test_a_wrong_folder_is_reported_in_one_line(tmp_path, path, message):
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "untested", ["train/a/1.png", "train/b/1.png"])
    data = ImageFolder(path=path.format(tmp=tmp_path), root=str(tmp_path))
    with pytest.raises(MissingData, match=message) as e:
        data.count("test")
    assert "\n" not in str(e.value)


def test_a_missing_folder_of_faces_is_reported_in_one_line(tmp_path):
    with pytest.raises(MissingData, match=r"there is no folder .*lfw158") as e:
        _ = Faces(root=str(tmp_path)).names
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("field", "value"), [("size", 0), ("channels", 2)])
def test_a_field_out_of_range_is_named(field, value):
    with pytest.raises(BadParameter, match=field):
        ImageFolder(path=".", **{field: value})


def test_a_path_may_be_relative_to_the_data_root(tmp_path):
    write_images(tmp_path / "photos", THREE_CLASSES)
    data = load("image-folder:path=photos,size=8", "dataset", root=str(tmp_path))
    assert data.count("train") > 0


# Faces


@pytest.mark.data("lfw158")
def test_faces_are_158_people_in_three_splits():
    data = load("faces", "dataset")
    assert (data.channels, data.size, data.classes) == (3, 112, 158)
    assert [data.count(split) for split in SPLITS] == [3027, 427, 859]
    for split in SPLITS:
        assert {label for _, label in data._files(split)} == set(range(158))


@pytest.mark.data("lfw158")
def test_smaller_faces_are_averaged_down():
    small, _ = load("faces:size=56", "dataset").rows("test", 0, 8)
    full_size, _ = load("faces", "dataset").rows("test", 0, 8)
    blocks = torch.nn.functional.avg_pool2d(full_size, 2)
    assert (small - blocks).abs().max() <= 0.51 / 255


# The same number of pictures of each person


def people(count, pictures):
    """Return the relative paths of pictures of people: person k has pictures + k of them."""
    return [f"p{k:02d}/{i:03d}.png" for k in range(count) for i in range(pictures + k)]


def open_people(path, **fields):
    """Return the data set of a folder of people, by the protocol at a smaller number."""
    values = {"people": 3, "per_identity": 8, "test": 2, "val": 2, "size": 9, **fields}
    return IdentityFolder(path=str(path), **values)


def counts_of_labels(data, split):
    return torch.bincount(all_rows(data, split)[1], minlength=data.classes).tolist()


def test_everybody_has_as_many_pictures(tmp_path):
    """Of six people with 5 to 10 pictures three have 8 or more; val takes what is left over."""
    write_images(tmp_path, people(6, 5))
    data = open_people(tmp_path)
    assert data.names == ("p03", "p04", "p05")
    assert counts_of_labels(data, "train") == [6, 6, 6]
    assert counts_of_labels(data, "test") == [2, 2, 2]
    assert counts_of_labels(data, "val") == [0, 1, 2]
    images = [image for split in SPLITS for image in image_bytes(data, split)]
    assert len(set(images)) == len(images) == 27


def test_the_defaults_are_those_of_the_paper(tmp_path):
    data = IdentityFolder(path=str(tmp_path))
    assert (data.people, data.per_identity - data.test, data.test) == (1000, 40, 4)


def test_people_are_chosen_by_the_hash_of_their_names(tmp_path):
    """Neither the file system, nor people with too few pictures, change the choice."""
    write_images(tmp_path / "a", people(12, 8))
    write_images(tmp_path / "b", people(12, 8)[::-1])
    write_images(tmp_path / "b", ["few/1.png", "few/2.png"])
    a, b = (open_people(tmp_path / name) for name in ("a", "b"))
    assert a.names == b.names
    assert a.names != ("p00", "p01", "p02")
    assert set(a.names) < set(open_people(tmp_path / "a", people=0).names)
    for split in SPLITS:
        assert image_bytes(a, split) == image_bytes(b, split)


TOO_FEW = {
    "people": ({"people": 4}, MissingData, "expected 4 people with 8 or more.*got 3"),
    "pictures": ({"people": 0, "per_identity": 11}, MissingData, "two or more people.*got 0"),
    "test": ({"test": 8}, BadParameter, "per_identity=8.*more than test=8"),
    "one": ({"people": 1}, BadParameter, "people=1"),
}


@pytest.mark.parametrize(("fields", "error", "message"), TOO_FEW.values(), ids=TOO_FEW)
def test_too_few_pictures_for_the_protocol(tmp_path, fields, error, message):
    write_images(tmp_path, people(6, 5))
    with pytest.raises(error, match=message):
        open_people(tmp_path, **fields).count("train")


def test_a_missing_folder_of_people_is_named(tmp_path):
    with pytest.raises(MissingData, match=r"identity-folder:path=.*nobody"):
        open_people(tmp_path / "nobody").count("train")
