"""A network fitted to imitate a purifier, x -> purify(x): what an attacker differentiates where the purifier's own gradient is missing,
or not to be trusted. BPDA with a learned stand-in: Athalye, Carlini, Wagner, arXiv:1802.00420, section 4.1.
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
from defend.training.perturbations import pgd, random_signs
from defend.training.recipe import Recipe

RECIPE: dict[str, Any] = {
    "width": 16,
    "steps": 400,
    "batch": 64,
    "lr": 2e-3,
    "draws": 8,
    "pgd_steps": 5,
}  # 64 images of 32x32; fewer larger ones
IMAGES = 2048  # training images of 32x32; fewer larger ones


class UNet(nn.Module):
    """x + A x + f(x): A linear, over 5x5 pixels, as blurs are; f a U-Net of three scales (arXiv:1505.04597, figure 1).

    No layer mixes images, and every size is taken: (b, c, h, w).
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        w = width
        self.first, self.down1, self.down2 = (
            _block(channels, w),
            _block(4 * w, 2 * w),
            _block(8 * w, 4 * w),
        )
        self.up1, self.up2 = (
            nn.Conv2d(4 * w, 8 * w, 3, padding=1),
            nn.Conv2d(2 * w, 4 * w, 3, padding=1),
        )
        self.join1, self.join2 = _block(4 * w, 2 * w), _block(2 * w, w)
        self.last = nn.Conv2d(w, channels, 3, padding=1)
        self.linear = nn.Conv2d(channels, channels, 5, padding=2, bias=False)
        for parameter in (*self.last.parameters(), self.linear.weight):
            nn.init.zeros_(parameter)  # begin as the identity

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        a = self.first(F.pad(x, (0, -w % 4, 0, -h % 4)))
        b = self.down1(F.pixel_unshuffle(a, 2))
        c = self.down2(F.pixel_unshuffle(b, 2))
        b = self.join1(torch.cat([b, F.pixel_shuffle(self.up1(c), 2)], 1))
        a = self.join2(torch.cat([a, F.pixel_shuffle(self.up2(b), 2)], 1))
        return x + 10 * self.linear(x) + self.last(a)[..., :h, :w]  # type: ignore[no-any-return]


def _block(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(outside, outside, 3, padding=1),
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
    """(the network, its relative error), fitted on training images (n, c, h, w), n >= 8, where they are.

    A quarter of them is clean; the others are moved by up to eps in each pixel: by noise and, where labels (n,) and a bare classifier are
    given, by one step and by several steps of PGD on it. A stochastic purifier's target is its mean over draws. The error is
    |f(x) - purify(x)| / |purify(x) - x| over images `val` (x, y) moved alike (without them: over an eighth of `images`, left out): 1 is
    what the identity would have. Deterministic for a seed and a number of threads.
    """
    if val is None:
        cut = max(1, len(images) // 8)
        val, images, labels = (
            (images[:cut], images[:cut] if labels is None else labels[:cut]),
            images[cut:],
            None if labels is None else labels[cut:],
        )
    moved = perturbed(
        images,
        labels,
        classifier,
        eps,
        Noise.of(seed, torch.arange(len(images), device=images.device)).fork("train"),
    )
    noise = Noise.of(seed, torch.arange(len(moved), device=images.device)).fork("purify")
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        torch.manual_seed(seed)
        net = UNet(images.shape[1], RECIPE["width"]).to(images.device)
        train(
            net,
            Arrays(moved, _mean(purifier, moved, noise)),
            _square_error,
            _recipe(moved, steps, seed),
            progress=progress,
        )
    frozen = Frozen(net)
    return frozen, relative_error(
        frozen, purifier, *val, None if labels is None else classifier, eps, seed
    )


def share_of(image: Tensor, count: int) -> int:
    """`count` images of 32x32 in images of this size (..., h, w): the same work, at least an eighth of them."""
    return max(count // 8, min(count, count * 1024 // max(1, image.shape[-1] * image.shape[-2])))


def _recipe(x: Tensor, steps: int, seed: int) -> Recipe:
    batch = min(share_of(x, RECIPE["batch"]), len(x))
    epochs, lr = steps * batch / len(x), RECIPE["lr"]
    return Recipe(
        epochs=epochs,
        batch=batch,
        optimiser="adamw",
        lr=lr,
        weight_decay=0.0,
        seed=seed,
        precision="float32",
        layout="contiguous",
    )


def _square_error(net: nn.Module, x: Tensor, y: Tensor, _: Noise) -> Tensor:
    return F.mse_loss(net(x), y)


def perturbed(
    x: Tensor, y: Tensor | None, classifier: nn.Module | None, eps: float, noise: Noise
) -> Tensor:
    """Every fourth image as it is; the others by uniform noise, then by PGD of one step and of several, or by random signs."""
    out = x.clone()
    rows = torch.arange(len(x), device=x.device)
    for kind, steps in ((1, 0), (2, 1), (3, RECIPE["pgd_steps"])):
        some = rows[kind::4]
        if not len(some):
            continue
        mine = noise.take(some)
        if steps and y is not None and classifier is not None:
            cuts = zip(x[some].split(256), y[some].split(256), mine.split(256), strict=True)
            out[some] = torch.cat(
                [pgd(classifier, a, b, eps, "Linf", steps, n) for a, b, n in cuts]
            )
        else:
            out[some] = (
                random_signs(x[some], eps, mine)
                if steps
                else (x[some] + eps * (2 * mine.uniform(x[some]) - 1)).clamp(0, 1)
            )
    return out


def _mean(purifier: Purifier, x: Tensor, noise: Noise) -> Tensor:
    """purify(x), the mean over draws of a stochastic purifier."""
    draws = RECIPE["draws"] if purifier.card.stochastic else 1
    with torch.no_grad():
        return (
            sum(
                (purifier.purified(x.clone(), noise.fork(str(k))) for k in range(draws)),
                torch.zeros_like(x),
            )
            / draws
        )


def relative_error(
    net: nn.Module,
    purifier: Purifier,
    x: Tensor,
    y: Tensor,
    classifier: nn.Module | None,
    eps: float,
    seed: int,
) -> float:
    """Over images x (n, c, h, w), moved as in training."""
    noise = Noise.of(seed, torch.arange(len(x), device=x.device)).fork("val")
    moved = perturbed(x, y, classifier, eps, noise.fork("move"))
    wanted = _mean(purifier, moved, noise.fork("purify"))
    with torch.no_grad():
        got = torch.cat([net(part) for part in moved.split(256)])
    change = (wanted - moved).double().square().sum().item()
    return float(((got - wanted).double().square().sum().item() / max(change, 1e-12)) ** 0.5)
