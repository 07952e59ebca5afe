"""What `defend bench` costs beside plain programs, in one run on the same images. Asserts nothing.

The plain program goes first: the bench makes its process keep freed memory, which would help it.

python tests/perf/bench.py            # a quarter of an hour on one core
python tests/perf/bench.py --small    # a minute, to see that it works
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import side_by_side as sbs
import torch

import defend

GRID = tuple(round(0.02 * i, 2) for i in range(16))  # 16 eps, 0 to 0.3
FIVE = ("none", "bitdepth:bits=3", "bitdepth:bits=2", "median:size=3", "jpeg:quality=60")


def main() -> None:
    """Print a line for each comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="few images")
    parser.add_argument("--only", default="", help="the name of one comparison")
    options = parser.parse_args()
    torch.set_num_threads(1)
    comparisons = {
        "fgsm-plain": fgsm_beside_pytorch,
        "pgd-plain": pgd_beside_pytorch,
        "fgsm-art": fgsm_beside_art,
        "pgd-art": pgd_beside_art,
        "unit": host_time_of_a_unit,
        "start": start_to_first_unit,
    }
    for name, compare in comparisons.items():
        if options.only in ("", name):
            print(f"{name}: {compare(options.small)}", flush=True)


def fgsm_beside_pytorch(small: bool) -> str:
    """FGSM at 16 eps, no defense: wanted at most 1.3, 20 forwards and 2 backwards."""
    n = 1000 if small else 10_000
    work = sbs.Workload(dataset="mnist", classifier="convnet", n=n, epsilons=GRID)
    plain = sbs.plain_fgsm(work)
    ours = sbs.run_bench(work, "fgsm", ["oblivious"])
    counts = f"{ours.forwards:.2f} forwards and {ours.backwards:.2f} backwards an image"
    return f"{_ratio(ours, plain, 'plain PyTorch')}; {counts}"


def pgd_beside_pytorch(small: bool) -> str:
    """PGD-40 at three eps behind a median, oblivious and adaptive: wanted at most 1.1."""
    work = sbs.Workload(
        dataset="mnist",
        classifier="convnet",
        n=128 if small else 1024,
        epsilons=(0.1, 0.2, 0.3),
        defenses=("median:size=3",),
    )
    oblivious = sbs.plain_pgd(work, 40, adaptive=False)
    adaptive = sbs.plain_pgd(work, 40, adaptive=True)
    ours = sbs.run_bench(work, "pgd:steps=40", ["oblivious", "adaptive"], gradients=["declared"])
    both = sbs.Run(seconds=oblivious.seconds + adaptive.seconds, accuracies=adaptive.accuracies)
    return _ratio(ours, both, "plain PyTorch")


def fgsm_beside_art(small: bool) -> str:
    """FGSM at 16 eps and five defenses: wanted at most .7."""
    from art.attacks.evasion import FastGradientMethod

    n = 256 if small else 2048
    work = sbs.Workload(dataset="mnist", classifier="convnet", n=n, epsilons=GRID, defenses=FIVE)

    def attack(estimator: Any, eps: float) -> Any:
        return FastGradientMethod(estimator, eps=max(eps, 1e-12), batch_size=sbs.BATCH)

    plain = sbs.plain_art(work, attack, adaptive=False)
    return _ratio(sbs.run_bench(work, "fgsm", ["oblivious"]), plain, "plain ART")


def pgd_beside_art(small: bool) -> str:
    """PGD-40, three eps, five defenses, oblivious and adaptive: wanted at most .5."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch

    work = sbs.Workload(
        dataset="mnist",
        classifier="convnet",
        n=128 if small else 512,
        epsilons=(0.1, 0.2, 0.3),
        defenses=FIVE,
    )

    def attack(estimator: Any, eps: float) -> Any:
        return ProjectedGradientDescentPyTorch(
            estimator,
            eps=eps,
            eps_step=2.5 * eps / 40,
            max_iter=40,
            num_random_init=1,
            batch_size=sbs.BATCH,
            verbose=False,
        )

    oblivious = sbs.plain_art(work, attack, adaptive=False)
    adaptive = sbs.plain_art(work, attack, adaptive=True)
    ours = sbs.run_bench(work, "pgd:steps=40", ["oblivious", "adaptive"], gradients=["declared"])
    both = sbs.Run(seconds=oblivious.seconds + adaptive.seconds, accuracies=adaptive.accuracies)
    return _ratio(ours, both, "plain ART")


def host_time_of_a_unit(small: bool) -> str:
    """A null attack, an identity purifier and LeNet on tiny ranges: wanted at most 5 ms."""
    units, shard = (40, 8) if small else (400, 8)

    def seconds(count: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            defend.bench(
                dataset="mnist",
                classifiers=["lenet"],
                defenses=["none"],
                attacks=["control"],
                eps=0.1,
                n=count * shard,
                shard=shard,
                workers=1,
                device="cpu",
                out=Path(folder),
            )
            return time.perf_counter() - start

    seconds(2)
    few = min(seconds(10) for _ in range(3))
    many = min(seconds(10 + units) for _ in range(3))
    network = _network_seconds(shard)
    host = (many - few) / units - network
    return f"{1000 * host:.2f} ms for a unit beside {1000 * network:.2f} ms of network"


def _network_seconds(shard: int) -> float:
    """Return the seconds of the three forward passes that a unit of a null attack needs."""
    net = defend.load("lenet", "classifier", "mnist").network
    x = torch.rand(shard, 1, 28, 28)
    with torch.no_grad():
        net(x)
        start = time.perf_counter()
        for _ in range(100):
            net(x)
        return 3 * (time.perf_counter() - start) / 100


def start_to_first_unit(_small: bool) -> str:
    """From the start of the process to the first unit's file: wanted at most 4 s."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "defend", "bench", "--dataset", "mnist"]
        command += ["--defense", "none", "--attack", "fgsm", "--eps", "0.1", "--n", "64"]
        command += ["--classifier", "convnet", "--workers", "1", "--device", "cpu"]
        start = time.time()
        done = subprocess.run(
            [*command, "--out", folder], capture_output=True, text=True, env=os.environ
        )
        assert done.returncode == 0, done.stderr
        first = min(f.stat().st_mtime for f in Path(folder).glob("units/*/*.safetensors"))
    return f"{first - start:.2f} s"


def _ratio(ours: sbs.Run, other: sbs.Run, name: str) -> str:
    points = sbs.largest_difference(ours, other)
    ratio = ours.seconds / other.seconds
    return (
        f"{ratio:.2f} of {name}'s CPU time ({ours.seconds:.1f} s and {other.seconds:.1f} s),"
        f" accuracies at most {points:.2f} points apart"
    )


if __name__ == "__main__":
    main()
