"""Split-VQ-VAE: ratios of times and of memory, each pair measured turn by turn in one run. Prints; asserts nothing.

Peak memory is that of a fresh process: the highest resident set while it searches, above the one before. Linux counts it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from defend.defenses.split_vqvae import SplitVQVAE, join, split
from defend.defenses.vq import nearest

TURNS = 15
CODES, DIM, VECTORS = 1000, 64, 256 * 49  # K = 1000, 256 images of 7 x 7 codes
SEARCHES = {"nearest": nearest, "cdist": lambda z, codes: torch.cdist(z, codes).argmin(1)}


def seconds(f: Callable[[], object]) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def ratio(name: str, f: Callable[[], object], g: Callable[[], object]) -> None:
    """How often the time of g is that of f: the median over turns, f and g by turns, after one of each that warms up."""
    f(), g()
    pairs = [(seconds(f), seconds(g)) for _ in range(TURNS)]
    print(
        f"{name}: {median(b / a for a, b in pairs):.2f}  ({1e3 * median(a for a, _ in pairs):.1f} ms against {1e3 * median(b for _, b in pairs):.1f} ms)"
    )


def vectors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(VECTORS, DIM, generator=generator), torch.randn(
        CODES, DIM, generator=generator
    )


def peak(search: str) -> float:
    """MiB that the search adds at most to a process that holds the vectors and has searched a few of them."""
    out = subprocess.run(
        [sys.executable, __file__, search], capture_output=True, text=True, check=True
    )
    return float(out.stdout)


def grown(search: str) -> float:
    z, codes = vectors()
    SEARCHES[search](z[:100], codes)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is resident now
    before = highest()
    SEARCHES[search](z, codes)
    return (highest() - before) / 1024


def highest() -> int:
    """KiB."""
    return next(
        int(line.split()[1])
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )


@torch.no_grad()
def main() -> None:
    x = torch.rand(256, 1, 28, 28)
    quad = SplitVQVAE(weights="untrained", grid=2, codes=300)
    net = quad.net
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for n in (1, 8, 64, 256):
        quarters = [x[:n, :, r : r + 14, c : c + 14].contiguous() for r in (0, 14) for c in (0, 14)]
        ratio(
            f"four passes / quadrants as one batch, {n} images",
            partial(net, split(x[:n], 2)),
            lambda qs=quarters: [net(q) for q in qs],
        )
    for n in (64, 256):
        ratio(
            f"purified / bare network with split and join, {n} images",
            lambda n=n: join(net(split(x[:n], 2)), 2),
            lambda n=n: quad.purified(x[:n]),
        )
    z, codes = vectors()
    ratio(
        f"cdist.argmin / nearest, time, K={CODES}, {VECTORS} vectors",
        *(lambda f=f: f(z, codes) for f in SEARCHES.values()),
    )
    mine, theirs = peak("nearest"), peak("cdist")
    print(
        f"cdist.argmin / nearest, peak memory: {theirs / mine:.1f}  ({mine:.1f} MiB against {theirs:.1f} MiB)"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(grown(sys.argv[1]))
    else:
        main()
