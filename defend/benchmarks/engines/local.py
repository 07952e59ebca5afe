"""Workers: spawned, kept alive, fed with jobs; one alone works in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import torch

from defend.benchmarks.components import Components
from defend.benchmarks.engines.worker import set_determinism, to_json
from defend.benchmarks.execute import AttackJob, OnUnitDone, execute_job
from defend.benchmarks.units import NumericSettings


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What all jobs of a run share."""

    dataset: str
    data_root: str | None
    run_dir: Path
    frame: NumericSettings
    provenance: dict[str, Any]


def run_jobs(
    jobs: Sequence[AttackJob],
    setup: RunSettings,
    components: Components,
    devices: Sequence[str],
    report: OnUnitDone,
) -> None:
    """One worker for each device given ("cpu" may be given several times)."""
    if min(len(devices), len(jobs)) <= 1:
        with numerics_applied(setup.frame):
            for job in jobs:
                execute_job(job, components, setup.run_dir, setup.provenance, report)
        return
    crew = [_Worker(setup, device) for device in devices[: len(jobs)]]
    try:
        _feed(crew, deque(jobs), report)
    finally:
        for worker in crew:
            worker.dismiss()


@contextmanager
def numerics_applied(frame: NumericSettings) -> Iterator[None]:
    """As a worker process settles itself, and back: the caller's threads are his own."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    set_determinism(frame)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


# A terminal's Ctrl-C reaches every process of the group: the parent answers it, and a worker ends when its stdin is closed.
WORKER = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from defend.benchmarks.engines.worker import main; main()"


class _Worker:
    """A worker process and what it has in hand."""

    def __init__(self, setup: RunSettings, device: str) -> None:
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join(p or str(Path.cwd()) for p in sys.path),
            "OMP_NUM_THREADS": str(setup.frame.threads),
        }
        command = [sys.executable, "-P", "-c", WORKER]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self.listener: Thread | None = None
        self.job: AttackJob | None = None
        self.pending: set[str] = set()
        shared = {
            "dataset": setup.dataset,
            "data_root": setup.data_root,
            "run_dir": str(setup.run_dir),
            "provenance": setup.provenance,
        }
        self._say({**shared, "device": device, "frame": asdict(setup.frame)})

    def give(self, job: AttackJob) -> None:
        self.job, self.pending = job, {t.key for t in job.tasks}
        self._say(to_json(job))

    def _say(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it died: `_feed` hears that from its stdout

    def dismiss(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.listener is not None:
            self.listener.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def listen_in_a_thread(self, heard: Callable[[_Worker, dict[str, Any] | None], None]) -> None:
        self.listener = Thread(target=self._listen, args=(heard,), daemon=True)
        self.listener.start()

    def _listen(self, heard: Callable[[_Worker, dict[str, Any] | None], None]) -> None:
        """Calls heard(self, message) for each line, and heard(self, None) when the process is gone."""
        assert self.process.stdout is not None
        try:
            for line in self.process.stdout:
                heard(self, json.loads(line))
        finally:  # whatever came: nobody may wait for it for ever
            heard(self, None)


def _feed(crew: Sequence[_Worker], jobs: deque[AttackJob], report: OnUnitDone) -> None:
    """Each worker gets a job when it has none. A worker that dies fails the units it had in hand."""
    heard: Queue[tuple[_Worker, dict[str, Any] | None]] = Queue()
    for worker in crew:
        worker.listen_in_a_thread(lambda w, m: heard.put((w, m)))
    alive = len(crew)
    while alive:
        worker, message = heard.get()
        if message is None:
            alive -= 1
            _fail(worker, report)
        elif "key" in message:
            worker.pending.discard(message["key"])
            report(message["key"], message["images"], message["error"])
        elif jobs:
            worker.give(jobs.popleft())
        else:
            worker.job = None
            if worker.process.stdin is not None:
                worker.process.stdin.close()
    for job in jobs:
        for task in job.tasks:
            report(
                task.key,
                job.stop - job.start,
                "no worker is left: each of them died (out of memory?)",
            )


def _fail(worker: _Worker, report: OnUnitDone) -> None:
    if worker.job is not None:
        for key in sorted(worker.pending):
            report(
                key,
                worker.job.stop - worker.job.start,
                f"the worker died (exit {worker.process.wait()}; out of memory?)",
            )
