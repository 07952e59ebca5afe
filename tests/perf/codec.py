"""Learned codecs: `purify` against CompressAI's `compress` and `decompress`, at 256x256.

Both sides do the same work, but for the entropy coder: it returns the rounded latents unchanged, so
that `purify` leaves it out. They are measured in turn, in one run, with the weights of `--weights`,
by default random ones whose latents are spread over several steps. It prints figures and asserts
nothing, and needs the extra `codec`.

    python tests/perf/codec.py --model hyperprior --width 128 --latents 192
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

from defend.defenses.compressai_codecs import CLASSES
from defend.defenses.robust_codec import RobustCodec

SIDE = 256  # pixels
TURNS = 5  # measurements of each side
GREY_LEVEL = 1 / 255


def make_purifier(options: argparse.Namespace) -> RobustCodec:
    """Return the codec of the options."""
    if options.weights != "untrained":
        return RobustCodec(model=options.model, weights=options.weights)
    sizes = {"width": options.width, "latents": options.latents}
    if options.model == "cheng2020":
        sizes["latents"] = options.width
    purifier = RobustCodec(model=options.model, weights="untrained", **sizes)
    spread_latents(purifier)
    return purifier


@torch.no_grad()
def spread_latents(purifier: RobustCodec) -> None:
    """Enlarge the analysis of an untrained codec, whose latents would all be rounded to 0."""
    net = purifier.net.net
    for name, parameter in net.named_parameters():
        if name.startswith("g_a") and parameter.ndim > 1:
            parameter.mul_(2)


def make_image() -> Tensor:
    """Return a smooth random image (1, 3, SIDE, SIDE)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, SIDE // 8, SIDE // 8, generator=generator)
    return torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic").clamp(0, 1)


def code(net: torch.nn.Module, x: Tensor) -> Tensor:
    """Return what CompressAI's entropy coder gives back."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return net.decompress(**net.compress(x))["x_hat"]  # type: ignore[operator, no-any-return]


def measure_seconds(function: Callable[[], Tensor]) -> float:
    """Return the CPU seconds of one call, which other programs on the machine do not lengthen."""
    start = time.process_time()
    function()
    return time.process_time() - start


def print_comparison(purifier: RobustCodec, x: Tensor) -> None:
    """Print the ratio of times and how far the reconstructions agree."""
    net = purifier.net.net
    net.update()  # the tables of the entropy coder
    ours, theirs = partial(purifier.purified, x), partial(code, net, x)
    difference = (ours() - theirs()).abs()
    share = float((difference <= GREY_LEVEL).double().mean())
    pairs = [(measure_seconds(ours), measure_seconds(theirs)) for _ in range(TURNS)]
    ratio = median(other / own for own, other in pairs)
    own_ms, other_ms = (1e3 * median(seconds) for seconds in zip(*pairs, strict=True))
    bits = float(purifier.rate(x))
    print(
        f"{purifier.model}, N={purifier.width}, M={purifier.latents}, {bits:.2f} bits per pixel:"
        f" compress + decompress / purify {ratio:.2f}  ({other_ms:.0f} ms against {own_ms:.0f} ms);"
        f" within a grey level on {100 * share:.3f} % of the pixels"
    )


@torch.no_grad()
def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", choices=CLASSES, default="hyperprior")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--latents", type=int, default=192)
    parser.add_argument("--weights", default="untrained", help="mse-3, or a file")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {SIDE}x{SIDE}")
    print_comparison(make_purifier(options), make_image())


if __name__ == "__main__":
    main()
