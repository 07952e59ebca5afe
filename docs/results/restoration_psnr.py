"""PSNR of restorations of validation images: what stands in docs/diffusion.md.

    python docs/results/restoration_psnr.py 24 stages=sr,steps=20 stages=color,color_start=499

The images are spread evenly over `val`. A line says the mean of the PSNR of single images with its
95 % bootstrap interval over images, which is too narrow for a few of them; then the same of the
difference to the first baseline, image by image, which tells small differences apart.
`--sheet FILE.png` shows, for each spec, the images above their restorations.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import defend
from defend.defenses.restoration import ChannelMean, Pooling
from defend.defenses.two_stage import TwoStage
from defend.distortion import psnr
from defend.noise import Noise
from defend.stats import mean_interval
from defend.training.sheets import write_grid


def main() -> None:
    """Print one line for each baseline and each spec."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=int)
    parser.add_argument("fields", nargs="*", help="fields of two-stage, as stages=sr,steps=20")
    parser.add_argument("--dataset", default="faces:size=64")
    parser.add_argument("--weights", default="two-stage-faces64")
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    x = validation_images(options.dataset, options.images)
    first: Tensor | None = None
    for name, image in baselines(x, options.weights).items():
        quality = psnr(image, x)
        first = quality if first is None else first
        print(f"{name}: {describe(quality, first)}", flush=True)
    assert first is not None
    rows = []
    for fields in options.fields:
        purifier: TwoStage = defend.load(f"two-stage:weights={options.weights},{fields}")
        start = time.process_time()
        restored = purifier.purified(x, Noise.of(0, torch.arange(len(x))))
        seconds = (time.process_time() - start) / len(x)
        text = describe(psnr(restored, x), first)
        print(f"{fields}: {text}, {seconds:.2f} CPU s an image", flush=True)
        rows += [x, restored]
    if options.sheet and rows:
        write_grid(torch.cat(rows), len(x), options.sheet)


def describe(quality: Tensor, first: Tensor) -> str:
    """Return "32.45 dB (31.80 to 33.10), +0.05 (-0.10 to +0.20) to the first", of PSNRs (n,)."""
    low, high = mean_interval(quality.numpy())
    text = f"{quality.mean():.2f} dB ({low:.2f} to {high:.2f})"
    if quality is first:
        return text
    difference = quality - first
    low, high = mean_interval(difference.numpy())
    return f"{text}, {difference.mean():+.2f} ({low:+.2f} to {high:+.2f}) to the first"


def validation_images(dataset: str, n: int) -> Tensor:
    """Return n validation images (n, 3, h, w)."""
    data = defend.load(dataset, "dataset")
    rows = torch.linspace(0, data.count("val") - 1, n).long().tolist()
    return torch.cat([data.rows("val", row, row + 1)[0] for row in rows])


def baselines(x: Tensor, weights: str) -> dict[str, Tensor]:
    """Return what interpolation and constant colours restore."""
    grey = ChannelMean().project(x)
    mean = defend.load(f"two-stage:weights={weights}").net.mean.view(1, 3, 1, 1)
    small = Pooling(2).reduce(x)
    return {
        "bicubic, x2": F.interpolate(small, scale_factor=2, mode="bicubic").clamp(0, 1),
        "grey": grey,
        "grey and mean chroma": (grey + mean - mean.mean()).clamp(0, 1),
    }


if __name__ == "__main__":
    main()
