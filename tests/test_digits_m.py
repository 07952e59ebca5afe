"""digits-m: its images are crops blended with digits, and its stream belongs to its noise."""

import numpy as np
import pytest
import torch
from image_files import all_rows, grey_levels, image_bytes
from sklearn.datasets import load_sample_images

from defend.dataset import SPLITS
from defend.datasets.digits_m import DigitsM
from defend.loading import load
from defend.noise import Noise
from defend.testing.no_network import no_network


def enlarge_with_torch(image):
    """Return a digit 8x8 of 0..16 as 28x28 of 0..255, in a border of two.

    It differs from the data set's own integers by less than one level.
    """
    levels = torch.tensor(image)[None, None] * (255 / 16)
    enlarged = torch.nn.functional.interpolate(
        levels, size=(28, 28), mode="bilinear", align_corners=False
    )
    return np.pad(enlarged[0, 0].numpy(), 2)


def enlarged_digits(split, label):
    """Return the enlarged digits of this label in a split of `digits`."""
    x, y = all_rows(load("digits", "dataset"), split)
    images = (x[y == label, 0] * 16).round().numpy()
    return [enlarge_with_torch(image) for image in images]


def photo_halves():
    """Return the left and the right halves of the photographs."""
    photos = [np.asarray(photo, np.int64) for photo in load_sample_images().images]
    return {"left": [p[:, :320] for p in photos], "right": [p[:, 320:] for p in photos]}


def crops_with_border_of(image, photos):
    """Yield the crops (32, 32, 3) of the photographs that agree with the image on its border.

    A blended image shows its photograph where the digit is zero.
    """
    border = np.ones((32, 32), bool)
    border[2:-2, 2:-2] = False
    for photo in photos:
        corners = (photo[:-31, :-31] == image[0, 0]).all(-1)
        for row, column in zip(*np.nonzero(corners)):
            crop = photo[row : row + 32, column : column + 32]
            if (crop[border] == image[border]).all():
                yield crop


def labelled_images(split, n=12):
    """Return pairs of an image (32, 32, 3) and its label, from a split or from the stream."""
    data = load("digits-m", "dataset")
    if split == "stream":
        x, y = data.stream("train", Noise.of(5, torch.arange(n)))
    else:
        x, y = data.rows(split, 0, n)
    return zip(grey_levels(x).transpose(0, 2, 3, 1), y.tolist())


@pytest.mark.parametrize(
    ("split", "half", "other_half", "digits"),
    [
        ("train", "left", "right", "train"),
        ("val", "left", "right", "val"),
        ("test", "right", "left", "test"),
        ("stream", "left", "right", "train"),
    ],
)
def test_an_image_is_the_distance_of_a_crop_and_a_digit(split, half, other_half, digits):
    """The image is |crop - digit| for one crop of its half and one digit of its split and label.

    It is no such image for a crop of the other half.
    """
    photos = photo_halves()
    for image, label in labelled_images(split):
        crops = list(crops_with_border_of(image, photos[half]))
        assert len(crops) == 1
        matches = 0
        for digit in enlarged_digits(digits, label):
            blended = np.abs(crops[0] - digit[..., None])
            matches += np.abs(blended - image).max() <= 0.51
        assert matches == 1
        assert not list(crops_with_border_of(image, photos[other_half]))


@pytest.mark.parametrize("split", SPLITS)
def test_every_digit_comes_once_before_any_comes_twice(split):
    data, n = load("digits-m", "dataset"), load("digits", "dataset").count(split)
    x, y = all_rows(data, split)
    copies = data.count(split) // n
    assert data.count(split) == copies * n >= 1000
    assert torch.equal(y, y[:n].repeat(copies))
    assert len(set(image_bytes(data, split))) == len(x)


def test_an_image_of_the_stream_depends_on_its_own_noise_alone():
    data, rows = load("digits-m", "dataset"), [7, 30, 2]
    x, y = data.stream("train", Noise.of(3, torch.arange(40)))
    fewer = Noise.of(3, torch.arange(40)).take(torch.tensor(rows))
    images, labels = data.stream("train", fewer)
    assert torch.equal(images, x[rows])
    assert torch.equal(labels, y[rows])


def test_images_of_a_stream_do_not_repeat():
    data = load("digits-m", "dataset")
    noise = Noise.of(4, torch.arange(400))
    parts = [data.stream("train", noise)[0] for _ in range(2)]
    parts.append(data.stream("train", Noise.of(3, torch.arange(40)))[0])
    images = torch.cat(parts)
    assert len({image.numpy().tobytes() for image in images}) == len(images) == 840


def test_a_stream_draws_digits_and_photographs_uniformly():
    """Allow five standard errors."""
    n = 20000
    u = Noise.of(9, torch.arange(n)).uniform(torch.empty(n, 4))
    assert ((u.mean(0) - 0.5).abs() < 5 * (1 / 12 / n) ** 0.5).all()
    _, y = load("digits-m", "dataset").stream("train", Noise.of(9, torch.arange(n)))
    _, labels = all_rows(load("digits", "dataset"), "train")
    share = labels.bincount() / len(labels)
    assert ((y.bincount() / n - share).abs() < 5 * (share / n) ** 0.5).all()


def test_neither_files_nor_a_network_are_needed(tmp_path):
    with no_network() as attempts:
        assert DigitsM(root=str(tmp_path)).rows("test", 0, 3)[0].shape == (3, 3, 32, 32)
    assert not attempts


@pytest.mark.gpu
def test_a_stream_is_the_same_on_a_gpu():
    """Pixels are rounded to grey levels, so float arithmetic may move one by one level."""
    data = load("digits-m", "dataset")
    x, y = data.stream("train", Noise.of(2, torch.arange(500)))
    x_gpu, y_gpu = data.stream("train", Noise.of(2, torch.arange(500, device="cuda")))
    assert x_gpu.device.type == y_gpu.device.type == "cuda"
    levels_apart = (255 * (x_gpu.cpu() - x)).abs()
    assert levels_apart.max() <= 1 + 1e-3
    assert (levels_apart > 0.5).double().mean() < 0.001
    assert torch.equal(y_gpu.cpu(), y)
