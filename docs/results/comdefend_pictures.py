"""Draw what docs/comdefend.md shows: images before and after each model, and binary maps.

    python docs/results/comdefend_pictures.py comdefend-cifar10 comdefend-cifar10-late

Each argument is the weights of one model. PGD-20 at 8/255 attacks resnet20 alone, on test images of
CIFAR-10. Needs CIFAR-10: DEFEND_DATA.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

import defend
from defend.defenses.comdefend import ComDefend
from defend.noise import Noise
from defend.spec import write_value
from defend.target import Target

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).parent.parent
IMAGES = 8
EPS = 8 / 255


def main() -> None:
    models = {name: load(name) for name in sys.argv[1:]}
    x, y = defend.load("cifar10", "dataset").rows("test", 0, IMAGES)
    x_adv = attack(x, y)
    draw_strips(models, x, x_adv, DOCS / "comdefend_strips.png")
    draw_maps(models, x[:1], x_adv[:1], DOCS / "comdefend_maps.png")


def load(weights: str) -> ComDefend:
    purifier = defend.load(f"comdefend:weights={write_value(weights)}", "defense", "cifar10")
    assert isinstance(purifier, ComDefend)
    return purifier


def attack(x: Tensor, y: Tensor) -> Tensor:
    """Return images (b, c, h, w) that PGD-20 made against resnet20 alone."""
    noise = fresh_noise(x)
    classifier = defend.load("resnet20", "classifier", "cifar10").network
    target = Target(classifier, defend.load("none"), noise)
    x_adv: Tensor = defend.load("pgd:steps=20", "attack").run(target, x, y, EPS, noise)
    return x_adv


def fresh_noise(x: Tensor) -> Noise:
    return Noise.of(0, torch.arange(len(x)))


@torch.no_grad()
def draw_strips(models: Mapping[str, ComDefend], x: Tensor, x_adv: Tensor, file: Path) -> None:
    """Draw clean and attacked images, and below them what each model makes of both."""
    rows = {"clean": x, "PGD-20, 8/255": x_adv}
    for name, purifier in models.items():
        rows[f"{name} of clean"] = purifier.purified(x, fresh_noise(x))
        rows[f"{name} of attacked"] = purifier.purified(x_adv, fresh_noise(x))
    figure, axes = plt.subplots(len(rows), 1, figsize=(9, 1.1 * len(rows)))
    for axis, (name, images) in zip(axes, rows.items(), strict=True):
        axis.imshow(torch.cat(list(images), 2).permute(1, 2, 0))
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
    save(figure, file)


@torch.no_grad()
def draw_maps(models: Mapping[str, ComDefend], x: Tensor, x_adv: Tensor, file: Path) -> None:
    """Draw the binary maps of one image; bits that the attack flips are red."""
    largest = max(purifier.code_maps for purifier in models.values())
    figure, axes = plt.subplots(
        len(models), largest, figsize=(0.95 * largest, 1.1 * len(models)), squeeze=False
    )
    for row, (name, purifier) in zip(axes, models.items(), strict=True):
        clean = purifier.binary_maps(x, fresh_noise(x))[0]
        flipped = purifier.binary_maps(x_adv, fresh_noise(x))[0] != clean
        for axis in row:
            axis.axis("off")
        for axis, bits, changed in zip(row, clean, flipped, strict=False):
            axis.imshow(mark(bits, changed))
        share = flipped.float().mean().item()
        row[0].set_title(f"{name}: {share:.1%} of the bits flip", fontsize=8, loc="left")
    save(figure, file)


def mark(bits: Tensor, changed: Tensor) -> Tensor:
    """Return bits (h, w) as a grey image (h, w, 3), red where they changed."""
    red = torch.tensor([0.9, 0.1, 0.1])
    grey = bits[..., None].expand(*bits.shape, 3)
    return torch.where(changed[..., None], red, grey)


def save(figure: plt.Figure, file: Path) -> None:
    figure.savefig(file, dpi=100, bbox_inches="tight")
    plt.close(figure)
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
