"""The pool: worker processes of this machine, kept alive and fed with jobs.

One worker alone works in this process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

from defend.benchmarks.components import Components
from defend.benchmarks.execute import Executor
from defend.benchmarks.jobs import AttackJob, OnUnitDone, job_to_json
from defend.benchmarks.writer import Writer
from defend.numerics import NumericSettings, numerics_applied


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What all jobs of a run share."""

    dataset: str
    data_root: str | None
    run_dir: Path
    numerics: NumericSettings
    provenance: dict[str, Any]
    save_images: int = 0  # of each cell, from the first of the split


def run_jobs(
    jobs: Sequence[AttackJob],
    settings: RunSettings,
    components: Components,
    devices: Sequence[str],
    on_unit_done: OnUnitDone,
) -> None:
    """Execute the jobs, with one worker for each device; "cpu" may be given several times."""
    if min(len(devices), len(jobs)) <= 1:
        _run_here(jobs, settings, components, on_unit_done)
        return
    workers = [_Worker(settings, device) for device in devices[: len(jobs)]]
    try:
        _Feeder(workers, deque(jobs), on_unit_done).run()
    finally:
        for worker in workers:
            worker.stop()


def _run_here(
    jobs: Sequence[AttackJob],
    settings: RunSettings,
    components: Components,
    on_unit_done: OnUnitDone,
) -> None:
    with numerics_applied(settings.numerics), Writer() as writer:
        executor = Executor(
            components, settings.run_dir, settings.provenance, writer, settings.save_images
        )
        for job in jobs:
            executor.execute(job, on_unit_done)


# A terminal's Ctrl-C reaches every process of the group: the parent answers it, and a worker ends
# when its stdin is closed.
_WORKER_CODE = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN);"
    " from defend.benchmarks.engines.worker import worker_main; worker_main()"
)
Message = dict[str, Any] | None  # None: the process has ended


def describe_death(code: int) -> str:
    """Return why a worker ended with this exit code. Negative codes are signals, as in Popen."""
    number = -code if code < 0 else code - 128  # shells add 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"the worker ended with exit code {code}, without a reason; see stderr"
    if name == "SIGKILL":
        return f"the worker was killed ({name}); out of memory? Try fewer --workers"
    return f"the worker crashed ({name}) in compiled code; stderr has the Python line"


class _Worker:
    """A worker process, and the jobs that it has been given."""

    def __init__(self, settings: RunSettings, device: str) -> None:
        search_path = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        threads = str(settings.numerics.threads)
        env = os.environ | {"PYTHONPATH": search_path, "OMP_NUM_THREADS": threads}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-X", "faulthandler", "-c", _WORKER_CODE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        self.listener: Thread | None = None
        self.pending: dict[str, int] = {}  # keys of units that it owes -> their images
        self._send(
            {
                "dataset": settings.dataset,
                "data_root": settings.data_root,
                "run_dir": str(settings.run_dir),
                "provenance": settings.provenance,
                "save_images": settings.save_images,
                "device": device,
                "numerics": asdict(settings.numerics),
            }
        )

    def give(self, job: AttackJob) -> None:
        """Send a job; the worker queues it behind the one that it executes."""
        for task in job.tasks:
            self.pending[task.key] = job.images
        self._send(job_to_json(job))

    def close(self) -> None:
        """Tell the worker that there are no more jobs."""
        if self.process.stdin is not None:
            self.process.stdin.close()

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it died: the feeder hears that from its stdout

    def listen(self, on_message: Callable[[_Worker, Message], None]) -> None:
        """Call on_message for each line of the process in a thread, and with None at its end."""
        self.listener = Thread(target=self._listen, args=(on_message,), daemon=True)
        self.listener.start()

    def _listen(self, on_message: Callable[[_Worker, Message], None]) -> None:
        assert self.process.stdout is not None
        try:
            for line in self.process.stdout:
                on_message(self, json.loads(line))
        finally:  # whatever came, nobody may wait for this worker for ever
            on_message(self, None)

    def stop(self) -> None:
        """End the process, and everything that belongs to it."""
        self.process.kill()
        self.process.wait()
        if self.listener is not None:
            self.listener.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@dataclass
class _Feeder:
    """Gives each worker its next job while it executes the last one.

    A worker that dies fails the units that it owes.
    """

    workers: Sequence[_Worker]
    jobs: deque[AttackJob]
    on_unit_done: OnUnitDone
    last_death: str = "each of them ended"

    def run(self) -> None:
        messages: Queue[tuple[_Worker, Message]] = Queue()
        for worker in self.workers:
            worker.listen(lambda source, message: messages.put((source, message)))
        alive = len(self.workers)
        while alive:
            worker, message = messages.get()
            if message is None:
                alive -= 1
                self._fail_pending(worker)
            elif "key" in message:
                worker.pending.pop(message["key"], None)
                self.on_unit_done(message["key"], message["images"], message["error"])
            else:  # ready, or done with a job
                self._give_next(worker)
        for job in self.jobs:
            for task in job.tasks:
                reason = f"no worker is left: {self.last_death}"
                self.on_unit_done(task.key, job.images, reason)

    def _give_next(self, worker: _Worker) -> None:
        if self.jobs:
            worker.give(self.jobs.popleft())
        elif not worker.pending:
            worker.close()

    def _fail_pending(self, worker: _Worker) -> None:
        for key in sorted(worker.pending):
            self.last_death = describe_death(worker.process.wait())
            self.on_unit_done(key, worker.pending[key], self.last_death)
