"""A watchdog over hung ranks: a step that takes too long writes every thread's stack to a file and ends the process.

The timer lives in C (``faulthandler``), so that it fires while Python waits in a collective for a rank that is gone.
"""

from __future__ import annotations

import contextlib
import faulthandler
from pathlib import Path

STACKS = "stacks"


class Watchdog:
    """Ends this process if it is not told in time that all is well."""

    def __init__(self, minutes: float | None, run: Path, *, rank: int) -> None:
        """Prepares; None never ends anything. Stacks go to ``stacks/rank-<rank>.txt`` in the run's folder."""
        self._seconds = None if minutes is None else 60 * minutes
        self.path = run / STACKS / f"rank-{rank}.txt"
        if self._seconds is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "w", encoding="utf-8")  # noqa: SIM115 - open as long as the timer may fire

    def rearm(self) -> None:
        """All is well; the time begins anew."""
        if self._seconds is not None:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)

    def close(self) -> None:
        """Ends the watch, and removes the file if nothing was written to it."""
        if self._seconds is None:
            return
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        if self.path.exists() and not self.path.stat().st_size:
            self.path.unlink()
            with contextlib.suppress(OSError):  # other ranks' files may lie there
                self.path.parent.rmdir()
