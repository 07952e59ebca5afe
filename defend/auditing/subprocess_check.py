"""A purifier loaded in a process of its own, which nothing that ran before can influence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from defend.auditing.context import numeric_settings
from defend.loading import load
from defend.noise import Noise
from defend.numerics import set_determinism

COMMAND = "from defend.auditing.subprocess_check import main; main()"
MAX_ERROR = 200  # characters of the process's last output in an error


@dataclass(frozen=True)
class SubprocessJob:
    """What the process is told, as JSON on its standard input."""

    spec: str
    dataset: str
    device: str
    seed: int
    stream: str  # the name of the noise
    input_file: str
    output_file: str


def purify_in_subprocess(
    spec: str, dataset: str, device: str, seed: int, x: Tensor, rows: Tensor, stream: str
) -> Tensor:
    """Return x purified by `spec` in a new process, with the noise of these rows.

    Raises RuntimeError with the last output of the process if it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        input_file, output_file = Path(folder, "in.safetensors"), Path(folder, "out.safetensors")
        save_file({"x": x.cpu().contiguous(), "rows": rows.cpu().contiguous()}, input_file)
        job = SubprocessJob(spec, dataset, device, seed, stream, str(input_file), str(output_file))
        _run(job)
        return load_file(output_file)["x"].to(x.device)


def _run(job: SubprocessJob) -> None:
    """Run the process with the same import path as this one."""
    import_path = os.pathsep.join(p or str(Path.cwd()) for p in sys.path)
    process = subprocess.run(
        [sys.executable, "-P", "-c", COMMAND],
        input=json.dumps(asdict(job)),
        env={**os.environ, "PYTHONPATH": import_path},
        capture_output=True,
        text=True,
    )
    if process.returncode:
        error = process.stderr.strip()[-MAX_ERROR:]
        raise RuntimeError(f"the fresh process ended with {process.returncode}: {error}")


def main() -> None:
    """Do the job on standard input."""
    job = SubprocessJob(**json.load(sys.stdin))
    tensors = load_file(job.input_file, job.device)
    x, rows = tensors["x"], tensors["rows"]
    noise = Noise.of(job.seed, rows).fork(job.stream).draw(0)
    set_determinism(numeric_settings(torch.device(job.device)))  # as in the audit
    purifier = load(job.spec, "defense", job.dataset, job.device)
    with torch.no_grad():
        purified = purifier.purified(x, noise)
    save_file({"x": purified.contiguous()}, job.output_file)
