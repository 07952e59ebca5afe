"""Toy classifiers whose worst perturbation is known, and targets before them, for attack tests."""

import torch
from torch import nn

from defend.defenses.none import NoDefense
from defend.noise import Noise
from defend.norms import norm_of
from defend.target import Target

SHAPE = (3, 8, 8)
IMAGES = 12


def random_images(seed):
    return torch.rand(IMAGES, *SHAPE, generator=torch.Generator().manual_seed(seed))


INSIDE = 0.25 + 0.5 * random_images(seed=0)  # far from the box
EDGE = random_images(seed=1).mul(1.4).sub(0.2).clamp(0, 1)  # two pixels in seven are black or white
Y = torch.arange(IMAGES) % 2


def linear(classes=2, n=192):
    """Return a linear classifier of n pixels, centred on grey so that margins have both signs."""
    layer = nn.Linear(n, classes).requires_grad_(False)
    layer.weight.copy_(torch.randn(classes, n, generator=torch.Generator().manual_seed(1)) / n**0.5)
    layer.bias.copy_(-layer.weight.sum(1) / 2)
    return nn.Sequential(nn.Flatten(), layer)


def curved(classes=10, n=192):
    """Return a small network that is far from linear."""
    generator = torch.Generator().manual_seed(2)
    first, last = nn.Linear(n, 40), nn.Linear(40, classes)
    net = nn.Sequential(nn.Flatten(), first, nn.Tanh(), last).requires_grad_(False)
    for layer in (first, last):
        weight = torch.randn(layer.weight.shape, generator=generator)
        layer.weight.copy_(3 * weight / layer.weight.shape[1] ** 0.5)
    first.bias.copy_(-first.weight.sum(1) / 2)
    last.bias.zero_()
    return net


def predict(net, x):
    return net(x).argmax(1)


def uphill(y, shape=SHAPE):
    """Return the direction in which the loss of the linear classifier of two classes rises.

    It is W_other - W_y, of shape (b, c, h, w).
    """
    w = linear(n=shape[0] * shape[1] * shape[2])[1].weight
    return ((1 - 2 * y).float()[:, None] * (w[1] - w[0])).view(-1, *shape)


def scale_to_unit(d):
    """Return d scaled to L2 norm 1."""
    return d / norm_of(d, "L2").view(-1, 1, 1, 1)


def make_target(model=None, purifier=None, rows=None, n=IMAGES, **options):
    rows = torch.arange(n) if rows is None else rows
    noise = Noise.of(0, rows).fork("attack")
    return Target(model or linear(), purifier or NoDefense(), noise, **options)


def start_noise(n=IMAGES, rows=None):
    return Noise.of(0, torch.arange(n) if rows is None else rows).fork("start")
