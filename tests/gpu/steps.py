"""The steps of check_gpu.py; each prints one line of JSON.

python steps.py NAME DEVICE [--tiny]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BEGAN = time.perf_counter()

import side_by_side as sbs  # noqa: E402
import torch  # noqa: E402

import defend  # noqa: E402
from defend.noise import Noise  # noqa: E402
from defend.target import Target  # noqa: E402

GRID = tuple(round(0.02 * i, 2) for i in range(16))


@dataclass(frozen=True)
class Setting:
    """Where a step runs; tiny: on a few images, to see that it works."""

    device: str
    tiny: bool

    def images(self, on_gpu: int, on_cpu: int) -> int:
        """Return how many images fit the device and the time limit."""
        if self.tiny:
            return 16
        return on_gpu if self.device == "cuda" else on_cpu


def startup(setting: Setting) -> dict[str, Any]:
    """Measure the import and the first kernel."""
    imported = time.perf_counter() - BEGAN
    torch.ones(1, device=setting.device).add_(1).item()
    return {
        "import_seconds": round(imported, 2),
        "first_kernel_seconds": round(time.perf_counter() - BEGAN - imported, 2),
        "name": torch.cuda.get_device_name() if setting.device == "cuda" else "cpu",
    }


def matmul(setting: Setting) -> dict[str, Any]:
    """Measure the rate of float32 matrix products without TF32."""
    size, repeats = (4096, 10) if setting.device == "cuda" else (1024, 5)
    a = torch.randn(size, size, device=setting.device)
    a @ a
    start = sbs.clock(setting.device)
    for _ in range(repeats):
        a @ a
    seconds = sbs.clock(setting.device) - start
    return {"teraflops": round(2 * size**3 * repeats / seconds / 1e12, 3)}


def fgsm(setting: Setting) -> dict[str, Any]:
    """Compare the FGSM grid: at most twice the plain script's time is wanted on a GPU."""
    n = setting.images(10_000, 1000)
    work = sbs.Workload(
        dataset="mnist", classifier="convnet", n=n, epsilons=GRID, device=setting.device
    )
    return _compare(
        work, lambda: sbs.run_bench(work, "fgsm", ["oblivious"]), lambda: sbs.plain_fgsm(work)
    )


def pgd(setting: Setting) -> dict[str, Any]:
    """Compare PGD-40: at most 1.1 times the plain script's time is wanted on a GPU."""
    n = setting.images(2000, 64)
    work = sbs.Workload(
        dataset="cifar10", classifier="resnet20", n=n, epsilons=(8 / 255,), device=setting.device
    )
    return _compare(
        work,
        lambda: sbs.run_bench(work, "pgd:steps=40", ["oblivious"]),
        lambda: sbs.plain_pgd(work, 40, adaptive=False),
    )


def _compare(
    work: sbs.Workload, ours: Callable[[], sbs.Run], plain: Callable[[], sbs.Run]
) -> dict[str, Any]:
    """Run both, on a GPU twice: the first time compiles and allocates."""
    for _ in range(2 if work.device == "cuda" else 1):
        script, bench = plain(), ours()
    return {
        "n": work.n,
        "bench_seconds": round(bench.seconds, 3),
        "plain_seconds": round(script.seconds, 3),
        "ratio": round(bench.seconds / script.seconds, 3),
        "largest_difference_in_points": round(sbs.largest_difference(bench, script), 2),
        "forwards": round(bench.forwards, 2),
        "backwards": round(bench.backwards, 2),
        "images_per_second": round(work.n * len(work.epsilons) / bench.seconds, 1),
    }


def autoattack(setting: Setting) -> dict[str, Any]:
    """Compare autoattack with `pip install --no-deps pyautoattack==0.2.0`: at most half."""
    try:
        from pyautoattack import AutoAttack
    except ImportError:
        return {"skipped": "needs pip install --no-deps pyautoattack==0.2.0"}
    device, eps, n = setting.device, 0.3, setting.images(1000, 16)
    x, y = (t.to(device) for t in defend.load("mnist", "dataset").rows("test", 0, n))
    net = defend.load("convnet:weights=convnet-madry", "classifier", "mnist", device=device).network
    noise = Noise.of(0, torch.arange(n, device=device))
    target = Target(net, defend.load("none", device=device), noise, scored=True)
    start = sbs.clock(device)
    x_adv = defend.load("autoattack", "attack").run(target, x, y, eps, noise.fork("start"))
    ours = sbs.clock(device) - start
    reference = AutoAttack(net, norm="Linf", eps=eps, device=device)
    start = sbs.clock(device)
    x_ref = reference.run_standard_evaluation(x, y, batch_size=n)[0].detach()
    theirs = sbs.clock(device) - start
    with torch.no_grad():
        left = [float((net(images).argmax(1) == y).double().mean()) for images in (x_adv, x_ref)]
    return {
        "n": n,
        "autoattack_seconds": round(ours, 2),
        "pyautoattack_seconds": round(theirs, 2),
        "ratio": round(ours / theirs, 3),
        "accuracies": left,
    }


def agreement(setting: Setting) -> dict[str, Any]:
    """Compare the embedded suite's accuracies on the device and on the CPU."""
    keys = {"n": setting.images(64, 16), "draws": 2}
    runs = []
    for where in ("cpu", setting.device):
        with tempfile.TemporaryDirectory() as folder:
            suite = {**_embedded(), **keys}
            runs.append(defend.bench(suite, device=where, out=Path(folder), workers=1))
    gaps = [
        abs(float(a.robust_accuracy or 0) - float(b.robust_accuracy or 0))
        for a, b in zip(*runs, strict=True)
    ]
    return {"cells": len(gaps), "largest_difference_in_points": round(100 * max(gaps), 2)}


def _embedded() -> dict[str, Any]:
    from defend.benchmarks.suite import load_suite

    return load_suite()


def tests(setting: Setting) -> dict[str, Any]:
    """Run the tests marked gpu; on a CPU they are skipped."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    command += ["--collect-only"] if setting.tiny else []
    done = subprocess.run(command, capture_output=True, text=True)
    summary = done.stdout.strip().splitlines()[-1:]
    failures = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return {"exit": done.returncode, "summary": summary, "failures": failures[:20]}


STEPS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "startup": startup,
    "matmul": matmul,
    "fgsm": fgsm,
    "pgd": pgd,
    "autoattack": autoattack,
    "agreement": agreement,
    "tests": tests,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    setting = Setting(device=sys.argv[2], tiny="--tiny" in sys.argv)
    print(json.dumps(STEPS[sys.argv[1]](setting)))
