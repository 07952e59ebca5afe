"""Train a diffusion prior for some seconds on a GPU: how two-stage-faces64 and two-stage-cifar10
were made.

    python docs/trainings/prior_by_time.py faces64 600 faces64-ddpm FOLDER
    python docs/trainings/prior_by_time.py cifar10 600 cifar10-ddpm

It is the DDPM of docs/diffusion.md as a UNet2DModel of `diffusers`, with batches of 256 or 512 in
bfloat16, a learning rate that follows the clock, mirrored images and a moving average of the
weights. Of cifar10 all 50,000 training images are used, those of the project's `val` too; of faces
the training images of the 158 people. FOLDER holds further images, all of which are used: for
faces64 the other people of LFW, aligned. OUT becomes a folder with the average in float16, the
configuration of its process, and a sheet of samples, which docs/import_diffusers.py turns into a
weights file. A run is repeated by its seconds, not to the bit. `defend train two-stage` is the
recipe that is repeatable. Needs `diffusers`, and the data: DEFEND_DATA.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import defend
from defend.dataset import Dataset
from defend.defenses.ddpm_recipe import write_sheet
from defend.defenses.diffusion import TIMESTEPS, alpha_bars
from defend.defenses.diffusion_prior import PROCESS, SCHEDULER, Prior, build_unet
from defend.spec import write_value

RATE = 6e-4  # the highest learning rate
RISE = 0.03  # share of the time in which it rises
DECAY = 0.9995  # of the moving average, at most
GAMMA = 5  # of min-SNR: Hang et al., arXiv:2303.09556


@dataclass(frozen=True)
class Plan:
    """A network, and the images that it is trained on."""

    dataset: str
    splits: tuple[str, ...]
    size: int  # height and width in pixels
    blocks: str  # as the field of `two-stage`
    layers: int
    batch: int


PLANS = {
    "faces64": Plan("faces:size=64", ("train",), 64, "64-96-128a-160a", 1, 256),
    "cifar10": Plan("cifar10", ("train", "val"), 32, "64-128a-128", 2, 512),
}


def main() -> None:
    name, seconds, out = sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])
    torch.manual_seed(0)
    plan = PLANS[name]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = load_images(plan, sys.argv[4:]).to(device)
    unet = build_unet(3, plan.size, plan.blocks, plan.layers)
    prior = Prior(unet, 3, plan.size).to(device, memory_format=torch.channels_last)
    average = train(prior, images, plan.batch, seconds)
    save(average, out)
    print(f"wrote {out}")


def load_images(plan: Plan, folders: list[str]) -> Tensor:
    """Return the images of the plan and of further folders (b, 3, h, w), uint8."""
    data: Dataset = defend.load(plan.dataset, "dataset")
    parts = [read_split(data, split) for split in plan.splits]
    for folder in folders:
        spec = f"image-folder:size={plan.size},path={write_value(folder)}"
        parts += [read_split(defend.load(spec, "dataset"), s) for s in ("train", "val", "test")]
    return torch.cat(parts)


def read_split(data: Dataset, split: str) -> Tensor:
    """Return all images of a split, uint8."""
    return (data.rows(split, 0, data.count(split))[0] * 255).round().byte()


def train(prior: Prior, images: Tensor, batch: int, seconds: float) -> Prior:
    """Train until the time is up, and return the moving average of the prior."""
    optimiser = torch.optim.AdamW(prior.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    average = AveragedModel(prior, avg_fn=move_average)
    start = time.time()
    while (share := (time.time() - start) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = rate(share)
        optimiser.zero_grad(set_to_none=True)
        loss_of(prior, draw_batch(images, batch)).backward()
        nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
        optimiser.step()
        average.update_parameters(prior)
    return average.module


def rate(share: float) -> float:
    """Return the learning rate: a short rise, then a cosine to zero."""
    if share < RISE:
        return RATE * share / RISE
    return RATE * 0.5 * (1 + math.cos(math.pi * (share - RISE) / (1 - RISE)))


def move_average(mean: Tensor, weights: Tensor, updates: Tensor | int) -> Tensor:
    """Return the moving average, which forgets the first steps sooner."""
    decay = min(DECAY, (1 + int(updates)) / (10 + int(updates)))
    return torch.lerp(weights, mean, decay)


def draw_batch(images: Tensor, batch: int) -> Tensor:
    """Return random images (batch, 3, h, w) in [-1, 1], half of them mirrored."""
    rows = torch.randint(len(images), (batch,), device=images.device)
    x = images[rows].float().div_(127.5).sub_(1)
    is_mirrored = torch.rand(batch, 1, 1, 1, device=images.device) < 0.5
    return torch.where(is_mirrored, x.flip(-1), x).contiguous(memory_format=torch.channels_last)


def loss_of(prior: Prior, x: Tensor) -> Tensor:
    """Return the mean squared error of the noise, weighted by min(snr, GAMMA) / snr."""
    t = torch.randint(TIMESTEPS, (len(x),), device=x.device)
    abar, e = alpha_bars(t), torch.randn_like(x)
    with torch.autocast(x.device.type, torch.bfloat16):
        predicted = prior(abar.sqrt() * x + (1 - abar).sqrt() * e, t).float()
    snr = (abar / (1 - abar)).flatten()
    return ((predicted - e).square().mean((1, 2, 3)) * snr.clamp(max=GAMMA) / snr).mean()


def save(prior: Prior, out: Path) -> None:
    """Write the folder of the network, the configuration of its process, and samples."""
    prior.eval()
    out.mkdir(parents=True, exist_ok=True)
    write_sheet(prior, 1, out / "samples.png")
    prior.unet.half().save_pretrained(out, safe_serialization=True)
    (out / SCHEDULER).write_text(json.dumps(PROCESS, indent=1) + "\n")


if __name__ == "__main__":
    main()
