"""Train ComDefend on CIFAR-10 for some seconds on a GPU: how comdefend-cifar10-late was made.

    python docs/trainings/comdefend_by_time.py 600 comdefend-cifar10-late.safetensors

It is the paper's networks and loss with batches of 256 in bfloat16, a learning rate that follows
the clock, mirrored images and a moving average of the weights. All 50,000 training images are used,
those of the project's `val` too. A run is repeated by its seconds, not to the bit. `defend train
comdefend` is the recipe that is repeatable. Needs CIFAR-10: DEFEND_DATA.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import defend
from defend.defenses.comdefend import WIDEST, Autoencoder
from defend.trained_on import TrainedOn
from defend.weights.header import Header, save_weights

BATCH = 256
RATE = 1e-3  # the highest learning rate
RISE = 0.02  # share of the time in which it rises
CODE_NOISE, ENERGY = 20, 1e-4  # the paper's phi and lambda
DECAY = 0.999  # of the moving average


def main() -> None:
    seconds, out = float(sys.argv[1]), Path(sys.argv[2])
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = load_images().to(device)
    net = Autoencoder(3, 12, WIDEST).to(device, memory_format=torch.channels_last)
    initialise(net)
    average = train(net, images, seconds)
    save_weights(out, average.module.half().state_dict(), make_header(seconds))
    print(f"wrote {out}")


def load_images() -> Tensor:
    """Return all 50,000 training images (b, 3, 32, 32), uint8."""
    dataset = defend.load("cifar10", "dataset")
    parts = [dataset.rows(split, 0, dataset.count(split))[0] for split in ("train", "val")]
    return (torch.cat(parts) * 255).round().byte()


def initialise(net: nn.Module) -> None:
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


def train(net: Autoencoder, images: Tensor, seconds: float) -> AveragedModel:
    """Train the networks until the time is up, and return the moving average of their weights."""
    optimiser = torch.optim.Adam(net.parameters(), lr=RATE)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    start = time.time()
    while (share := (time.time() - start) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = rate(share)
        optimiser.zero_grad(set_to_none=True)
        loss_of(net, draw_batch(images)).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        average.update_parameters(net)
    return average


def rate(share: float) -> float:
    """Return the learning rate: a short rise, then a cosine to zero."""
    if share < RISE:
        return RATE * share / RISE
    return RATE * 0.5 * (1 + math.cos(math.pi * (share - RISE) / (1 - RISE)))


def draw_batch(images: Tensor) -> Tensor:
    rows = torch.randint(len(images), (BATCH,), device=images.device)
    x = images[rows].float().div_(255)
    is_mirrored = torch.rand(BATCH, 1, 1, 1, device=images.device) < 0.5
    return torch.where(is_mirrored, x.flip(-1), x).contiguous(memory_format=torch.channels_last)


def loss_of(net: Autoencoder, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16):
        c = net.encode(x)
        code = torch.sigmoid(c.float() - CODE_NOISE * torch.randn_like(c.float()))
        y = net.decode(code)
    return F.mse_loss(y.float(), x) + ENERGY * code.square().mean()


def make_header(seconds: float) -> Header:
    return Header(
        kind="defense",
        component="comdefend",
        architecture="comdefend",
        dataset="cifar10",
        fields={"code_maps": 12, "channels": 3, "width": WIDEST},
        trained_on=TrainedOn(kind="clean"),
        command=f"python docs/trainings/comdefend_by_time.py {seconds:g} OUT",
        seed=0,
        commit="",
    )


if __name__ == "__main__":
    main()
