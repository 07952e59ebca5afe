"""Perturbations that a restorer trains on: from no classifier at all, or from small classifiers that grow up beside it.

Attacks that take signs of gradients give patterns of one height and of many lengths, and near strokes they push towards other images.
Independent noise has neither, so a restorer that has seen it alone keeps the patterns.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from defend.noise import Noise

LENGTHS = (1, 2, 4, 7)  # pixels over which a pattern keeps its sign, roughly
SHARPEST = 100.0  # gain before clipping: signs


def column(x: Tensor, noise: Noise) -> Tensor:
    """U[0, 1) for each image of x: (b, 1, 1, 1)."""
    return noise.uniform(x[:, :1, :1, :1])


def share(x: Tensor, noise: Noise) -> Tensor:
    """Of the amplitude, for each image of x: (b, 1, 1, 1), large ones more often, since there is more to learn: density 2 s on [0, 1)."""
    return column(x, noise).sqrt()


def pattern(x: Tensor, noise: Noise) -> Tensor:
    """Patterns in [-1, 1] for images x (b, c, h, w), each image's own mixture: of random fields of several lengths and, in half of the
    images, of the way to the next image of the batch; from smooth to signs."""
    field = sum(
        (random_field(x, length, noise) * column(x, noise) ** 3 for length in LENGTHS),
        torch.zeros_like(x),
    )
    field = field / field.std((1, 2, 3), keepdim=True, correction=0).clamp(min=1e-6)
    towards = (2 * column(x, noise) - 1).clamp(min=0) * 8 * (x.roll(1, 0) - x)
    return ((field + towards) * SHARPEST ** column(x, noise)).clamp(-1, 1)


def random_field(x: Tensor, length: int, noise: Noise) -> Tensor:
    """Normal noise that varies over `length` pixels: (b, c, h, w)."""
    b, c, h, w = x.shape
    coarse = noise.normal(x.new_empty(b, c, -(-h // length), -(-w // length)))
    return (
        coarse
        if length == 1
        else F.interpolate(coarse, (h, w), mode="bilinear", align_corners=False)
    )


def corrupted(x: Tensor, amplitude: float, noise: Noise) -> Tensor:
    """Each image of x moved along a pattern by up to its own share of `amplitude`, in [0, 1]."""
    return (x + amplitude * share(x, noise) * pattern(x, noise)).clamp(0, 1)


def attacked(nets: nn.ModuleList, x: Tensor, y: Tensor, amplitude: float, noise: Noise) -> Tensor:
    """Every network attacks its part of the batch by FGSM from a random start (arXiv:1705.07204, section 3.2); one part is `corrupted`."""
    eps = amplitude * share(x, noise)
    pushed = pattern(x, noise)
    start = (x + eps * column(x, noise) * pushed).clamp(0, 1)
    for k, net in enumerate(nets):
        part = slice(k, None, len(nets) + 1)
        pushed[part] = slope(net, start[part], y[part]).sign()
    return (x + eps * pushed).clamp(0, 1)


def slope(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """d cross entropy / d x, of a network in eval mode: an attack must not move its running statistics."""
    training = net.training
    net.eval()
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        g: Tensor = torch.autograd.grad(F.cross_entropy(net(x).float(), y, reduction="sum"), x)[0]
    net.train(training)
    return g


def recognised(nets: nn.ModuleList, x: Tensor, y: Tensor) -> Tensor:
    """The networks' mean cross entropy on images x, for x to learn from and the networks not to."""
    nets.eval()
    logits = [
        functional_call(net, {name: p.detach() for name, p in net.named_parameters()}, (x,))
        for net in nets
    ]
    nets.train()
    return torch.stack([F.cross_entropy(z.float(), y) for z in logits]).mean()


def surrogates(channels: int, size: int, classes: int) -> nn.ModuleList:
    """Three small classifiers of different families: strided 5x5 convolutions, dense layers, pooled 3x3 convolutions with norms."""
    cells = (-(-size // 4)) ** 2
    strides = (
        m
        for a, b in pairwise((channels, 16, 32))
        for m in (nn.Conv2d(a, b, 5, stride=2, padding=2), nn.ReLU())
    )
    strided = nn.Sequential(*strides, nn.Flatten(), nn.Linear(32 * cells, classes))
    dense = nn.Sequential(
        nn.Flatten(), nn.Linear(channels * size**2, 128), nn.ReLU(), nn.Linear(128, classes)
    )
    pools = (m for a, b in pairwise((channels, 16, 32, 64)) for m in pooling(a, b))
    pooled = nn.Sequential(*pools, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))
    return nn.ModuleList([strided, dense, pooled])


def pooling(c_in: int, c_out: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
    )
