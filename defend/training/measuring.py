"""Measure weights on the test split, for the row `measured` of a zoo.toml."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from defend.classifier import Classifier
from defend.dataset import Dataset
from defend.errors import BadParameter
from defend.noise import Noise
from defend.pairing import check_pair
from defend.progress import MeasuringProgress
from defend.purifier import Purifier
from defend.training.quality import to_psnr

SPLIT: Final = "test"
CHUNK = 256  # images at a time


def measure_component(
    component: Classifier | Purifier, judge: Classifier | None, data: Dataset, n: int | None
) -> dict[str, Any]:
    """Return the measured numbers of a component on the first n test images, all for None.

    judge: the classifier behind a purifier. The numbers say on which images they were measured,
    and with which classifier. A stochastic purifier draws once, with seed 0. Raise BadParameter,
    Mismatch.
    """
    count = data.count(SPLIT) if n is None else n
    if count < 1:
        raise BadParameter(f"--n {count}: expected 1 or more; give a number of images")
    classifier = component if isinstance(component, Classifier) else judge
    assert classifier is not None
    check_pair(classifier, data)
    purifier = component if isinstance(component, Purifier) else None
    correct, error = _sum_over_images(purifier, classifier, data, count)
    measured: dict[str, Any] = {"clean_accuracy": round(correct / count, 4)}
    if purifier:
        measured["psnr"] = round(to_psnr(torch.tensor([error / count])), 2)
        measured["classifier"] = ", ".join(classifier.weights_sha256) or classifier.component
    return {**measured, "split": SPLIT, "images": count}


@torch.no_grad()
def _sum_over_images(
    purifier: Purifier | None, classifier: Classifier, data: Dataset, count: int
) -> tuple[int, float]:
    """Return the number of correct images, and the sum of the mean square errors of purifying."""
    device = next(classifier.net.parameters()).device
    correct, error = 0, 0.0
    progress = MeasuringProgress(True)
    with progress.counting(count):
        for start in range(0, count, CHUNK):
            x, y = data.rows(SPLIT, start, min(start + CHUNK, count))
            purified = _purify(purifier, x.to(device), start)
            error += float((purified - x.to(device)).square().mean((1, 2, 3)).sum())
            correct += int((classifier.network(purified).argmax(1).cpu() == y).sum())
            progress.advance(len(x))
    return correct, error


def _purify(purifier: Purifier | None, x: Tensor, start: int) -> Tensor:
    if purifier is None:
        return x
    noise = Noise.of(0, torch.arange(start, start + len(x), device=x.device))
    return purifier.purified(x, noise)
