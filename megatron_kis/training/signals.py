"""Signals that ask a run to stop: it saves a checkpoint and leaves with a status that a scheduler can act on.

SIGTERM is what SLURM sends before it takes a job's nodes away, SIGUSR1 what ``sbatch --signal=USR1@300`` sends earlier;
both end the run after the step at hand with exit status 75 (EX_TEMPFAIL of sysexits.h: try again later). Ctrl-C
does the same with the usual 130; a second Ctrl-C stops at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Whether a signal has asked this process to stop."""

    def __init__(self) -> None:
        self.number = 0
        """The signal; 0 for none."""

    def __call__(self, number: int, _frame: object) -> None:
        """The signal handler."""
        if number == signal.SIGINT == self.number:
            raise KeyboardInterrupt
        self.number = number


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Collects stop signals in place of their usual effect; outside the main thread, where Python has none, nothing."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.signal(number, request) for number in _STOPPING}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
