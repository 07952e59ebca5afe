"""Strips of images with a name beside each: what the programs that draw pictures share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

import defend
from defend.noise import Noise
from defend.target import Target

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def attack_classifier(
    x: Tensor, y: Tensor, dataset: str, classifier: str, attack: str, eps: float
) -> Tensor:
    """Return images (b, c, h, w) that an attack made against the bare classifier."""
    noise = fresh_noise(x)
    network = defend.load(classifier, "classifier", dataset).network
    target = Target(network, defend.load("none"), noise)
    x_adv: Tensor = defend.load(attack, "attack").run(target, x, y, eps, noise)
    return x_adv


def fresh_noise(x: Tensor) -> Noise:
    """Return the same noise at each call, one stream for each image."""
    return Noise.of(0, torch.arange(len(x)))


def draw_strips(rows: Mapping[str, Tensor], file: Path, height: float = 1.1) -> None:
    """Draw the images of each row side by side. height: of a row, in inches."""
    figure, axes = plt.subplots(len(rows), 1, figsize=(9, height * len(rows)))
    for axis, (name, images) in zip(axes, rows.items(), strict=True):
        axis.imshow(torch.cat(list(images), 2).permute(1, 2, 0).squeeze(-1))
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
    save_figure(figure, file)


def save_figure(figure: plt.Figure, file: Path) -> None:
    """Write a figure, close it, and print where it is."""
    figure.savefig(file, dpi=100, bbox_inches="tight")
    plt.close(figure)
    print(f"wrote {file}")
