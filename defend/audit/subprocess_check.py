"""A purifier loaded in a process of its own, so that nothing that ran before can show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from defend.audit.context import frame
from defend.benchmarks.engines.worker import apply_holm
from defend.loading import load
from defend.noise import Noise


def purify_fresh(
    spec: str, dataset: str, device: str, seed: int, x: Tensor, rows: Tensor, fork: str
) -> Tensor:
    """x purified by `spec`, with the noise of these rows. Raises RuntimeError with what the process said last."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "given.safetensors"), Path(folder, "made.safetensors")
        save_file({"x": x.cpu().contiguous(), "rows": rows.cpu().contiguous()}, given)
        env = os.environ | {"PYTHONPATH": os.pathsep.join(p or str(Path.cwd()) for p in sys.path)}
        order = {
            "spec": spec,
            "dataset": dataset,
            "device": device,
            "seed": seed,
            "fork": fork,
            "given": str(given),
            "made": str(made),
        }
        command = [
            sys.executable,
            "-P",
            "-c",
            "from defend.audit.subprocess_check import main; main()",
        ]
        done = subprocess.run(
            command, input=json.dumps(order), env=env, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(
                f"the fresh process ended with {done.returncode}: {done.stderr.strip()[-200:]}"
            )
        return load_file(made)["x"].to(x.device)


def main() -> None:
    order = json.load(sys.stdin)
    given = load_file(order["given"], order["device"])
    x, rows = given["x"], given["rows"]
    noise = Noise.of(order["seed"], rows).fork(order["fork"]).draw(0)
    apply_holm(frame(torch.device(order["device"])))  # as the audit that asks
    with torch.no_grad():
        out = load(order["spec"], "defense", order["dataset"], order["device"]).purified(x, noise)
    save_file({"x": out.contiguous()}, order["made"])
