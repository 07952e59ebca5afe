"""Diffusion priors: batches beside single images, and bfloat16 beside float32. It asserts nothing.

The sides of a ratio are measured in turn, in one run, on the shipped priors.

    python tests/perf/diffusion.py [--device cuda] [--steps 4] [--small]
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from statistics import median

import torch
from torch import Tensor

import defend
from defend.loading import pick_device
from defend.noise import Noise
from defend.numerics import candidates, fastest
from defend.purifier import Purifier

TURNS = 3  # measurements of each side of a ratio
BATCH = 64
LEVELS = 2 / 255  # a difference that bfloat16 may make on one pixel in a hundred
WEIGHTS = ("two-stage-cifar10", "two-stage-faces64")


def main() -> None:
    """Print three lines for each prior."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=4, help="calls of the network for an image")
    parser.add_argument("--small", action="store_true", help="batches of 8 images")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = pick_device(options.device)
    batch = 8 if options.small else BATCH
    for weights in WEIGHTS:
        spec = f"two-stage:weights={weights},stages=sr,steps={options.steps}"
        purifier = defend.load(spec, device=device)
        x = purifier.example(batch).to(device)
        print(f"{weights}, {device.type}: {compare_batches(purifier, x)}", flush=True)
        print(f"{weights}, {device.type}: {compare_precisions(purifier, x)}", flush=True)
        print(f"{weights}, {device.type}: {choose_numerics(purifier, x)}", flush=True)


def compare_batches(purifier: Purifier, x: Tensor) -> str:
    """Return the images per second of one batch, over those of one image at a time."""
    singles = x[: max(1, len(x) // 8)]
    pairs = []
    for _ in range(TURNS + 1):
        batched = len(x) / seconds(partial(purify, purifier, x))
        alone = len(singles) / seconds(
            lambda: [purify(purifier, image) for image in singles.split(1)]
        )
        pairs.append((batched, alone))
    ratio = median(batched / alone for batched, alone in pairs[1:])
    rates = [median(rate) for rate in zip(*pairs[1:], strict=True)]
    return (
        f"{ratio:.2f} times the images per second in a batch of {len(x)}"
        f" ({rates[0]:.2f} and {rates[1]:.2f})"
    )


def compare_precisions(purifier: Purifier, x: Tensor) -> str:
    """Return the time of bfloat16 over that of float32, and how many pixels it leaves alike."""
    outputs, times = {}, {}
    for precision in ("float32", "bfloat16"):
        purifier.run_as(precision, "channels_last")
        outputs[precision] = purify(purifier, x)
        times[precision] = min(seconds(partial(purify, purifier, x)) for _ in range(TURNS))
    purifier.run_as("float32", "contiguous")
    near = (outputs["bfloat16"] - outputs["float32"]).abs() <= LEVELS
    ratio = times["bfloat16"] / times["float32"]
    return f"bfloat16 takes {ratio:.2f} of the time, {near.double().mean():.2%} within two levels"


def choose_numerics(purifier: Purifier, x: Tensor) -> str:
    """Return what the measurement of the bench chooses here."""

    def run(candidate: object) -> None:
        purifier.run_as(candidate.precision, candidate.layout)  # type: ignore[attr-defined]
        leaf = x[:8].clone().requires_grad_()
        purify(purifier, leaf).sum().backward()

    choice = fastest(candidates("auto", "auto"), run, torch.device(purifier.device))
    purifier.run_as("float32", "contiguous")
    return f"fastest: {choice.precision}, {choice.layout}"


def purify(purifier: Purifier, x: Tensor) -> Tensor:
    """Return x purified with the noise of seed 0."""
    return purifier.purified(x, Noise.of(0, torch.arange(len(x), device=x.device)))


def seconds(function: object) -> float:
    """Return CPU seconds of a call on a CPU, and seconds of the wall on a GPU."""
    on_gpu = torch.cuda.is_available()
    clock = time.perf_counter if on_gpu else time.process_time
    start = clock()
    with torch.no_grad():
        function()  # type: ignore[operator]
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - start


if __name__ == "__main__":
    main()
