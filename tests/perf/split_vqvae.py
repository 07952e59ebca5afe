"""Split-VQ-VAE: ratios of times and of memory. It prints figures and asserts nothing.

The two sides of a ratio are measured in turn, in one run. Peak memory is that of a fresh process:
the highest resident set during a search, minus the one before it. It is read from /proc, so Linux
is needed.

    python tests/perf/split_vqvae.py
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

from defend.defenses.pieces import join_pieces, split_image
from defend.defenses.split_vqvae import SplitVQVAE
from defend.defenses.vq import nearest_codes

TURNS = 15  # measurements of each side of a ratio
CODES = 1000  # K
DIM = 64
VECTORS = 256 * 49  # 256 images of 7 x 7 codes

Search = Callable[[Tensor, Tensor], Tensor]
Function = Callable[[], object]


def search_with_cdist(z: Tensor, codes: Tensor) -> Tensor:
    """Return the indices of the nearest codes by a matrix of all distances."""
    return torch.cdist(z, codes).argmin(1)


SEARCHES: dict[str, Search] = {"nearest_codes": nearest_codes, "cdist": search_with_cdist}


def measure_seconds(function: Function) -> float:
    """Return the wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def print_time_ratio(name: str, ours: Function, reference: Function) -> None:
    """Print the median over turns of the reference's time divided by ours, after a warm-up."""
    ours()
    reference()
    pairs = [(measure_seconds(ours), measure_seconds(reference)) for _ in range(TURNS)]
    ratio = median(other / own for own, other in pairs)
    own_ms = 1e3 * median(own for own, _ in pairs)
    reference_ms = 1e3 * median(other for _, other in pairs)
    print(f"{name}: {ratio:.2f}  ({own_ms:.1f} ms against {reference_ms:.1f} ms)")


def random_vectors() -> tuple[Tensor, Tensor]:
    """Return z (VECTORS, DIM) and codes (CODES, DIM)."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(VECTORS, DIM, generator=generator)
    return z, torch.randn(CODES, DIM, generator=generator)


def measure_peak_memory(search: str) -> float:
    """Return the MiB that a search adds at most to a fresh process."""
    command = [sys.executable, __file__, search]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(process.stdout)


def added_memory(search: str) -> float:
    """Return the MiB that a search adds at most to this process.

    The process holds the vectors and has searched a few of them before.
    """
    z, codes = random_vectors()
    SEARCHES[search](z[:100], codes)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to the current resident set
    before = peak_resident_kib()
    SEARCHES[search](z, codes)
    return (peak_resident_kib() - before) / 1024


def peak_resident_kib() -> int:
    """Return VmHWM, the highest resident set, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    raise RuntimeError("expected VmHWM in /proc/self/status, got none; run this on Linux")


def compare_quadrants(purifier: SplitVQVAE, x: Tensor) -> None:
    """Compare one batch of quadrants with four passes of the network."""
    quadrants = []
    for row in (0, 14):
        for column in (0, 14):
            quadrants.append(x[:, :, row : row + 14, column : column + 14].contiguous())
    print_time_ratio(
        f"four passes / quadrants as one batch, {len(x)} images",
        partial(purifier.net, split_image(x, 2)),
        lambda: [purifier.net(quadrant) for quadrant in quadrants],
    )


def compare_overhead(purifier: SplitVQVAE, x: Tensor) -> None:
    """Compare the purifier with its bare network."""
    print_time_ratio(
        f"purified / bare network with split and join, {len(x)} images",
        lambda: join_pieces(purifier.net(split_image(x, 2)), 2),
        lambda: purifier.purified(x),
    )


def compare_searches() -> None:
    """Compare the search for the nearest codes with cdist, in time and in peak memory."""
    z, codes = random_vectors()
    print_time_ratio(
        f"cdist.argmin / nearest_codes, time, K={CODES}, {VECTORS} vectors",
        partial(nearest_codes, z, codes),
        partial(search_with_cdist, z, codes),
    )
    ours, reference = measure_peak_memory("nearest_codes"), measure_peak_memory("cdist")
    print(
        f"cdist.argmin / nearest_codes, peak memory: {reference / ours:.1f}"
        f"  ({ours:.1f} MiB against {reference:.1f} MiB)"
    )


@torch.no_grad()
def main() -> None:
    """Print all ratios."""
    x = torch.rand(256, 1, 28, 28)
    purifier = SplitVQVAE(weights="untrained", grid=2, codes=300)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for n in (1, 8, 64, 256):
        compare_quadrants(purifier, x[:n])
    for n in (64, 256):
        compare_overhead(purifier, x[:n])
    compare_searches()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(added_memory(sys.argv[1]))
    else:
        main()
