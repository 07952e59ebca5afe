"""Training batches, crops, perturbations of training images, and the quality of components."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from train_toys import brightness_images, make_noise

from defend.loading import load
from defend.norms import norm_of
from defend.training.data import (
    Arrays,
    Squares,
    Stream,
    cut_squares,
    make_training_source,
    permuted_rows,
    random_crop,
)
from defend.training.perturbations import add_gaussian, add_random_signs, attack_by_pgd
from defend.training.quality import accuracy, psnr

# Batches.


def test_every_epoch_is_another_permutation():
    n = 10
    batches = [permuted_rows(start, 4, n, seed=0) for start in range(0, 40, 4)]
    epochs = torch.cat(batches).view(-1, n)  # some batches lie in two epochs
    assert all(torch.equal(rows.sort().values, torch.arange(n)) for rows in epochs)
    assert len({tuple(rows.tolist()) for rows in epochs}) == len(epochs)
    assert not torch.equal(permuted_rows(0, n, n, seed=1), epochs[0])


def test_uint8_and_float_arrays_give_the_same_batches():
    x, y = torch.randint(0, 256, (9, 1, 3, 3), dtype=torch.uint8), torch.arange(9)
    from_uint8 = Arrays(x, y).batch(3, 5, 0)
    from_float = Arrays(x.float().div(255), y).batch(3, 5, 0)
    assert torch.equal(from_uint8[0], from_float[0])
    assert torch.equal(from_uint8[1], from_float[1])


def test_squares_are_parts_of_their_images():
    x = torch.arange(2 * 5 * 7.0).view(2, 1, 5, 7)
    for k in range(20):
        parts = cut_squares(x, 3, make_noise(2, seed=k))
        for image, part in zip(x, parts):
            windows = image.unfold(1, 3, 1).unfold(2, 3, 1).reshape(-1, 3, 3)
            assert (windows == part).all((1, 2)).any()


def test_every_square_is_drawn_as_often_as_any_other():
    x = torch.arange(12.0).view(1, 1, 3, 4).expand(3000, 1, 3, 4)
    corners = cut_squares(x, 2, make_noise(3000))[:, 0, 0, 0]
    values, counts = corners.unique(return_counts=True)
    assert values.tolist() == [0, 1, 2, 4, 5, 6]
    assert counts.min() > 400


def test_squares_of_a_source_do_not_depend_on_the_batch():
    source = Squares(Arrays(torch.rand(6, 1, 8, 12), torch.arange(6)), 4)
    assert source.epoch == 6 * (8 * 12 // 16)
    x, y = source.batch(3, 5, seed=1)
    again = source.batch(5, 2, seed=1)
    assert torch.equal(x[2:4], again[0])
    assert torch.equal(y[2:4], again[1])
    assert source.fingerprint() != Squares(source.source, 3).fingerprint()


def test_a_data_set_without_an_end_becomes_a_stream():
    stream = make_training_source(load("digits-m", "dataset"))
    arrays = make_training_source(load("digits", "dataset"))
    assert isinstance(stream, Stream)
    assert isinstance(arrays, Arrays)
    x, y = stream.batch(0, 8, seed=0)
    assert x.shape == (8, 3, 32, 32)
    assert y.shape == (8,)
    later_part = stream.batch(4, 4, seed=0)[0]
    assert torch.equal(later_part, x[4:])  # an image is the same in whatever batch
    next_epoch = stream.batch(stream.epoch, 8, seed=0)[0]
    assert not torch.equal(next_epoch, x)


def test_a_crop_is_a_shift_over_black_and_perhaps_a_mirror():
    x = 0.1 + 0.9 * torch.rand(400, 3, 6, 6)  # no pixel is black
    cropped = random_crop(x, 2, make_noise(400), flip=True)
    padded = F.pad(x, (2, 2, 2, 2))
    windows = []
    for i in range(5):
        for j in range(5):
            window = padded[:, :, i : i + 6, j : j + 6]
            windows += [window, window.flip(3)]
    hits = (torch.stack(windows) == cropped).flatten(2).all(2)  # (50, 400)
    assert hits.any(0).all()
    # Each of the 50 windows occurs: one of them is absent with probability (49 / 50)^400 = 3e-4.
    assert hits.any(1).all()


def test_a_crop_depends_on_the_images_noise_alone():
    x = 0.1 + 0.9 * torch.rand(400, 3, 6, 6)
    cropped = random_crop(x, 2, make_noise(400), flip=True)
    assert torch.equal(cropped[:7], random_crop(x[:7], 2, make_noise(7), flip=True))
    assert not torch.equal(cropped, random_crop(x, 2, make_noise(400, seed=1), flip=True))
    assert torch.equal(random_crop(x, 0, make_noise(400)), x)


# Perturbations.


def test_random_signs_move_every_value_by_eps():
    x = torch.full((20, 3, 8, 8), 0.5)
    change = add_random_signs(x, 0.2, make_noise(20)) - x
    assert torch.allclose(change.abs(), torch.tensor(0.2))
    assert abs(change.mean()) < 0.02


def test_random_signs_take_an_eps_for_each_image_and_stay_in_the_box():
    x = torch.full((20, 3, 8, 8), 0.5)
    eps = torch.linspace(0, 0.3, 20).view(-1, 1, 1, 1)
    change = add_random_signs(x, eps, make_noise(20)) - x
    torch.testing.assert_close(norm_of(change, "Linf"), eps.flatten())
    white = add_random_signs(torch.ones(2, 1, 4, 4), 0.3, make_noise(2))
    assert white.max() <= 1
    assert white.min() >= 0


def test_gaussian_noise_has_the_standard_deviation_that_was_asked_for():
    x = torch.full((20, 3, 8, 8), 0.5)
    noisy = add_gaussian(x, 0.05, make_noise(20))
    assert noisy.sub(x).std() == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_pgd_reaches_the_corner_of_the_ball_on_a_linear_model(norm):
    """For two classes the loss rises along w = w_1 - w_0.

    The optimum is eps sign(w) in L-inf and eps w / |w| in L2.
    """
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double()
    x, y, eps = torch.full((5, 3, 2, 2), 0.5).double(), torch.zeros(5, dtype=torch.long), 0.1
    w = (linear[1].weight[1] - linear[1].weight[0]).detach().view(3, 2, 2)
    direction = w.sign() if norm == "Linf" else w / w.norm()
    change = attack_by_pgd(linear, x, y, eps, norm, 40, make_noise(5)) - x
    gain = (change * w).sum((1, 2, 3)) / (eps * direction * w).sum()
    assert float(norm_of(change, norm).max()) <= eps + 1e-9
    # L2: the share of the random start fades as exp(-2.5), and the cosine is above .95 then.
    least_gain = 1 - 1e-9 if norm == "Linf" else 0.95
    assert float(gain.min()) > least_gain


def test_pgd_leaves_mode_gradients_and_running_statistics_alone():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    net.train()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    attack_by_pgd(net, *brightness_images(8), 0.1, "Linf", 3, make_noise(8))
    assert net.training
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


# Quality.


def test_psnr_is_that_of_the_noise_that_a_purifier_adds():
    x = torch.full((600, 1, 8, 8), 0.5)  # two chunks
    assert psnr(load("gaussian:sigma=0.05"), x) == pytest.approx(-20 * math.log10(0.05), abs=0.1)
    assert psnr(load("none"), x) == pytest.approx(120)


def test_accuracy_counts_the_last_chunk_too():
    """The network always answers 1; of 600 images the last 100 are ones."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    nn.init.zeros_(net[1].weight)
    net[1].bias.data = torch.tensor([0.0, 1.0])
    y = (torch.arange(600) >= 500).long()
    assert accuracy(net, torch.rand(600, 1, 2, 2), y) == pytest.approx(1 / 6)
