"""Perturbations that a restorer is trained on: random patterns, and attacks on small classifiers.

The random patterns use no classifier. The attacks use surrogate classifiers that are trained beside
the restorer. Attacks that take signs of gradients give patterns of one height and many
lengths, and near strokes they push towards other images. Independent noise has neither property, so
a restorer that was trained on it alone does not remove the patterns.

Images x are (b, c, h, w) in [0, 1], labels y (b,).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from defend.noise import Noise
from defend.training.perturbations import cross_entropy_of, eval_mode, gradient_of

LENGTHS = (1, 2, 4, 7)  # pixels over which a pattern retains its sign, roughly
MAX_GAIN = 100.0  # the highest gain before clipping: it turns a pattern into signs
MAX_SHIFT = 8.0  # the highest weight of the difference to the next image, before the gain


def draw_uniform(x: Tensor, noise: Noise) -> Tensor:
    """Return one number from U[0, 1) for each image of x: (b, 1, 1, 1)."""
    return noise.uniform(x[:, :1, :1, :1])


def draw_share(x: Tensor, noise: Noise) -> Tensor:
    """Return each image's share s of the amplitude, with density 2 s on [0, 1): (b, 1, 1, 1).

    Large shares are more frequent, because there is more to learn from them.
    """
    return draw_uniform(x, noise).sqrt()


def draw_pattern(x: Tensor, noise: Noise) -> Tensor:
    """Return patterns (b, c, h, w) in [-1, 1], from smooth ones to signs.

    Each image has its own mixture of random fields of several lengths and, in half of the images,
    of the difference to the next image of the batch.
    """
    field = torch.zeros_like(x)
    for length in LENGTHS:
        field = field + draw_field(x, length, noise) * draw_uniform(x, noise) ** 3
    field = field / field.std((1, 2, 3), keepdim=True, correction=0).clamp(min=1e-6)
    shift = (2 * draw_uniform(x, noise) - 1).clamp(min=0) * MAX_SHIFT * (x.roll(1, 0) - x)
    return ((field + shift) * MAX_GAIN ** draw_uniform(x, noise)).clamp(-1, 1)


def draw_field(x: Tensor, length: int, noise: Noise) -> Tensor:
    """Return normal noise (b, c, h, w) that varies over `length` pixels."""
    b, c, h, w = x.shape
    coarse = noise.normal(x.new_empty(b, c, -(-h // length), -(-w // length)))
    if length == 1:
        return coarse
    return F.interpolate(coarse, (h, w), mode="bilinear", align_corners=False)


def corrupt(x: Tensor, amplitude: float, noise: Noise) -> Tensor:
    """Return x moved along patterns, each image by its share of `amplitude` (L-inf) at most."""
    return (x + amplitude * draw_share(x, noise) * draw_pattern(x, noise)).clamp(0, 1)


def attack_surrogates(
    nets: nn.ModuleList, x: Tensor, y: Tensor, amplitude: float, noise: Noise
) -> Tensor:
    """Return x attacked by FGSM from a random start (arXiv:1705.07204, section 3.2).

    Network k attacks every (len(nets) + 1)-th image from the k-th one on. The images between them
    move along their patterns, as by `corrupt`.
    """
    eps = amplitude * draw_share(x, noise)
    direction = draw_pattern(x, noise)
    start = (x + eps * draw_uniform(x, noise) * direction).clamp(0, 1)
    for k, net in enumerate(nets):
        rows = slice(k, None, len(nets) + 1)
        direction[rows] = input_gradient(net, start[rows], y[rows]).sign()
    return (x + eps * direction).clamp(0, 1)


def input_gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return d cross-entropy / d x (b, c, h, w) of the network in eval mode.

    Eval mode is needed because an attack must not move the running statistics.
    """
    with eval_mode(net):
        return gradient_of(cross_entropy_of(net, y), x)


def recognition_loss(nets: nn.ModuleList, x: Tensor, y: Tensor) -> Tensor:
    """Return the networks' mean cross-entropy on x, with a gradient for x but not for them."""
    with eval_mode(nets):
        logits = [classify_with_fixed_weights(net, x) for net in nets]
    return torch.stack([F.cross_entropy(z.float(), y) for z in logits]).mean()


def classify_with_fixed_weights(net: nn.Module, x: Tensor) -> Tensor:
    """Return the logits of x (b, classes), without a gradient for the network's parameters."""
    detached = {name: p.detach() for name, p in net.named_parameters()}
    return functional_call(net, detached, (x,))  # type: ignore[no-any-return]


def build_surrogates(channels: int, size: int, classes: int) -> nn.ModuleList:
    """Return three small untrained classifiers of different families.

    Their initial weights come from torch's global generator.
    """
    return nn.ModuleList(
        [
            build_strided(channels, size, classes),
            build_dense(channels, size, classes),
            build_pooled(channels, classes),
        ]
    )


def build_strided(channels: int, size: int, classes: int) -> nn.Sequential:
    """Return a classifier with strided 5x5 convolutions."""
    layers: list[nn.Module] = []
    for c_in, c_out in pairwise((channels, 16, 32)):
        layers += [nn.Conv2d(c_in, c_out, 5, stride=2, padding=2), nn.ReLU()]
    positions = (-(-size // 4)) ** 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * positions, classes))


def build_dense(channels: int, size: int, classes: int) -> nn.Sequential:
    """Return a classifier with dense layers."""
    hidden = nn.Linear(channels * size**2, 128)
    return nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(128, classes))


def build_pooled(channels: int, classes: int) -> nn.Sequential:
    """Return a classifier with 3x3 convolutions, batch norms and max pooling."""
    layers: list[nn.Module] = []
    for c_in, c_out in pairwise((channels, 16, 32, 64)):
        layers += [
            nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))
