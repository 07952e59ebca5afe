"""A worker process. Jobs come as lines of JSON on stdin, reports go as lines to stdout.

A process of our own making, not a fork and not a re-import of the caller's script; when the parent dies, stdin ends and so does it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

import torch

from defend.benchmarks.cell import Cell
from defend.benchmarks.components import Components
from defend.benchmarks.execute import AttackJob, UnitTask, execute_job
from defend.benchmarks.suite import Eps
from defend.benchmarks.units import NumericSettings


def set_determinism(frame: NumericSettings) -> None:
    """What decides a unit's last bits: threads, TF32 off, deterministic algorithms."""
    torch.set_num_threads(frame.threads)
    if frame.device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.use_deterministic_algorithms(True, warn_only=True)


def to_json(job: AttackJob) -> dict[str, Any]:
    return {
        "start": job.start,
        "stop": job.stop,
        "tasks": [
            {"key": t.key, "made_of": t.key_inputs, "cell": _cell_to_json(t.cell)}
            for t in job.tasks
        ],
    }


def _cell_to_json(cell: Cell) -> dict[str, Any]:
    return {**asdict(cell), "eps": cell.eps.model_dump()}


def from_json(data: dict[str, Any]) -> AttackJob:
    tasks = tuple(
        UnitTask(
            key=t["key"],
            key_inputs=t["made_of"],
            cell=Cell(**{**t["cell"], "eps": Eps(**t["cell"]["eps"])}),
        )
        for t in data["tasks"]
    )
    return AttackJob(start=data["start"], stop=data["stop"], tasks=tasks)


def _serve(lines: SimpleQueue[str], answers: TextIO) -> None:
    """The first line says what all jobs share."""

    def say(**what: Any) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    setup = json.loads(lines.get())
    set_determinism(NumericSettings(**setup["frame"]))
    components = Components(
        setup["dataset"],
        setup["data_root"],
        torch.device(setup["device"]),
        setup["frame"]["precision"],
        setup["frame"]["layout"],
    )
    say(ready=True)
    while line := lines.get():
        execute_job(
            from_json(json.loads(line)),
            components,
            Path(setup["run_dir"]),
            setup["provenance"],
            lambda key, images, error: say(key=key, images=images, error=error),
        )
        say(done=True)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what components print, C libraries too, must not reach the parent's protocol
    sys.stdout = sys.stderr
    lines: SimpleQueue[str] = SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)  # the parent is gone, or has no more work

    threading.Thread(target=read, daemon=True).start()
    _serve(lines, answers)
