"""The BPDA network: a network fitted to imitate a purifier, whose gradient replaces the purifier's.

An attacker differentiates it if the purifier's own gradient is missing or misleading. BPDA with a
learned approximation: Athalye, Carlini, Wagner, arXiv:1802.00420, section 4.1.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defend.learned import Frozen
from defend.noise import Noise
from defend.purifier import Purifier
from defend.training.data import Arrays
from defend.training.loop import train
from defend.training.options import LoopOptions
from defend.training.perturbations import add_random_signs, attack_by_pgd

RECIPE: dict[str, Any] = {  # a part of the key of every fitted network
    "width": 16,  # channels of the U-Net at full resolution
    "steps": 400,
    "batch": 64,  # images of 32x32; fewer larger ones
    "lr": 2e-3,
    "draws": 8,  # of a stochastic purifier, whose mean is imitated
    "pgd_steps": 5,
}
IMAGES = 2048  # training images of 32x32; fewer larger ones
CHUNK = 256  # images evaluated together
# A step of AdamW changes every weight by about the learning rate. The factor makes the
# linear part, which has to reach weights of the order of 1, move ten times as fast.
LINEAR_SCALE = 10
SMALLEST_CHANGE = 1e-12  # lower bound of |purify(x) - x|^2, for a purifier that changes nothing


class UNet(nn.Module):
    """Compute x + A x + f(x) for images (b, c, h, w) of any size; no layer mixes images.

    A is linear over 5x5 pixels, as blurs are; `linear` holds A / LINEAR_SCALE. f is a U-Net of
    three scales (arXiv:1505.04597, figure 1). The initial network is the identity.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = _make_block(channels, width)
        self.down1 = _make_block(4 * width, 2 * width)
        self.down2 = _make_block(8 * width, 4 * width)
        self.up1 = nn.Conv2d(4 * width, 8 * width, 3, padding=1)
        self.up2 = nn.Conv2d(2 * width, 4 * width, 3, padding=1)
        self.join1 = _make_block(4 * width, 2 * width)
        self.join2 = _make_block(2 * width, width)
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        self.linear = nn.Conv2d(channels, channels, 5, padding=2, bias=False)
        for parameter in (*self.last.parameters(), self.linear.weight):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Return images of the shape of x (b, c, h, w); they are not clipped.

        Inside, x is padded below and on the right to multiples of four pixels.
        """
        h, w = x.shape[-2:]
        full = self.first(F.pad(x, (0, -w % 4, 0, -h % 4)))
        half = self.down1(F.pixel_unshuffle(full, 2))
        quarter = self.down2(F.pixel_unshuffle(half, 2))
        half_from_quarter = F.pixel_shuffle(self.up1(quarter), 2)
        half_joined = self.join1(torch.cat([half, half_from_quarter], 1))
        full_from_half = F.pixel_shuffle(self.up2(half_joined), 2)
        full_joined = self.join2(torch.cat([full, full_from_half], 1))
        linear: Tensor = x + LINEAR_SCALE * self.linear(x)
        correction: Tensor = self.last(full_joined)[..., :h, :w]
        return linear + correction


def _make_block(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(channels_out, channels_out, 3, padding=1),
        nn.SiLU(),
    )


def fit_bpda_network(
    purifier: Purifier,
    images: Tensor,
    labels: Tensor | None = None,
    classifier: nn.Module | None = None,
    seed: int = 0,
    *,
    eps: float = 8 / 255,
    val: tuple[Tensor, Tensor] | None = None,
    steps: int = RECIPE["steps"],
    progress: bool = False,
) -> tuple[Frozen, float]:
    """Return a network fitted to imitate the purifier, and its relative error.

    It is fitted on training images (n, c, h, w), n >= 8, on their device. A quarter of them is
    clean. The others are perturbed by up to eps in each pixel: by noise and, if labels (n,) and a
    bare classifier are given, by one step and by several steps of PGD on the classifier. The
    target of a stochastic purifier is its mean over draws.

    The relative error is |f(x) - purify(x)| / |purify(x) - x| over the images `val` = (x, y),
    perturbed in the same way; the identity would have 1. Without `val`, an eighth of `images` is
    left out of the training for it. The result is deterministic for a seed and a number of threads.
    """
    if val is None:
        n_val = max(1, len(images) // 8)
        val_labels = images[:n_val] if labels is None else labels[:n_val]
        val = images[:n_val], val_labels
        images = images[n_val:]
        labels = None if labels is None else labels[n_val:]
    device = images.device
    root = Noise.of(seed, torch.arange(len(images), device=device))
    x = perturb_images(images, labels, classifier, eps, root.fork("train"))
    targets = _mean_purified(purifier, x, root.fork("purify"))
    with torch.random.fork_rng(devices=[device] if images.is_cuda else []):
        torch.manual_seed(seed)
        net = UNet(images.shape[1], RECIPE["width"]).to(device)
        recipe = _make_recipe(x, steps, seed)
        train(net, Arrays(x, targets), _square_error, recipe, progress=progress)
    frozen = Frozen(net)
    attacked_classifier = None if labels is None else classifier
    error = measure_relative_error(frozen, purifier, *val, attacked_classifier, eps, seed)
    return frozen, error


def images_of_equal_cost(image: Tensor, count: int) -> int:
    """Return how many images of the size of `image` (..., h, w) cost as much as `count` of 32x32.

    The result is at least an eighth of `count`, and at most `count`.
    """
    pixels = max(1, image.shape[-1] * image.shape[-2])
    return max(count // 8, min(count, count * 32 * 32 // pixels))


def _make_recipe(x: Tensor, steps: int, seed: int) -> LoopOptions:
    batch = min(images_of_equal_cost(x, RECIPE["batch"]), len(x))
    return LoopOptions(
        epochs=steps * batch / len(x),
        batch=batch,
        optimiser="adamw",
        lr=RECIPE["lr"],
        weight_decay=0.0,
        seed=seed,
        precision="float32",
        layout="contiguous",
    )


def _square_error(net: nn.Module, x: Tensor, y: Tensor, _: Noise) -> Tensor:
    return F.mse_loss(net(x), y)


def perturb_images(
    x: Tensor, y: Tensor | None, classifier: nn.Module | None, eps: float, noise: Noise
) -> Tensor:
    """Return images of four kinds by turns: clean, uniform noise, one PGD step, several PGD steps.

    Without labels or without a classifier, random signs replace PGD.
    """
    perturbed = x.clone()
    rows = torch.arange(len(x), device=x.device)
    for kind, steps in ((1, 0), (2, 1), (3, RECIPE["pgd_steps"])):
        chosen = rows[kind::4]
        if not len(chosen):
            continue
        images, image_noise = x[chosen], noise.take(chosen)
        if steps == 0:
            uniform = 2 * image_noise.uniform(images) - 1
            perturbed[chosen] = (images + eps * uniform).clamp(0, 1)
        elif y is None or classifier is None:
            perturbed[chosen] = add_random_signs(images, eps, image_noise)
        else:
            perturbed[chosen] = _attack(classifier, images, y[chosen], eps, steps, image_noise)
    return perturbed


def _attack(
    classifier: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, noise: Noise
) -> Tensor:
    chunks = zip(x.split(CHUNK), y.split(CHUNK), noise.split(CHUNK), strict=True)
    return torch.cat(
        [
            attack_by_pgd(classifier, images, labels, eps, "Linf", steps, chunk_noise)
            for images, labels, chunk_noise in chunks
        ]
    )


def _mean_purified(purifier: Purifier, x: Tensor, noise: Noise) -> Tensor:
    """Return purify(x), of a stochastic purifier the mean over draws."""
    draws = RECIPE["draws"] if purifier.card.stochastic else 1
    total = torch.zeros_like(x)
    with torch.no_grad():
        for k in range(draws):
            total = total + purifier.purified(x.clone(), noise.fork(str(k)))
        return total / draws


def measure_relative_error(
    net: nn.Module,
    purifier: Purifier,
    x: Tensor,
    y: Tensor,
    classifier: nn.Module | None,
    eps: float,
    seed: int,
) -> float:
    """Return |f(x) - purify(x)| / |purify(x) - x| over images x (n, c, h, w).

    They are perturbed in the same way as those that the network is fitted on.
    """
    noise = Noise.of(seed, torch.arange(len(x), device=x.device)).fork("val")
    perturbed = perturb_images(x, y, classifier, eps, noise.fork("move"))
    targets = _mean_purified(purifier, perturbed, noise.fork("purify"))
    with torch.no_grad():
        outputs = torch.cat([net(chunk) for chunk in perturbed.split(CHUNK)])
    change = _square_distance(targets, perturbed)
    error = _square_distance(outputs, targets)
    return float((error / max(change, SMALLEST_CHANGE)) ** 0.5)


def _square_distance(a: Tensor, b: Tensor) -> float:
    return (a - b).double().square().sum().item()
