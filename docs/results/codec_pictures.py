"""Draw what docs/codec.md shows: reconstructions of attacked images, before and after fine-tuning.

    python docs/results/codec_pictures.py robust-codec-photos-natural robust-codec-photos-adv

The two arguments are names or files of weights of `robust-codec`. Each codec is attacked by
`codec-distortion` of its own, so that each row "attacked" is another one. The index beside a row is
the mean vulnerability index of its images in dB. Needs Kodak: DEFEND_DATA.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from strips import draw_strips, fresh_noise
from torch import Tensor, nn

import defend
from defend.distortion import mse, psnr
from defend.purifier import Purifier
from defend.target import Target
from defend.tasks.registry import load_task

IMAGES = 6
GAIN = 10  # by which differences are enlarged
FILE = Path(__file__).parent.parent / "codec_pictures.png"


def main() -> None:
    """Write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("before", help="weights that were trained on clean images")
    parser.add_argument("after", help="weights that were fine-tuned on attacked ones")
    parser.add_argument("--steps", default=200, type=int, help="of codec-distortion")
    parser.add_argument("--size", default=192, type=int, help="pixels of the central squares")
    parser.add_argument("--out", default=FILE, type=Path)
    options = parser.parse_args()
    x = defend.load(f"kodak:size={options.size}", "dataset").rows("test", 0, IMAGES)[0]
    rows = {"source": x}
    for name in (options.before, options.after):
        purifier = defend.load(f"robust-codec:weights={name}", "defense")
        rows |= make_rows(Path(name).stem, purifier, x, options.steps)
    draw_strips(rows, options.out, height=1.6)


def make_rows(name: str, purifier: Purifier, x: Tensor, steps: int) -> dict[str, Tensor]:
    """Return what the codec makes of the sources and of images that were attacked through it."""
    x_adv = attack(purifier, x, steps)
    with torch.no_grad():
        clean, attacked = purifier.purified(x), purifier.purified(x_adv)
    index = 10 * (mse(attacked, clean) / mse(x_adv, x)).log10().mean()
    decibels = {
        label: float(psnr(image, x).mean())
        for label, image in (("in", x_adv), ("clean", clean), ("attacked", attacked))
    }
    return {
        f"{name}:\nof the source, {decibels['clean']:.1f} dB": clean,
        f"{name}:\nattacked, {decibels['in']:.1f} dB": x_adv,
        f"{name}:\nof the attacked, {decibels['attacked']:.1f} dB\nindex {index:.1f} dB": attacked,
        f"{name}:\nits shift, x {GAIN}": (0.5 + GAIN * (attacked - clean)).clamp(0, 1),
    }


def attack(purifier: Purifier, x: Tensor, steps: int) -> Tensor:
    """Return images whose reconstruction is as far as possible from that of x."""
    noise = fresh_noise(x)
    target = Target(nn.Identity(), purifier, noise, task=load_task("reconstruction"))
    eps = 16 / 255
    x_adv: Tensor = defend.load(f"codec-distortion:steps={steps}", "attack").run(
        target, x, x, eps, noise.fork("start")
    )
    return x_adv


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
