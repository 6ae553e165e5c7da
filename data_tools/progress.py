"""Progress of long work: a bar on a terminal, a plain line now and then otherwise, or nothing at all."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

_LINE_INTERVAL = 10.0  # seconds between plain lines: a log file stays readable


class Progress:
    """Says what is going on. The base class is silent, for library use and tests."""

    def say(self, message: str) -> None:
        """Reports one finished or starting thing, in one line."""

    def track(self, items: Iterable[Item], *, description: str, total: int | None = None) -> Iterator[Item]:
        """Yields ``items`` unchanged while showing how far it is; ``total`` is their number where known."""
        yield from items


class LineProgress(Progress):
    """Plain lines to a function such as ``print``: for logs, pipes and callers with their own display."""

    def __init__(self, write: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        """Sends each line to ``write``; ``clock`` gives seconds."""
        self._write, self._clock = write, clock

    def say(self, message: str) -> None:
        """Reports one line."""
        self._write(message)

    def track(self, items: Iterable[Item], *, description: str, total: int | None = None) -> Iterator[Item]:
        """Reports the count at most every ten seconds."""
        last = self._clock()
        for count, item in enumerate(items, start=1):
            yield item
            if self._clock() - last >= _LINE_INTERVAL:
                last = self._clock()
                self._write(f"{description}: {count}" + (f" of {total}" if total else ""))


class BarProgress(Progress):
    """A rich progress bar on standard error."""

    def say(self, message: str) -> None:
        """Reports one line."""
        print(message, file=sys.stderr, flush=True)

    def track(self, items: Iterable[Item], *, description: str, total: int | None = None) -> Iterator[Item]:
        """Draws a bar that disappears when the work is done."""
        from rich import progress as rich
        from rich.console import Console

        columns = (
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TimeElapsedColumn(),
        )
        with rich.Progress(*columns, console=Console(stderr=True), transient=True) as display:
            yield from display.track(items, description=description, total=total)


def console_progress() -> Progress:
    """The progress of a command: a bar where standard error is a terminal, plain lines to it otherwise."""
    if sys.stderr.isatty():
        return BarProgress()
    return LineProgress(lambda line: print(line, file=sys.stderr, flush=True))
