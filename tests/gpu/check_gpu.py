"""Everything that needs a GPU, for whoever has one for ten minutes; smaller on a CPU.

    make gpu                                    # on the first GPU, else on the CPU
    python tests/gpu/check_gpu.py --device cpu --out gpu.json --steps startup,fgsm

Each step is a process with its own time limit, and every result goes into one small JSON file as
soon as it is there. A step that fails or runs out of time is recorded, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


@dataclass(frozen=True)
class Step:
    """One measurement: a function of steps.py, or a test run."""

    name: str
    limit: int  # seconds
    about: str


STEPS = (
    Step("startup", 60, "seconds until torch, the library and the device are ready"),
    Step("matmul", 60, "the device's measured matrix rate"),
    Step("fgsm", 120, "an FGSM grid: plain PyTorch beside defend bench"),
    Step("pgd", 120, "PGD-40 on resnet20: plain PyTorch beside defend bench"),
    Step("autoattack", 180, "autoattack beside pyautoattack"),
    Step("agreement", 180, "the embedded suite: accuracies on the device beside the CPU's"),
    Step("tests", 240, "the tests marked gpu"),
)


def main() -> None:
    """Run the steps and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--steps", default=",".join(s.name for s in STEPS), help="by comma")
    parser.add_argument("--tiny", action="store_true", help="a few images: to see that it works")
    options = parser.parse_args()
    names = options.steps.split(",")
    unknown = set(names) - {step.name for step in STEPS}
    if unknown:
        parser.error(f"expected steps of {', '.join(s.name for s in STEPS)}, got {unknown}")
    device = _device(options.device)
    results: dict[str, Any] = {"about": _describe(device), "steps": {}}
    for step in STEPS:
        if step.name in names:
            result = _run(step, device, options.tiny)
            results["steps"][step.name] = result
            options.out.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{step.name}: {json.dumps(result)}", flush=True)


def _device(asked: str) -> str:
    if asked != "auto":
        return asked
    code = "import torch; print('cuda' if torch.cuda.is_available() else 'cpu')"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def _describe(device: str) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT
    ).stdout.strip()
    return {
        "device": device,
        "commit": commit,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", "tests/gpu/check_gpu.py", *sys.argv[1:]]),
    }


def _run(step: Step, device: str, tiny: bool) -> dict[str, Any]:
    """Run one step as a process. Return its result, or why there is none."""
    command = [sys.executable, str(HERE / "steps.py"), step.name, device]
    command += ["--tiny"] if tiny else []
    search_path = os.pathsep.join([str(ROOT), str(ROOT / "tests/perf")])
    env = os.environ | {"PYTHONPATH": search_path, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=step.limit, env=env, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        return {"error": f"ran past its limit of {step.limit} s"}
    if done.returncode:
        return {"error": done.stderr.strip()[-500:] or f"exit {done.returncode}"}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result | {"step_seconds": round(time.perf_counter() - start, 1)}


if __name__ == "__main__":
    main()
