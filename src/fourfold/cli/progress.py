"""Bars on a terminal, nothing elsewhere: one for each picture in hand and, for a batch, one for all of it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as EtaColumn

from fourfold.cli.text import printable

OnProgress = Callable[[int, int], None]
"""Called with the steps done and their total."""

#: The pace is that of the last ten minutes: a step of a slow model may take one.
_PACE_S: Final = 600.0

#: The steps' part of a picture; the rest is for writing it, which nobody counts.
_STEPS_SHARE: Final = 0.9


class Board:
    """The bars. Open one with :func:`board`."""

    def __init__(self, bars: Progress | None, pictures: int) -> None:
        self._bars = bars
        self._pictures = pictures
        self._ended = 0
        self._shares: dict[TaskID, float] = {}
        self._all = bars.add_task("", total=pictures) if bars is not None and pictures > 1 else None
        self._advance()

    @contextmanager
    def follow(self, name: str) -> Iterator[OnProgress]:
        """Show a bar for one picture during the block; yield what is told of its steps."""
        if self._bars is None:
            yield lambda _done, _total: None
            return
        bars, shown = self._bars, escape(printable(name))
        task = bars.add_task(shown, total=None)

        def on_progress(done: int, total: int) -> None:
            text = f"{shown}, writing" if done >= total else shown
            bars.update(task, completed=done, total=total, description=text)
            self._shares[task] = _STEPS_SHARE * min(done / total, 1.0) if total else 0.0
            self._advance()

        try:
            yield on_progress
        finally:
            bars.remove_task(task)
            self._shares.pop(task, None)
            self._ended += 1
            self._advance()

    def _advance(self) -> None:
        if self._bars is not None and self._all is not None:
            text = f"{self._ended} of {self._pictures}"
            self._bars.update(self._all, completed=self._ended + sum(self._shares.values()), description=text)


@contextmanager
def board(pictures: int, *, wanted: bool = True) -> Iterator[Board]:
    """Yield the board for so many *pictures*; it shows only on a terminal and, there, only if *wanted*."""
    console = Console(stderr=True)
    if not (wanted and console.is_terminal):
        yield Board(None, pictures)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), EtaColumn())
    # Lines printed meanwhile stand above the bars; those that go to a file or a pipe must still go there.
    above = sys.stdout.isatty()
    with Progress(
        *columns, console=console, transient=True, speed_estimate_period=_PACE_S, redirect_stdout=above
    ) as bars:
        yield Board(bars, pictures)
