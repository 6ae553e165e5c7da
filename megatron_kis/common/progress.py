"""Progress of long work: a bar on a terminal, a plain line now and then otherwise, or nothing at all."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from megatron_kis.common.errors import printable

if TYPE_CHECKING:
    import rich.progress

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

Meter = Callable[[int, int, int], None]
"""Receiver of the state of work on text: bytes of input done, bytes of text, documents; all since its start."""

_LINE_INTERVAL = 10.0  # seconds between plain lines: a log file stays readable


class Progress:
    """Reports progress. The base class is silent, for library use and tests."""

    def say(self, message: str) -> None:
        """Reports one finished or starting thing, in one line."""

    def track(self, items: Iterable[Item], *, description: str, total: int | None = None) -> Iterator[Item]:
        """Yields ``items`` unchanged while showing how far it is; ``total`` is their number where known."""
        yield from items

    @contextmanager
    def meter(self, description: str, total: int) -> Iterator[Meter]:
        """Yields a function to call with the state of work on ``total`` bytes of input."""
        yield lambda _done, _text, _documents: None


class LineProgress(Progress):
    """Plain lines to a function such as ``print``: for logs, pipes and callers with their own display."""

    def __init__(self, write: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        """Sends each line to ``write``; ``clock`` gives seconds."""
        self._write, self._clock = write, clock

    def say(self, message: str) -> None:
        """Writes the message as one line."""
        self._write(message)

    def track(self, items: Iterable[Item], *, description: str, total: int | None = None) -> Iterator[Item]:
        """Reports the count at most every ten seconds."""
        last = self._clock()
        for count, item in enumerate(items, start=1):
            yield item
            if self._clock() - last >= _LINE_INTERVAL:
                last = self._clock()
                self._write(f"{description}: {count}" + (f" of {total}" if total else ""))

    @contextmanager
    def meter(self, description: str, total: int) -> Iterator[Meter]:
        """Reports megabytes, documents and speed at most every ten seconds."""
        start = last = self._clock()

        def show(done: int, text: int, documents: int) -> None:
            nonlocal last
            now = self._clock()
            if now - last >= _LINE_INTERVAL:
                last = now
                state = f"{done / 1e6:.0f} of {total / 1e6:.0f} MB, {_speed(text, documents, now - start)}"
                self._write(f"{description}: {state}")

        yield show


class BarProgress(Progress):
    """A rich progress bar on standard error."""

    def say(self, message: str) -> None:
        """Logs the message as one line."""
        logger.info(printable(message))

    def track(self, items: Iterable[Item], *, description: str, total: int | None = None) -> Iterator[Item]:
        """Draws a bar that disappears when the work is done."""
        from rich.progress import MofNCompleteColumn

        with _bar(MofNCompleteColumn()) as display:
            yield from display.track(items, description=description, total=total)

    @contextmanager
    def meter(self, description: str, total: int) -> Iterator[Meter]:
        """Draws a bar with megabytes, documents and speed."""
        from rich.progress import DownloadColumn, TextColumn

        with _bar(DownloadColumn(), TextColumn("{task.fields[speed]}")) as display:
            task = display.add_task(description, total=total, speed="")
            start = time.monotonic()

            def show(done: int, text: int, documents: int) -> None:
                speed = _speed(text, documents, time.monotonic() - start)
                display.update(task, completed=done, speed=speed)

            yield show


def _bar(*columns: rich.progress.ProgressColumn) -> rich.progress.Progress:
    """Returns a bar on standard error that disappears when the work is done; ``columns`` follow the bar itself."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    shown = (TextColumn("{task.description}"), BarColumn(), *columns, TimeElapsedColumn())
    return Progress(*shown, console=Console(stderr=True), transient=True)


def _speed(text: int, documents: int, seconds: float) -> str:
    return f"{documents:,} documents, {text / 1e6 / max(seconds, 1e-9):.1f} MB of text per second"


def logged(log: logging.Logger) -> Progress:
    """The progress of work deep inside: plain lines to a module's logger, which only a command shows."""
    return LineProgress(lambda line: log.info(printable(line)))


def console_progress() -> Progress:
    """The progress of a command: a bar where standard error is a terminal, plain lines to it otherwise."""
    if sys.stderr.isatty():
        return BarProgress()
    return LineProgress(lambda line: logger.info(printable(line)))
