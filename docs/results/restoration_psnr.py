"""PSNR of restorations of validation images: what stands in docs/diffusion.md.

    python docs/results/restoration_psnr.py 24 stages=sr,steps=20 stages=color,color_start=499

The images are spread evenly over `val`; each mean is that of the PSNR of single images.
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
    for name, image in baselines(x, options.weights).items():
        print(f"{name}: {psnr(image, x).mean():.2f} dB", flush=True)
    rows = []
    for fields in options.fields:
        purifier: TwoStage = defend.load(f"two-stage:weights={options.weights},{fields}")
        start = time.process_time()
        restored = purifier.purified(x, Noise.of(0, torch.arange(len(x))))
        seconds = (time.process_time() - start) / len(x)
        print(
            f"{fields}: {psnr(restored, x).mean():.2f} dB, {seconds:.2f} CPU s an image", flush=True
        )
        rows += [x, restored]
    if options.sheet and rows:
        write_grid(torch.cat(rows), len(x), options.sheet)


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
