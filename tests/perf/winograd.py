"""Layouts of networks on one core: seconds beside float32 contiguous, in one run. Asserts nothing.

The layouts take turns, and the best turn counts, in CPU time. "nnpack" is float32 contiguous with
oneDNN turned off, where torch takes NNPACK for 16 images or more.

    python tests/perf/winograd.py                      # comdefend at full width, 64 images
    python tests/perf/winograd.py --nnpack defense:comdefend:width=64 classifier:wrn16-4
    python tests/perf/winograd.py --turns 1 unet:FOLDER    # a folder of diffusers
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import defend
from defend.learned import set_layout
from defend.noise import Noise
from defend.numerics import keep_freed_memory

LAYOUTS = ("contiguous", "channels_last", "winograd")
GREY_LEVELS = 2  # that a pixel may differ

Function = Callable[[Tensor], Tensor]


def main() -> None:
    """Print two lines for each network: the ratios, and how far the outputs are apart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["defense:comdefend:width=256"])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--nnpack", action="store_true", help="measure NNPACK as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    x = torch.rand(options.images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for name in options.names:
        kind, _, spec = name.partition(":")
        functions = {layout: LOADERS[kind](spec, layout) for layout in LAYOUTS}
        if options.nnpack:
            functions["nnpack"] = without_onednn(functions["contiguous"])
        print(f"{name}, {options.images} images")
        for title, work in (("forward", forward), ("forward + backward", with_gradient)):
            seconds = measure(functions, work, x, options.turns)
            print(f"  {title}: {ratios(seconds)}", flush=True)
        print(f"  winograd beside contiguous: {difference(functions, x)}", flush=True)


def load_defense(spec: str, layout: str) -> Function:
    """Return a purifier as a function of images, with random weights if the spec names none."""
    spec = spec if "weights=" in spec else f"{spec}{',' if ':' in spec else ':'}weights=untrained"
    purifier: Any = defend.load(spec, "defense")
    purifier.run_as("float32", layout)
    return lambda x: purifier.purified(x, Noise.of(0, torch.arange(len(x))))


def load_classifier(spec: str, layout: str) -> Function:
    """Return the network of a CIFAR-10 classifier."""
    classifier: Any = defend.load(spec, "classifier", "cifar10")
    classifier.run_as("float32", layout)
    network: nn.Module = classifier.network
    return network


def load_unet(folder: str, layout: str) -> Function:
    """Return a UNet of diffusers at a middle step."""
    from diffusers import UNet2DModel  # type: ignore[import-not-found]

    net = UNet2DModel.from_pretrained(folder).requires_grad_(False).eval()
    set_layout(net, layout)
    return lambda x: net(2 * x - 1, 100).sample


LOADERS: dict[str, Callable[[str, str], Function]] = {
    "defense": load_defense,
    "classifier": load_classifier,
    "unet": load_unet,
}


def without_onednn(function: Function) -> Function:
    """Return the function computed by torch's other convolutions."""

    def run(x: Tensor) -> Tensor:
        with torch.backends.mkldnn.flags(enabled=False):
            y = function(x)
            if y.requires_grad:  # so that the backward pass runs here too
                torch.autograd.grad(y.sum(), x)
            return y.detach()

    return run


def forward(function: Function, x: Tensor) -> None:
    """Run a forward pass."""
    with torch.no_grad():
        function(x)


def with_gradient(function: Function, x: Tensor) -> None:
    """Run a forward pass and a backward pass."""
    leaf = x.clone().requires_grad_()
    y = function(leaf)
    if y.requires_grad:
        torch.autograd.grad(y.sum(), leaf)


def measure(
    functions: dict[str, Function],
    work: Callable[[Function, Tensor], None],
    x: Tensor,
    turns: int,
) -> dict[str, float]:
    """Return the best CPU time of each function, after a turn that warms up."""
    seconds = {name: float("inf") for name in functions}
    for turn in range(turns + 1):
        for name, function in functions.items():
            start = time.thread_time()
            work(function, x)
            if turn:
                seconds[name] = min(seconds[name], time.thread_time() - start)
    return seconds


def ratios(seconds: dict[str, float]) -> str:
    """Return how many times faster than contiguous each layout is."""
    plain = seconds["contiguous"]
    parts = [f"{name} {plain / own:.2f}x ({own:.2f} s)" for name, own in seconds.items()]
    return ", ".join(parts)


def difference(functions: dict[str, Function], x: Tensor) -> str:
    """Return the differences of two layouts in grey levels, as if the outputs were pixels."""
    with torch.no_grad():
        apart = 255 * (functions["winograd"](x) - functions["contiguous"](x)).abs()
    share = float((apart <= GREY_LEVELS).double().mean())
    return f"at most {float(apart.max()):.2g} / 255, {share:.2%} within {GREY_LEVELS} / 255"


if __name__ == "__main__":
    main()
