"""How far a training run is: a bar on a terminal, a line for each epoch everywhere. On stderr."""

from __future__ import annotations

import time
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class TrainingProgress:
    """A context manager; silent unless `shown`."""

    def __init__(self, steps: int, done: int, batch: int, shown: bool) -> None:
        self.console = Console(stderr=True, quiet=not shown, highlight=False)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(
            *columns,
            console=self.console,
            disable=not (shown and self.console.is_terminal),
            transient=True,
        )
        self._task = self._bar.add_task("training", total=steps, completed=done, speed="")
        self._steps, self._done, self._first, self._batch, self._start = (
            steps,
            done,
            done,
            batch,
            time.perf_counter(),
        )

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self) -> None:
        self._done += 1
        self._bar.update(self._task, completed=self._done, speed=f"{self.speed:.0f} images/s")

    def epoch(self, number: float, last: float, loss: float, score: float | None) -> None:
        val = "" if score is None else f"  val {score:.4f}"
        self.console.print(
            f"epoch {round(number, 1):g}/{last:g}  loss {loss:.4f}{val}  {self.speed:.0f} images/s  {self.left} left"
        )

    @property
    def speed(self) -> float:
        """Images per second, validation included."""
        return (
            (self._done - self._first) * self._batch / max(time.perf_counter() - self._start, 1e-9)
        )

    @property
    def left(self) -> timedelta:
        return timedelta(
            seconds=round((self._steps - self._done) * self._batch / max(self.speed, 1e-9))
        )
