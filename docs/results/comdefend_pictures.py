"""Draw what docs/comdefend.md shows: images before and after each model, and binary maps.

    python docs/results/comdefend_pictures.py comdefend-cifar10 comdefend-cifar10-late

Each argument is the weights of one model. PGD-20 at 8/255 attacks resnet20 alone, on test images of
CIFAR-10. Needs CIFAR-10: DEFEND_DATA.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from strips import attack_classifier, draw_strips, fresh_noise, save_figure
from torch import Tensor

import defend
from defend.defenses.comdefend import ComDefend
from defend.spec import write_value

DOCS = Path(__file__).parent.parent
IMAGES = 8
EPS = 8 / 255


def main() -> None:
    models = {name: load(name) for name in sys.argv[1:]}
    x, y = defend.load("cifar10", "dataset").rows("test", 0, IMAGES)
    x_adv = attack_classifier(x, y, "cifar10", "resnet20", "pgd:steps=20", EPS)
    draw_strips(purify_rows(models, x, x_adv), DOCS / "comdefend_strips.png")
    draw_maps(models, x[:1], x_adv[:1], DOCS / "comdefend_maps.png")


def load(weights: str) -> ComDefend:
    purifier = defend.load(f"comdefend:weights={write_value(weights)}", "defense", "cifar10")
    assert isinstance(purifier, ComDefend)
    return purifier


@torch.no_grad()
def purify_rows(models: Mapping[str, ComDefend], x: Tensor, x_adv: Tensor) -> Mapping[str, Tensor]:
    """Return clean and attacked images, and what each model makes of both."""
    rows = {"clean": x, "PGD-20, 8/255": x_adv}
    for name, purifier in models.items():
        rows[f"{name} of clean"] = purifier.purified(x, fresh_noise(x))
        rows[f"{name} of attacked"] = purifier.purified(x_adv, fresh_noise(x))
    return rows


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
    save_figure(figure, file)


def mark(bits: Tensor, changed: Tensor) -> Tensor:
    """Return bits (h, w) as a grey image (h, w, 3), red where they changed."""
    red = torch.tensor([0.9, 0.1, 0.1])
    grey = bits[..., None].expand(*bits.shape, 3)
    return torch.where(changed[..., None], red, grey)


if __name__ == "__main__":
    main()
