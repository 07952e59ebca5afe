"""Progress on stderr: a bar with images per second and the time left, and lines of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text


class Progress:
    """Count images on stderr. The bar is drawn only if `shown`; `say` prints in either case."""

    label = "attacking"
    erased = False  # whether the bar disappears at the end

    def __init__(self, shown: bool, messages: Sequence[str] = ()) -> None:
        self._shown = shown
        self._console = Console(stderr=True, highlight=False)
        # In a log, only the final state of a bar is printed, and of an erased bar an empty line.
        drawn = shown and (self._console.is_terminal or not self.erased)
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _ImagesPerSecond(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not drawn,
            transient=self.erased,
        )
        self._task: Task | None = None
        self._completed_before = 0
        for line in messages:
            self.say(line)

    def say(self, line: str) -> None:
        """Print one line, whether or not the bar is shown."""
        self._console.print(line, style="dim", markup=False, soft_wrap=True)

    @contextmanager
    def counting(self, images: int, completed: int = 0) -> Iterator[None]:
        """Draw the bar while the block runs.

        `completed` of the `images` were worked on by an earlier run.
        """
        self._bar.add_task(self.label, total=images, completed=completed, visible=images > 0)
        self._task = self._bar.tasks[-1]
        self._completed_before = completed
        with self._bar:
            yield

    def advance(self, images: int) -> None:
        """Count images that have been worked on. Call it inside `counting` alone."""
        assert self._task is not None
        self._bar.advance(self._task.id, images)


class TrainingProgress(Progress):
    """Count the images of a training run, and print a line for each epoch if `shown`."""

    label = "training"
    erased = True  # the lines of the epochs remain

    def say_if_shown(self, line: str) -> None:
        """Print one line if the bar is shown."""
        if self._shown:
            self.say(line)

    def expect(self, images: int) -> None:
        """Let the bar end at so many images, of which a run by wall clock learns as it goes."""
        assert self._task is not None
        if self._task.total != images:
            self._bar.update(self._task.id, total=images)

    @contextmanager
    def measuring(self, images: int) -> Iterator[Callable[[int], None]]:
        """Draw a second bar while the block measures this many images.

        The block gets a function, which it calls with the number of images that are done. Call it
        inside `counting` alone.
        """
        task = self._bar.add_task("measuring", total=images)
        try:
            yield lambda done: self._bar.advance(task, done)
        finally:
            self._bar.remove_task(task)

    def report_epoch(
        self, epoch: float, epochs: float, losses: Mapping[str, float], val_score: float | None
    ) -> None:
        """Print the mean losses of the epoch that ends, and its score on validation images."""
        if not self._shown:
            return
        score = "" if val_score is None else f"  val {val_score:.4f}"
        loss = "  ".join(f"{name} {mean:.4f}" for name, mean in losses.items())
        speed = self._mean_speed()
        self._console.print(
            f"epoch {round(epoch, 1):g}/{epochs:g}  {loss}{score}"
            f"  {speed:.0f} images/s  {self._time_left(speed)} left",
            markup=False,
            soft_wrap=True,
        )

    def _mean_speed(self) -> float:
        """Return the images per second of this process so far, validation included."""
        assert self._task is not None
        completed = self._task.completed - self._completed_before
        return completed / max(self._task.elapsed or 0.0, 1e-9)

    def _time_left(self, images_per_second: float) -> timedelta:
        assert self._task is not None
        remaining = self._task.remaining or 0.0
        return timedelta(seconds=round(remaining / max(images_per_second, 1e-9)))


class MeasuringProgress(Progress):
    """Count the images on which a component is measured."""

    label = "measuring"
    erased = True


class _ImagesPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.0f} images/s")
