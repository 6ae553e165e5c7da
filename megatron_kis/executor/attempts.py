"""The attempts of a run, in ``runs/<run>/attempts.jsonl``: a line when one starts, a line when it has ended.

Only the process that holds the run's lease writes them. A start without an end is an attempt that was lost with its
machine. Failures count while the run's settings stay the same, and until somebody asks for another try
(``reset_failures``, ``request_restart``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from megatron_kis.common.files import append_json_line
from megatron_kis.executor.interface import Run
from megatron_kis.executor.lease import HeldLease

NAME = "attempts.jsonl"
Outcome = Literal["done", "failed", "stopped"]

WRONG_INPUT = 2
"""Exit status for wrong input, which another attempt would meet again."""

STOPPED = 75
"""Exit status of a run that was asked to stop and has saved a checkpoint (``training.signals``)."""

_LONGEST_ERROR = 4000  # characters of a reason that are kept


@dataclass(frozen=True)
class Attempt:
    """One attempt to train a run."""

    number: int
    """Number of its lease."""

    host: str
    """Machine of the executor."""

    pid: int
    """Process of the executor."""

    job: str
    """SLURM's number of the executor's job; empty outside of a job."""

    settings: str
    """Fingerprint of the run's settings."""

    started: float
    """Start, in seconds since the epoch."""

    ended: float | None = None
    """End, in seconds since the epoch; None while it runs, or if it was lost."""

    status: int | None = None
    """Exit status; negative for a signal."""

    outcome: Outcome | None = None
    """``done``, ``failed``, or ``stopped``: it was asked to, and resumes from its checkpoint."""

    error: str = ""
    """Reason that its first failing rank gave; empty if none did."""


@dataclass(frozen=True)
class History:
    """All attempts of a run."""

    attempts: tuple[Attempt, ...] = ()
    """Attempts in their order."""

    reset_at: int = 0
    """Number of the attempt up to which failures do not count."""

    restart: bool = False
    """Whether the next attempt is to begin the run again, and not to resume it (``request_restart``)."""

    def failures(self, settings: str) -> list[Attempt]:
        """Returns the failed attempts that count against settings of this fingerprint."""
        return [
            attempt
            for attempt in self.attempts
            if attempt.outcome == "failed" and attempt.settings == settings and attempt.number > self.reset_at
        ]

    def exhausted(self, settings: str, retries: int) -> bool:
        """Tells whether another attempt is useless: too many failed, or one failed on wrong input."""
        failures = self.failures(settings)
        return len(failures) > retries or any(attempt.status == WRONG_INPUT for attempt in failures)


def is_exhausted(run: Run, retries: int) -> bool:
    """Tells whether a run has failed too often to be tried again."""
    history = read_attempts(run.output)
    return bool(history.attempts) and history.exhausted(run.settings_fingerprint(), retries)


def start_attempt(lease: HeldLease, settings: str) -> None:
    """Records that the holder of a lease starts the run, with settings of this fingerprint."""
    owner = lease.owner
    row = {"event": "start", "attempt": lease.number, "host": owner.host, "pid": owner.pid, "job": owner.job}
    append_json_line(lease.folder / NAME, {**row, "config": settings, "time": time.time()})


def end_attempt(lease: HeldLease, *, status: int, outcome: Outcome, error: str = "") -> None:
    """Records how the attempt ended, and the reason if there is one."""
    row = {"event": "end", "attempt": lease.number, "status": status, "outcome": outcome, "time": time.time()}
    append_json_line(lease.folder / NAME, row | ({"error": error[:_LONGEST_ERROR]} if error else {}))


def reset_failures(folders: Sequence[Path]) -> None:
    """Lets runs that were given up be tried again."""
    for folder in folders:
        attempts = read_attempts(folder).attempts
        if attempts:
            append_json_line(folder / NAME, {"event": "forgive", "attempt": attempts[-1].number, "time": time.time()})


def request_restart(folders: Sequence[Path]) -> None:
    """Lets the next attempt of each run, and only that one, begin at step 0; earlier failures do not count.

    Args:
        folders: folders of runs that are not being executed; a run without a folder is skipped.
    """
    for folder in folders:
        if folder.is_dir():
            attempts = read_attempts(folder).attempts
            number = attempts[-1].number if attempts else 0
            append_json_line(folder / NAME, {"event": "restart", "attempt": number, "time": time.time()})


def read_attempts(folder: Path) -> History:
    """Reads the attempts of a run; lines that a crash has cut or damaged are skipped."""
    try:
        lines = (folder / NAME).read_bytes().splitlines()
    except OSError:
        return History()
    attempts: dict[int, Attempt] = {}
    reset_at = 0
    restart = False
    for line in lines:
        row = _row(line)
        number = row.get("attempt")
        event = row.get("event")
        if not isinstance(number, int) or not isinstance(row.get("time"), int | float):
            continue
        if event == "start":
            restart = False
            attempts[number] = Attempt(
                number,
                host=str(row.get("host", "")),
                pid=row["pid"] if isinstance(row.get("pid"), int) else 0,
                job=str(row.get("job", "")),
                settings=str(row.get("config", "")),
                started=row["time"],
            )
        elif event == "end" and number in attempts and row.get("outcome") in ("done", "failed", "stopped"):
            attempts[number] = replace(
                attempts[number],
                ended=row["time"],
                status=row.get("status"),
                outcome=row["outcome"],
                error=str(row.get("error", "")),
            )
        elif event in ("forgive", "restart"):
            reset_at = number
            restart = restart or event == "restart"
    return History(tuple(attempts.values()), reset_at, restart)


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
