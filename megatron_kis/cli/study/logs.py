"""``kis study logs``: what one run printed."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import IO

from megatron_kis.cli.study.common import add_step
from megatron_kis.cli.study.status import overview
from megatron_kis.common.errors import InputError, nearest

_POLL_SECONDS = 0.5
_BLOCK = 1 << 16


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    logs = add_step(
        steps, "logs", "print the end of a run's log, which covers all attempts", _logs, run=True, json=False
    )
    logs.add_argument("--lines", type=int, default=40, metavar="N", help="number of lines; 0 for all")
    logs.add_argument(
        "--follow", action="store_true", help="continue until the run has ended; Ctrl-C does not affect the run"
    )


def _logs(options: argparse.Namespace) -> int:
    from megatron_kis.executor.logs import LOG_NAME
    from megatron_kis.study.status import Overview

    if options.lines < 0:
        raise InputError(f"is {options.lines}", where="--lines", remedy="use 0 for all lines, or a positive number")
    _, view = overview(options)
    name = options.run_name
    by_name = {run.name: run for run in view.runs}
    if name not in by_name:
        raise InputError(f"no run {name!r} in this study", where="RUN", remedy=nearest(name, by_name))
    run = by_name[name]
    view = Overview([run], view.retries, view.lease, view.questions)
    path = run.output / LOG_NAME
    state = view.look()[0].state
    if not path.exists() and not options.follow:
        raise InputError(f"has no log yet: it is {state}", where=name, remedy="kis study logs --follow waits for it")
    try:
        while not path.exists():
            time.sleep(_POLL_SECONDS)
        with open(path, "rb") as log:
            log.seek(_start_of_tail(log, options.lines))
            copy = _Copy(log)
            copy.lines()
            while options.follow and view.look()[0].state in ("running", "queued", "waiting"):
                time.sleep(_POLL_SECONDS)
                copy.lines()
            copy.lines()
            copy.rest()
    except KeyboardInterrupt:
        return 0
    return 0


def _start_of_tail(log: IO[bytes], lines: int) -> int:
    """Returns where the last lines begin, found from the end."""
    end = log.seek(0, os.SEEK_END)
    if not lines:
        return 0
    at, seen = end, -1  # the newline at the end of the last line does not begin another
    while at:
        start = max(0, at - _BLOCK)
        log.seek(start)
        block = log.read(at - start)
        if at == end and not block.endswith(b"\n"):
            seen = 0
        while (place := block.rfind(b"\n")) >= 0:
            seen += 1
            if seen == lines:
                return start + place + 1
            block = block[:place]
        at = start
    return 0


class _Copy:
    """Prints whole lines of a log as they arrive; control characters are removed or spelled out."""

    def __init__(self, log: IO[bytes]) -> None:
        self._log, self._begun = log, b""

    def lines(self) -> None:
        """Returns the lines that were completed since the last call."""
        while block := self._log.read(_BLOCK):
            whole, newline, self._begun = (self._begun + block).rpartition(b"\n")
            self._print(whole + newline)
        sys.stdout.flush()

    def rest(self) -> None:
        """Returns an incomplete last line."""
        self._print(self._begun)
        sys.stdout.flush()

    def _print(self, text: bytes) -> None:
        from megatron_kis.executor.logs import for_terminal

        sys.stdout.write(for_terminal(text.decode("utf-8", errors="replace")))
