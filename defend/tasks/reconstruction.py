"""Reconstruction: how far is the image that a codec reconstructs from its source?

Labels are not needed, and any purifier is a codec here. Source of the attacker's goal and of the
vulnerability index: Chen, Ma, "Towards Robust Neural Image Compression", arXiv:2112.08691,
section III.

    index = 10 log10( MSE(R(x'), R(x)) / MSE(x', x) ) in dB

x is the source, x' the attacked image, R the codec: by how much it enlarges a perturbation. For
MS-SSIM, 1 - MS-SSIM stands in the place of the MSE.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from defend.distortion import MIN_SIDE, SMALLEST_MSE, ms_ssim, mse, psnr
from defend.stats import Comparison, compare_means, mean_interval, per_cluster
from defend.tasks.task import Arrays, Deployed, Measure, Objective, Summary, Task

SAME = 1e-3  # of a pixel: what rounding in another batch may change
SAME_SHARE = 0.999  # of the pixels: a code of a few may round to its neighbour

_MEASURES: Mapping[str, Measure] = {
    "psnr_in": Measure(heading="PSNR in", unit="dB", higher_is_better=False),
    "vi": Measure(heading="vulnerability index", unit="dB", higher_is_better=False),
    "vi_pooled": Measure(
        heading="vulnerability index of pooled errors", unit="dB", higher_is_better=False
    ),
    "unchanged": Measure(
        heading="images that are not attacked and have no index",
        unit="share",
        higher_is_better=False,
    ),
    "unmoved": Measure(
        heading="reconstructions that did not move, -100 dB of error in the mean index",
        unit="share",
        higher_is_better=True,
    ),
    "vi_ms_ssim": Measure(
        heading="vulnerability index of MS-SSIM", unit="dB", higher_is_better=False
    ),
    "bpp_clean": Measure(heading="rate", unit="bpp", higher_is_better=False, clean=True),
    "bpp": Measure(heading="rate", unit="bpp", higher_is_better=False),
}


class Reconstruction(Task):
    """The score is the PSNR in dB of R(x') against x; attackers climb the MSE between the two.

    An exact reconstruction counts as 100 dB. No image is ever broken, so that none is dropped.
    """

    name = "reconstruction"
    unit = "dB"
    needs_classifier = False
    needs_labels = False
    default_attacks = ("codec-distortion",)
    clean_is_minimum = True  # of a codec without loss, the error of a clean image is 0
    compares_clean_output = True
    compared = ("vi",)
    told_of_pairs = "psnr_in"
    least_gap = 0.5  # dB

    @property
    def score_means(self) -> str:
        """Return what the number is."""
        return "PSNR of the reconstruction against the source"

    @property
    def objectives(self) -> frozenset[Objective]:
        """Return the objectives that need no labels."""
        return frozenset(("task", "distortion"))

    @property
    def measured(self) -> Mapping[str, Measure]:
        """Return what is measured beside the PSNR of the reconstruction."""
        return _MEASURES

    def reference(self, x: Tensor, y: Tensor, classes: int) -> Tensor:
        """Return the source images themselves; labels are not looked at."""
        return x

    def loss(self, output: Tensor, reference: Tensor) -> Tensor:
        """Return the MSE of reconstructions and sources, both (b, c, h, w): (b,)."""
        return mse(output, reference)

    def score(self, output: Tensor, reference: Tensor) -> Tensor:
        """Return the PSNR in dB, at most 100: (b,)."""
        return psnr(output, reference).float()

    def is_broken(self, output: Tensor, reference: Tensor) -> Tensor:
        """Return False for each image: it can always become worse."""
        return torch.zeros(len(output), dtype=torch.bool, device=output.device)

    def agree(self, first: Tensor, second: Tensor) -> Tensor:
        """Return which reconstructions (b,) are equal up to rounding in all but a few pixels."""
        is_same = (first - second).abs().flatten(1) <= SAME
        share: Tensor = is_same.double().mean(1)
        return share >= SAME_SHARE

    def details(self, deployed: Deployed) -> dict[str, Tensor]:
        """Return the errors of which the indices are made, and the rate of a codec."""
        values = {} if deployed.rate is None else {"bpp": deployed.rate}
        if deployed.is_clean:
            return values
        assert deployed.clean_output is not None, "the task compares clean outputs"
        pairs = {
            "in": (deployed.x, deployed.source),
            "shift": (deployed.output, deployed.clean_output),
        }
        for name, (a, b) in pairs.items():
            values[f"mse_{name}"] = mse(a.double(), b.double())
            if min(a.shape[-2:]) >= MIN_SIDE:
                values[f"ms_ssim_{name}"] = ms_ssim(a.double(), b.double())
        return values

    def measure(self, attacked: Arrays, clean: Arrays, seed: int) -> dict[str, Summary]:
        """Return the mean of each measure over images, an index over those that were changed.

        The shares of images at the floor of an error are left out where they are 0.
        """
        is_changed = (_as_errors(attacked["mse_in"]) > SMALLEST_MSE).all(1)
        changed = {name: errors[is_changed] for name, errors in attacked.items()}
        values: dict[str, NDArray[np.float64] | None] = {}
        for name in ("psnr_in", "bpp"):
            values[name] = self.values(name, attacked)
        if "bpp" in clean:
            values["bpp_clean"] = np.asarray(clean["bpp"], np.float64)
        if is_changed.any():
            values |= {name: self.values(name, changed) for name in ("vi", "vi_ms_ssim")}
            values["unmoved"] = _at_floor(changed["mse_shift"])
        values["unchanged"] = _at_floor(attacked["mse_in"])
        shares = ("unmoved", "unchanged")
        measures = {}
        for name, array in values.items():
            if array is not None and (name not in shares or array.any()):
                measures[name] = self.summarise(array, seed)
        if is_changed.any():
            measures["vi_pooled"] = _pooled_index(changed["mse_shift"], changed["mse_in"], seed)
        return measures

    def values(self, name: str, attacked: Arrays) -> NDArray[np.float64] | None:
        """Return a measure under attack (n, draws); None where one of the images has none."""
        if name == "bpp":
            return np.asarray(attacked["bpp"], np.float64) if "bpp" in attacked else None
        mse_in = _as_errors(attacked["mse_in"])
        if name == "psnr_in":
            return np.asarray(-10 * np.log10(mse_in), np.float64)
        if (mse_in <= SMALLEST_MSE).any():
            return None
        if name == "vi":
            return _ratio(_as_errors(attacked["mse_shift"]), mse_in)
        if name == "vi_ms_ssim" and "ms_ssim_in" in attacked:
            before, after = (_as_errors(1 - attacked[f"ms_ssim_{k}"]) for k in ("in", "shift"))
            return _ratio(after, before)
        return None

    def summarise(
        self, scores: ArrayLike, seed: int = 0, clusters: ArrayLike | None = None
    ) -> Summary:
        """Return the mean over scores (n, draws) with its bootstrap interval over images."""
        per_image = per_cluster(scores, clusters).mean(1)
        low, high = mean_interval(per_image, seed)
        return Summary(float(per_image.mean()), low, high)

    def compare(
        self, a: ArrayLike, b: ArrayLike, seed: int = 0, clusters: ArrayLike | None = None
    ) -> Comparison:
        """Compare scores (n, draws) of two pipelines on the same images, in dB."""
        return compare_means(per_cluster(a, clusters), per_cluster(b, clusters), seed)


def _as_errors(values: ArrayLike) -> NDArray[np.float64]:
    return np.maximum(np.asarray(values, np.float64), SMALLEST_MSE)


def _at_floor(errors: NDArray[np.generic]) -> NDArray[np.float64]:
    """Return 1 for each error that counts as none, else 0."""
    return np.asarray(_as_errors(errors) <= SMALLEST_MSE, np.float64)


def _pooled_index(
    shift: NDArray[np.generic], noise: NDArray[np.generic], seed: int, resamples: int = 2_000
) -> Summary:
    """Return the index of summed errors (n, draws), with its bootstrap interval over images.

    An error of 0 moves it by no more than its share of the images, whatever the floor.
    """
    after, before = (np.asarray(errors, np.float64).mean(1) for errors in (shift, noise))
    n = len(after)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples)
    ratios = _ratio(_as_errors(counts @ after), _as_errors(counts @ before))
    low, high = np.quantile(ratios, [0.025, 0.975])
    value = float(_ratio(_as_errors(after.sum()), _as_errors(before.sum())))
    return Summary(value, min(float(low), value), max(float(high), value))


def _ratio(after: NDArray[np.float64], before: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ratio of two errors in dB."""
    return np.asarray(10 * np.log10(after / before), np.float64)
