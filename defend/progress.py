"""Progress on stderr: images per second and the time left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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
from rich.progress import Progress as Bar
from rich.text import Text


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.0f} images/s")


class Progress:
    """Counts attacked images. Silent where it is not shown; skipped pairs are said in either case."""

    def __init__(self, shown: bool, skipped: Sequence[str] = ()) -> None:
        self._console = console = Console(stderr=True)
        for line in skipped:
            self.say(line)
        columns = (
            TextColumn("attacking"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._bar = Bar(*columns, console=console, disable=not shown)
        self._task = self._bar.add_task("attacking", visible=False)

    def say(self, line: str) -> None:
        self._console.print(line, style="dim", markup=False, soft_wrap=True)

    @contextmanager
    def counting(self, images: int) -> Iterator[None]:
        self._bar.update(self._task, total=images, visible=images > 0)
        with self._bar:
            yield

    def advance(self, images: int) -> None:
        self._bar.advance(self._task, images)
