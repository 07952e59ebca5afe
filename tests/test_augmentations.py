"""Augmentations of training images against their definitions."""

import math

import pytest
import torch
from train_toys import make_noise

from defend.classifiers.convnet import ConvNet
from defend.errors import BadParameter
from defend.training.augmentations import (
    ERASED_AREA,
    ERASED_ASPECT,
    SHIFT,
    STRETCH,
    TURN,
    YIQ,
    affine_flip,
    change_colours,
    erase,
)
from defend.training.recipe import read_recipe

N = 400
SIZE = 32
YIQ_MATRIX = torch.tensor(YIQ)


def coordinate_images(n=N, size=SIZE):
    """Images (n, 2, size, size) whose channels are the coordinates from -1 to 1, as 0.25 to 0.75.

    Bilinear interpolation of such an image is exact, so that a warped one shows where each pixel
    comes from.
    """
    places = (2 * torch.arange(size) + 1) / size - 1
    rows, columns = torch.meshgrid(places, places, indexing="ij")
    return (torch.stack([columns, rows]) / 4 + 0.5).expand(n, 2, size, size)


def sources(warped):
    """Return the affine maps (n, 2, 3) from a pixel to its source, from the inner pixels."""
    inner = slice(SIZE // 4, 3 * SIZE // 4)
    places = (2 * torch.arange(SIZE) + 1) / SIZE - 1
    rows, columns = torch.meshgrid(places[inner], places[inner], indexing="ij")
    inputs = torch.stack([columns.flatten(), rows.flatten(), torch.ones(rows.numel())], 1)
    outputs = (warped[:, :, inner, inner] - 0.5) * 4
    solution = torch.linalg.lstsq(inputs.expand(len(warped), -1, 3), outputs.flatten(2).mT)
    fitted = inputs @ solution.solution
    assert torch.allclose(fitted, outputs.flatten(2).mT, atol=1e-4), "it is no affine map"
    return solution.solution.mT


def check_affine(augment):
    """Fail unless it rotates, resizes, shifts and mirrors within the declared limits."""
    maps = sources(augment(coordinate_images(), make_noise(N)))
    linear, shifts = maps[:, :, :2], maps[:, :, 2]
    mirrored = torch.det(linear) < 0
    # 5 standard deviations of a fair coin.
    assert abs(int(mirrored.sum()) - N / 2) < 5 * math.sqrt(N) / 2
    linear = torch.where(mirrored[:, None, None], linear * torch.tensor([-1.0, 1.0]), linear)
    sizes = torch.det(linear).sqrt()
    similar = linear @ linear.mT / sizes[:, None, None] ** 2
    assert torch.allclose(similar, torch.eye(2).expand(N, 2, 2), atol=1e-4), "it shears"
    angles = torch.atan2(linear[:, 1, 0], linear[:, 0, 0])
    for values, limit in ((angles, TURN), (sizes - 1, STRETCH), (shifts / 2, SHIFT)):
        assert float(values.abs().max()) <= limit + 1e-4
        assert float(values.max()) > 0.9 * limit
        assert float(values.min()) < -0.9 * limit


def colour_images(n=N, low=0.35, high=0.65):
    """Images (n, 3, 4, 4) of middle colours, which no change moves out of [0, 1]."""
    return low + (high - low) * torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def in_yiq(x):
    return torch.einsum("ij,bjhw->bihw", YIQ_MATRIX, x)


def check_hue(augment):
    """Fail unless luma and the length of chroma stay, and chroma turns by at most the limit."""
    x = colour_images()
    before, after = in_yiq(x), in_yiq(augment(x, 0.0, 0.1, 0.0, make_noise(N)))
    assert torch.allclose(before[:, 0], after[:, 0], atol=1e-4), "the luma changes"
    assert torch.allclose(before[:, 1:].norm(dim=1), after[:, 1:].norm(dim=1), atol=1e-4)
    cross = before[:, 1] * after[:, 2] - before[:, 2] * after[:, 1]
    dot = (before[:, 1:] * after[:, 1:]).sum(1)
    turns = torch.atan2(cross.sum((1, 2)), dot.sum((1, 2))) / (2 * math.pi)
    assert float(turns.abs().max()) <= 0.1 + 1e-4
    assert float(turns.max()) > 0.09
    assert float(turns.min()) < -0.09


def check_grey(augment):
    """Fail unless the declared share of the images is grey, with its luma, and others stay."""
    x = colour_images()
    after = augment(x, 0.0, 0.0, 0.3, make_noise(N))
    is_grey = (after.amax(1) - after.amin(1)).amax((1, 2)) < 1e-4
    assert abs(int(is_grey.sum()) - 0.3 * N) < 5 * math.sqrt(0.3 * 0.7 * N)
    assert torch.allclose(in_yiq(after)[:, 0], in_yiq(x)[:, 0], atol=1e-3)
    assert torch.allclose(after[~is_grey], x[~is_grey], atol=1e-4)


def check_jitter(augment):
    """Fail unless brightness and contrast change by up to the limit, in every direction."""
    x = colour_images()[:, :1]
    after = augment(x, 0.2, 0.0, 0.0, make_noise(N))
    brightness = after.mean((1, 2, 3)) / x.mean((1, 2, 3))
    contrast = after.std((1, 2, 3)) / x.std((1, 2, 3)) / brightness
    for factor in (brightness, contrast):
        assert float(factor.max()) <= 1.2 + 1e-4
        assert float(factor.min()) >= 0.8 - 1e-4
        assert float(factor.max()) > 1.17
        assert float(factor.min()) < 0.83


def check_erase(augment):
    """Fail unless the declared share of images has a rectangle of one colour, of a legal shape."""
    x = -torch.ones(N, 3, SIZE, SIZE)  # no colour is negative
    after = augment(x, 0.4, make_noise(N))
    erased = (after != x).all(1)
    hit = erased.flatten(1).any(1)
    assert abs(int(hit.sum()) - 0.4 * N) < 5 * math.sqrt(0.4 * 0.6 * N)
    heights, widths = erased.any(2).sum(1)[hit], erased.any(1).sum(1)[hit]
    areas = erased.flatten(1).sum(1)[hit]
    assert torch.equal(areas, heights * widths), "it is no rectangle"
    # A side is rounded by up to one pixel at each end.
    assert bool((areas <= ERASED_AREA[1] * SIZE**2 + heights + widths + 1).all())
    assert bool((areas >= ERASED_AREA[0] * SIZE**2 - heights - widths).all())
    assert bool(((heights - 1) / (widths + 1) <= ERASED_ASPECT[1]).all())
    assert bool(((heights + 1) / (widths - 1) >= ERASED_ASPECT[0]).all())
    inside = after.masked_fill(~erased[:, None], float("nan"))[hit].flatten(2)
    assert torch.equal(inside.nan_to_num(2).amin(2), inside.nan_to_num(-2).amax(2))


CHECKS = {
    check_affine: affine_flip,
    check_hue: change_colours,
    check_grey: change_colours,
    check_jitter: change_colours,
    check_erase: erase,
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_an_augmentation_does_what_it_declares(check):
    check(CHECKS[check])


def never_mirrored(x, noise):
    return torch.where(
        (torch.det(sources(affine_flip(x, noise.again()))[:, :, :2]) < 0)[:, None, None, None],
        affine_flip(x.flip(3), noise.again()),
        affine_flip(x, noise.again()),
    )


def rotates_in_rgb(x, *_):
    return x.roll(1, 1)


def mean_instead_of_luma(x, jitter, hue, grey, noise):
    changed = change_colours(x, jitter, hue, grey, noise)
    is_grey = (changed.amax(1) - changed.amin(1)).amax((1, 2)) < 1e-4
    mean = x.mean(1, keepdim=True).expand_as(x)
    return torch.where(is_grey[:, None, None, None], mean, changed)


BROKEN = [
    (check_affine, lambda x, _: x),
    (check_affine, lambda x, noise: affine_flip(x, noise).transpose(2, 3)),
    (check_affine, never_mirrored),
    (check_hue, rotates_in_rgb),
    (check_hue, lambda x, _, hue, __, noise: change_colours(x, 0, 3 * hue, 0, noise)),
    (check_grey, mean_instead_of_luma),
    (check_grey, lambda x, _, __, grey, noise: change_colours(x, 0, 0, 2 * grey, noise)),
    (check_jitter, lambda x, *others: change_colours(x, 0.3, 0, 0, others[-1])),
    (check_jitter, lambda x, *_: x),
    (check_erase, lambda x, _, noise: erase(x, 1.0, noise)),
    (check_erase, lambda x, p, noise: erase(erase(x, p, noise), p, noise.fork("again"))),
]


@pytest.mark.parametrize(("check", "augment"), BROKEN)
def test_a_check_catches_a_wrong_augmentation(check, augment):
    with pytest.raises(AssertionError):
        check(augment)


CALLS = {
    "affine_flip": affine_flip,
    "change_colours": lambda x, noise: change_colours(x, 0.3, 0.1, 0.2, noise),
    "erase": lambda x, noise: erase(x, 0.5, noise),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CALLS)
def test_an_image_depends_on_its_own_noise_and_stays_in_the_box(name, channels):
    x = torch.rand(20, channels, 9, 9, generator=torch.Generator().manual_seed(1))
    changed = CALLS[name](x, make_noise(20))
    assert changed.shape == x.shape
    assert float(changed.amin()) >= 0
    assert float(changed.amax()) <= 1
    assert torch.allclose(changed[:7], CALLS[name](x[:7], make_noise(7)), atol=1e-6)
    assert not torch.equal(changed, CALLS[name](x, make_noise(20, seed=1)))


WRONG = [("erase", 1.5), ("grey", -0.1), ("jitter", 1.0), ("hue", 0.6)]


@pytest.mark.parametrize(("option", "value"), WRONG)
def test_a_wrong_option_is_named(option, value):
    with pytest.raises(BadParameter, match=f"{option}={value}"):
        read_recipe(ConvNet.recipe, {option: value}, "convnet")
