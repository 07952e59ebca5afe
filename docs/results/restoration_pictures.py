"""Draw what docs/diffusion.md shows: faces before and after each stage of two-stage.

    python docs/results/restoration_pictures.py [--eps 2/255] [--steps 20]

Validation faces, which PGD-40 attacks on face-resnet alone. Needs LFW: DEFEND_DATA.
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path

import torch
from strips import attack_classifier, draw_strips, fresh_noise

import defend

DATASET, CLASSIFIER = "faces:size=64", "face-resnet"
IMAGES = 8
FILE = Path(__file__).parent.parent / "faces_by_stage.png"


def main() -> None:
    """Write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--eps", default="2/255", type=Fraction)
    parser.add_argument("--steps", default=20, type=int, help="calls of the network in stage 1")
    options = parser.parse_args()
    data = defend.load(DATASET, "dataset")
    apart = torch.linspace(0, data.count("val") - 1, IMAGES).long().tolist()
    pairs = [data.rows("val", row, row + 1) for row in apart]
    x, y = (torch.cat(part) for part in zip(*pairs, strict=True))
    x_adv = attack_classifier(x, y, DATASET, CLASSIFIER, "pgd:steps=40", float(options.eps))
    late = f"steps={options.steps},color_start=499"
    fields = {
        "interpolation": "stages=sr,sampler=interpolation",
        "interpolation, mean chroma": "sampler=interpolation",
        "stage 1": f"stages=sr,steps={options.steps}",
        "stage 2 alone, from 999": f"stages=color,steps={options.steps}",
        "stage 2 alone, from 499": f"stages=color,{late}",
        "both stages, from 499": late,
    }
    rows = {"clean": x, f"PGD-40, {options.eps}": x_adv}
    for name, text in fields.items():
        purifier = defend.load(f"two-stage:{text}", "defense", DATASET)
        rows[name] = purifier.purified(x_adv, fresh_noise(x))
    draw_strips(rows, FILE)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
