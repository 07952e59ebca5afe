"""What the tests of attacks share: linear classifiers, whose worst perturbation is known, and targets before them."""

import torch
from torch import nn

from defend.defenses.none import NoDefense
from defend.noise import Noise
from defend.norms import norm_of
from defend.target import Target

SHAPE = (3, 8, 8)
INSIDE = 0.25 + 0.5 * torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(0))
EDGE = (
    torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(1)).mul(1.4).sub(0.2).clamp(0, 1)
)  # two pixels in seven are black or white
Y = torch.arange(12) % 2


def linear(classes=2, n=192):
    """Logits centred on grey, so that margins are of both signs."""
    layer = nn.Linear(n, classes).requires_grad_(False)
    layer.weight.copy_(torch.randn(classes, n, generator=torch.Generator().manual_seed(1)) / n**0.5)
    layer.bias.copy_(-layer.weight.sum(1) / 2)
    return nn.Sequential(nn.Flatten(), layer)


def curved(classes=10, n=192):
    """A small network that is far from linear."""
    generator = torch.Generator().manual_seed(2)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(n, 40), nn.Tanh(), nn.Linear(40, classes)
    ).requires_grad_(False)
    for layer in (net[1], net[3]):
        layer.weight.copy_(
            3 * torch.randn(layer.weight.shape, generator=generator) / layer.weight.shape[1] ** 0.5
        )
        layer.bias.copy_(-layer.weight.sum(1) / 2 if layer is net[1] else layer.bias.zero_())
    return net


def predicted(net, x):
    return net(x).argmax(1)


def uphill(y, shape=SHAPE):
    """The direction in which the loss of the linear classifier of two classes rises: W_other - W_y, (b, c, h, w)."""
    w = linear(n=shape[0] * shape[1] * shape[2])[1].weight
    return ((1 - 2 * y).float()[:, None] * (w[1] - w[0])).view(-1, *shape)


def unit(d):
    return d / norm_of(d, "L2").view(-1, 1, 1, 1)


def target(model=None, purifier=None, rows=None, n=12, **kw):
    rows = torch.arange(n) if rows is None else rows
    return Target(
        model or linear(), purifier or NoDefense(), Noise.of(0, rows).fork("attack"), **kw
    )


def start(n=12, rows=None):
    return Noise.of(0, torch.arange(n) if rows is None else rows).fork("start")
