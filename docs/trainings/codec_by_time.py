"""Train a codec on CIFAR-10 for some seconds on a GPU: how robust-codec-cifar10-adv was made.

    python docs/trainings/codec_by_time.py 600 codec.safetensors
    python docs/import_codec.py codec.safetensors robust-codec-cifar10-adv.safetensors

The codec is trained to be read by the frozen `resnet20` under attack, in three phases by the share
of the time: rate and distortion alone; cross-entropy under N-FGSM (de Jorge et al.,
arXiv:2202.01181) through codec and classifier, with an eps that grows to 8/255; and the same under
PGD of three steps. Reconstruction and rate have small weights in the last two. All training images
but the last 1,000 of the file order are used, some of the project's `val` too. A run is repeated by
its seconds, not to the bit. `defend train robust-codec -o against=resnet20 -o minutes=10` is the
recipe that has grown out of it. Needs CIFAR-10: DEFEND_DATA.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import defend
from defend.defenses.small_codec import SmallCodec

BATCH = 512
RATE = 1e-3  # the highest learning rate
RISE = 0.03  # share of the time in which it rises
DECAY = 0.999  # of the moving average
EPS = 8 / 255
PLAIN, GROWTH, ONE_STEP = 0.1, 0.15, 0.67  # shares of the time: see the docstring
STEPS = 3  # of PGD
RESTORATION, BITS = 2.0, 0.005  # weights of the squared error and of the bits per pixel
PIXELS = 32 * 32


def main() -> None:
    seconds, out = float(sys.argv[1]), Path(sys.argv[2])
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = defend.load("cifar10", "dataset")
    x, y = dataset.rows("train", 0, dataset.count("train"))
    data = (x * 255).round().byte().to(device), y.to(device)
    classifier = defend.load("resnet20", "classifier", dataset, device).network
    codec = SmallCodec(3, 96, 192, 48, halvings=2, blocks=2, has_norms=True)
    codec = codec.to(device, memory_format=torch.channels_last)
    average = train(codec, classifier, data, seconds)
    tensors = average.module.state_dict()
    save_file({k: t.half().cpu().contiguous() for k, t in tensors.items()}, out)
    print(f"wrote {out}")


def train(
    codec: SmallCodec, classifier: nn.Module, data: tuple[Tensor, Tensor], seconds: float
) -> AveragedModel:
    """Train until the time is up, and return the moving average of the weights."""
    optimiser = torch.optim.AdamW(codec.parameters(), betas=(0.9, 0.99), weight_decay=1e-4)
    average = AveragedModel(codec, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    start = time.time()
    while (share := (time.time() - start) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = rate(share)
        x, y = draw_batch(*data)
        loss = plain_loss(codec, x)
        if share >= PLAIN:
            loss = robust_loss(codec, classifier, x, y, share)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        optimiser.step()
        average.update_parameters(codec)
    return average


def rate(share: float) -> float:
    """Return the learning rate: a short rise, then a cosine to zero."""
    if share < RISE:
        return RATE * share / RISE
    return RATE * 0.5 * (1 + math.cos(math.pi * (share - RISE) / (1 - RISE)))


def draw_batch(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return images that are mirrored and shifted by up to four pixels, with labels."""
    rows = torch.randint(len(images), (BATCH,), device=images.device)
    x = images[rows].float().div_(255)
    x = F.pad(
        torch.where(torch.rand(BATCH, 1, 1, 1, device=x.device) < 0.5, x.flip(3), x), (4,) * 4
    )
    top, left = torch.randint(9, (2, BATCH, 1, 1, 1), device=x.device)
    place = torch.arange(32, device=x.device)
    row, column = top + place.view(1, 1, 32, 1), left + place.view(1, 1, 1, 32)
    image = torch.arange(BATCH, device=x.device).view(-1, 1, 1, 1)
    channel = torch.arange(3, device=x.device).view(1, 3, 1, 1)
    return x[image, channel, row, column], labels[rows]


def plain_loss(codec: SmallCodec, x: Tensor) -> Tensor:
    """Return squared error and rate alone."""
    with torch.autocast(x.device.type, torch.bfloat16):
        restored, bits = codec(x)
    return 255**2 / 100 * F.mse_loss(restored.float(), x) + 0.5 * bits.mean() / PIXELS


def robust_loss(
    codec: SmallCodec, classifier: nn.Module, x: Tensor, y: Tensor, share: float
) -> Tensor:
    """Return the loss on images that are attacked through codec and classifier."""
    eps = EPS * min(1.0, (share - PLAIN) / GROWTH)
    x_adv = attack(codec, classifier, x, y, eps, 1 if share < ONE_STEP else STEPS)
    with torch.autocast(x.device.type, torch.bfloat16):
        restored, bits = codec(x_adv)
        logits = classifier(restored)
    loss = F.cross_entropy(logits.float(), y, label_smoothing=0.1)
    return loss + RESTORATION * F.mse_loss(restored.float(), x) + BITS * bits.mean() / PIXELS


def attack(
    codec: SmallCodec, classifier: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int
) -> Tensor:
    """Return x attacked by N-FGSM (one step) or PGD (several)."""
    noise = 2 * torch.rand_like(x) - 1
    if steps == 1:
        x_adv = x + 2 * eps * noise
        return x_adv + eps * gradient(codec, classifier, x_adv, y).sign()
    x_adv = (x + eps * noise).clamp(0, 1)
    for _ in range(steps):
        x_adv = x_adv + 0.5 * eps * gradient(codec, classifier, x_adv, y).sign()
        x_adv = x_adv.clamp(x - eps, x + eps).clamp(0, 1)
    return x_adv


def gradient(codec: SmallCodec, classifier: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16):
        logits = classifier(codec(x)[0])
    return torch.autograd.grad(F.cross_entropy(logits.float(), y), x)[0]


if __name__ == "__main__":
    main()
