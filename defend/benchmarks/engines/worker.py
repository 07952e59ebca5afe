"""A worker process. Jobs come as lines of JSON on stdin, messages go as lines to stdout.

It is neither a fork nor a new import of the caller's script; when the parent dies, stdin ends and
so does the worker.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

import torch

from defend.benchmarks.components import Components
from defend.benchmarks.execute import Executor
from defend.benchmarks.jobs import AttackJob, job_from_json
from defend.benchmarks.units import KeyInputs
from defend.benchmarks.writer import Writer
from defend.numerics import NumericSettings, set_determinism

CODE_CHANGED = "the code of a component was edited after it was imported: start the run again"


def worker_main() -> None:
    """Serve the parent until it has no more work."""
    messages = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what components print, C libraries too, must not reach the parent's protocol
    sys.stdout = sys.stderr
    lines: SimpleQueue[str] = SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)  # the parent is gone, or has no more work

    threading.Thread(target=read, daemon=True).start()
    _serve(lines, messages)


def _serve(lines: SimpleQueue[str], messages: TextIO) -> None:
    """Execute one job after another; the first line says what all of them share."""
    lock = threading.Lock()  # the writer's thread sends messages too

    def send(**message: Any) -> None:
        with lock:
            messages.write(json.dumps(message) + "\n")
            messages.flush()

    def send_unit(key: str, images: int, error: str | None) -> None:
        send(key=key, images=images, error=error)

    settings = json.loads(lines.get())
    numerics = NumericSettings(**settings["numerics"])
    set_determinism(numerics)
    components = Components(
        settings["dataset"],
        settings["data_root"],
        torch.device(settings["device"]),
        numerics.precision,
        numerics.layout,
    )
    key_inputs = KeyInputs(components, numerics)
    with Writer() as writer:
        executor = Executor(
            components,
            Path(settings["run_dir"]),
            settings["provenance"],
            writer,
            settings["save_images"],
        )
        send(ready=True)
        while line := lines.get():
            job = job_from_json(json.loads(line))
            if _code_is_unchanged(job, key_inputs):
                executor.execute(job, send_unit)
            else:
                for task in job.tasks:
                    send_unit(task.key, job.images, CODE_CHANGED)
            writer.submit(lambda: send(done=True))  # after the job's units


def _code_is_unchanged(job: AttackJob, key_inputs: KeyInputs) -> bool:
    """Return True if this process imports the code that the units' keys name.

    The parent may have imported a file that was edited since.
    """
    try:
        return all(key_inputs.code_of(t.cell) == t.key_inputs["code"] for t in job.tasks)
    except Exception:  # a broken component: executing the job fails with its reason
        return True
