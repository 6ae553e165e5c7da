"""Faults of a run: bad steps (``LossGuard``), hung ranks (``Watchdog``) and signals to stop (``stop_requests``).

The watchdog's timer is in C (``faulthandler``), so that it fires while Python waits in a collective for a rank that is
gone.

SIGTERM is what SLURM sends before it takes a job's nodes away, SIGUSR1 what ``sbatch --signal=USR1@300`` sends earlier;
both end the run after the current step with exit status 75 (EX_TEMPFAIL of sysexits.h: try again later). Ctrl-C
does the same with the usual 130; a second Ctrl-C stops at once.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from megatron_kis.config.run import GuardConfig
from megatron_kis.data.exposure_plan import SequenceLayout
from megatron_kis.data.exposure_store import ExposureStore

STACKS = "stacks"
"""Folder of the watchdog's files in a run's folder."""

_DECAY = 0.98  # of the running mean: about the last 50 steps
_FACTS_NAMED = 8  # in a message
_SLACK = 0.01  # of the watchdog's time: to start its timer is to start a thread, and resets come several times a step
_STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class LossGuard:
    """Judges each step before its update. All ranks see the same numbers, so they agree."""

    def __init__(self, config: GuardConfig) -> None:
        """Starts without a running mean."""
        self._config = config
        self._mean: float | None = None
        self._in_a_row = 0
        self.complaint: str | None = None
        """Fault of the last step, in words; None if it was a good one."""
        self.skipped: list[int] = []
        """Steps (from 1) that were trained without an update."""

    def accepts(self, loss: float, norm: float) -> bool:
        """Returns whether a step is a good one; its loss then counts for the running mean.

        Args:
            loss: mean over the global batch, nats per token.
            norm: norm of the gradient, before clipping.
        """
        self.complaint = self._problem(loss, norm)
        if self.complaint is None:
            self._mean = loss if self._mean is None else _DECAY * self._mean + (1 - _DECAY) * loss
            self._in_a_row = 0
        return self.complaint is None

    def _problem(self, loss: float, norm: float) -> str | None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return f"loss {loss} and gradient norm {norm}, not finite,"
        rise = self._config.loss_rise
        if rise is not None and self._mean is not None and loss > self._mean + rise:
            return f"loss {loss:.3f}, more than {rise} above its running mean {self._mean:.3f},"
        return None

    def skips(self, step: int) -> bool:
        """Notes a bad step (from 1), and returns whether the run may continue without its update."""
        if self._in_a_row >= self._config.skip_in_a_row:
            return False
        self._in_a_row += 1
        self.skipped.append(step)
        return True

    def record(self) -> dict[str, Any]:
        """Returns what a checkpoint saves, in JSON's types."""
        return {"mean": self._mean, "in_a_row": self._in_a_row, "skipped": self.skipped}

    def load(self, record: dict[str, Any]) -> None:
        """Restores what ``record`` returned."""
        self._mean = record["mean"]
        self._in_a_row = record["in_a_row"]
        self.skipped = list(record["skipped"])


def exposures_in(layouts: Iterable[SequenceLayout]) -> dict[str, Counter[int]]:
    """Counts how often each fact of each group is exposed in some sequences: group -> fact's row -> count."""
    counts: dict[str, Counter[int]] = {}
    for layout in layouts:
        for exposure in layout.exposures:
            counts.setdefault(exposure.group, Counter())[exposure.fact] += 1
    return counts


def describe_bad_step(
    problem: str, step: int, sequences: range, layouts: Iterable[SequenceLayout], store: ExposureStore
) -> str:
    """Returns the message about a bad step: which it was, and what it was trained on."""
    parts = []
    for group, counts in exposures_in(layouts).items():
        names = store.ids(group)
        named = [f"{names[fact]} x{count}" for fact, count in counts.most_common(_FACTS_NAMED)]
        more = f" and {len(counts) - _FACTS_NAMED} more" if len(counts) > _FACTS_NAMED else ""
        parts.append(f"{group} facts {', '.join(named)}{more}")
    what = "; ".join(parts) or "no exposures"
    return f"{problem} at step {step} (sequences {sequences[0]} to {sequences[-1]}: {what})"


class Watchdog:
    """Writes every thread's stack to a file and ends this process, if it is not reset in time."""

    def __init__(self, minutes: float | None, run: Path, *, rank: int) -> None:
        """Prepares; None never ends anything. Stacks go to ``stacks/rank-<rank>.txt`` in the run's folder."""
        self._seconds = None if minutes is None else 60 * minutes
        self._started = -math.inf
        self.path = run / STACKS / f"rank-{rank}.txt"
        if self._seconds is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "w", encoding="utf-8")  # noqa: SIM115 - open as long as the timer may fire

    def reset(self) -> None:
        """Starts the time again, unless it has just begun: what hangs is ended at most 1% of the minutes too early."""
        now = time.monotonic()
        if self._seconds is not None and now - self._started >= _SLACK * self._seconds:
            self._started = now
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)

    def close(self) -> None:
        """Stops the timer, and removes the file if nothing was written to it."""
        if self._seconds is None:
            return
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        if self.path.exists() and not self.path.stat().st_size:
            self.path.unlink()
            with contextlib.suppress(OSError):  # the folder may have files of other ranks
                self.path.parent.rmdir()


class StopRequest:
    """A signal's request to this process to stop, if there was one; also the signal handler."""

    def __init__(self) -> None:
        self.number = 0
        """Number of the signal; 0 if there was none."""

    def __call__(self, number: int, _frame: object) -> None:
        """Keeps the signal's number; Ctrl-C pressed twice interrupts at once."""
        if number == signal.SIGINT == self.number:
            raise KeyboardInterrupt
        self.number = number


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Collects stop signals in place of their usual effect; only in the main thread, as Python has no others."""
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
