"""The attempts of a cell, in ``runs/<cell>/attempts.jsonl``: a line when one starts, a line when it has ended.

Only who holds the cell's claim writes. A start without an end is an attempt that was lost with its machine. Failures
count while the cell's settings stay the same, and until somebody asks for another try (``forgive``, ``begin_again``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from megatron_kis.common.files import append_json_line, fingerprint
from megatron_kis.config.run import RunConfig
from megatron_kis.executor.lease import Claim

NAME = "attempts.jsonl"
Outcome = Literal["done", "failed", "stopped"]

WRONG_INPUT = 2
"""Exit status of wrong input, which another attempt meets again."""

STOPPED = 75
"""Exit status of a run that was asked to stop and has saved a checkpoint (``training.signals``)."""

_LONGEST_ERROR = 4000  # characters of a reason that are kept


@dataclass(frozen=True)
class Attempt:
    """One attempt."""

    number: int
    """That of its claim."""

    host: str
    """Machine."""

    pid: int
    """Process of the executor."""

    job: str
    """SLURM's number of its job, or empty."""

    config: str
    """Fingerprint of the run's settings."""

    started: float
    """Seconds since the epoch."""

    ended: float | None = None
    """Seconds since the epoch; None while it runs, or if it was lost."""

    status: int | None = None
    """Exit status; negative for a signal."""

    outcome: Outcome | None = None
    """``done``, ``failed``, or ``stopped``: it was asked to, and resumes from its checkpoint."""

    error: str = ""
    """What its first failing rank gave as the reason; empty if none did."""


@dataclass(frozen=True)
class History:
    """All attempts of a cell."""

    attempts: tuple[Attempt, ...] = ()
    """In their order."""

    forgiven: int = 0
    """Failures up to this attempt do not count."""

    restart: bool = False
    """Whether the next attempt is to begin the run again, and not to resume it (``begin_again``)."""

    def failures(self, config: str) -> list[Attempt]:
        """The failed attempts that count against settings of this fingerprint."""
        return [
            attempt
            for attempt in self.attempts
            if attempt.outcome == "failed" and attempt.config == config and attempt.number > self.forgiven
        ]

    def given_up(self, config: str, retries: int) -> bool:
        """Whether there is no use in another attempt: too many failed, or one on wrong input."""
        failures = self.failures(config)
        return len(failures) > retries or any(attempt.status == WRONG_INPUT for attempt in failures)


def settings_fingerprint(run: RunConfig) -> str:
    """Of all settings of a run but its files: those that change no result may well change whether it fails."""
    return fingerprint(run.model_dump(mode="json", exclude={"data", "output"}))


def given_up(run: RunConfig, retries: int) -> bool:
    """Whether a cell has failed too often to be tried again."""
    history = read_attempts(run.output)
    return bool(history.attempts) and history.given_up(settings_fingerprint(run), retries)


def start_attempt(claim: Claim, config: str) -> None:
    """Notes that the holder of a claim starts the cell."""
    owner = claim.owner
    row = {"event": "start", "attempt": claim.number, "host": owner.host, "pid": owner.pid, "job": owner.job}
    append_json_line(claim.folder / NAME, {**row, "config": config, "time": time.time()})


def end_attempt(claim: Claim, *, status: int, outcome: Outcome, error: str = "") -> None:
    """Notes how it ended, and the reason if there is one."""
    row = {"event": "end", "attempt": claim.number, "status": status, "outcome": outcome, "time": time.time()}
    append_json_line(claim.folder / NAME, row | ({"error": error[:_LONGEST_ERROR]} if error else {}))


def forgive(folders: Sequence[Path]) -> None:
    """Lets cells that were given up be tried again."""
    for folder in folders:
        attempts = read_attempts(folder).attempts
        if attempts:
            append_json_line(folder / NAME, {"event": "forgive", "attempt": attempts[-1].number, "time": time.time()})


def begin_again(folders: Sequence[Path]) -> None:
    """Lets the next attempt of each cell, and only that one, begin at step 0; forgives it, too.

    Args:
        folders: of cells that nobody runs; a cell without a folder has nothing to forget.
    """
    for folder in folders:
        if folder.is_dir():
            attempts = read_attempts(folder).attempts
            number = attempts[-1].number if attempts else 0
            append_json_line(folder / NAME, {"event": "restart", "attempt": number, "time": time.time()})


def read_attempts(folder: Path) -> History:
    """What the file says; lines that a crash has cut or damaged are passed over."""
    try:
        lines = (folder / NAME).read_bytes().splitlines()
    except OSError:
        return History()
    attempts: dict[int, Attempt] = {}
    forgiven, restart = 0, False
    for line in lines:
        row = _row(line)
        number, event = row.get("attempt"), row.get("event")
        if not isinstance(number, int) or not isinstance(row.get("time"), int | float):
            continue
        if event == "start":
            restart = False
            attempts[number] = Attempt(
                number,
                host=str(row.get("host", "")),
                pid=row["pid"] if isinstance(row.get("pid"), int) else 0,
                job=str(row.get("job", "")),
                config=str(row.get("config", "")),
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
            forgiven, restart = number, restart or event == "restart"
    return History(tuple(attempts.values()), forgiven, restart)


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
