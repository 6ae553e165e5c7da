"""Where the cells of a study stand, read from the ends of their files: DONE, claims, attempts, metrics, log.

Nothing is written, and no file is read whole but those of a few lines: ten thousand cells take seconds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from megatron_kis.common.identity import RUN_FILE
from megatron_kis.config.run import RunConfig
from megatron_kis.executor.attempts import NAME as ATTEMPTS
from megatron_kis.executor.attempts import History, read_attempts, settings_fingerprint
from megatron_kis.executor.lease import FOLDER as CLAIMS
from megatron_kis.executor.lease import LEASE_SECONDS, Seen, alive, look, this_process
from megatron_kis.executor.logs import LOG_NAME, last_lines, reason
from megatron_kis.executor.slurm.queue import Queued
from megatron_kis.study.grid import cost
from megatron_kis.study.standing import foreign_settings

State = Literal["waiting", "queued", "running", "stopped", "done", "failed", "given up", "other settings"]

STATES: tuple[State, ...] = (
    "done", "running", "queued", "waiting", "stopped", "failed", "given up", "other settings",
)  # fmt: skip
"""In the order in which they are shown."""

_TAILS = (4096, 1 << 18)
"""Bytes from the end of a log of rows that are looked through: enough nearly always, and enough always."""

_SHOWN_LINES = 3  # of the log of a failed cell


@dataclass(frozen=True)
class RunStatus:
    """One cell."""

    name: str
    """Of the run."""

    size: str
    """Of the ladder."""

    tokens: int
    """D, tokens that it feeds."""

    state: State
    """``waiting``: not begun. ``queued``: a scheduler has it. ``running``: a living executor holds its claim.
    ``stopped``: asked to stop, or cut off; it resumes where it was saved. ``failed``: will be tried again.
    ``given up``: failed too often. ``done``. ``other settings``: its folder holds a complete run of other settings."""

    share: float = 0.0
    """Share of its steps that the log shows."""

    loss: float | None = None
    """Last training loss, nats a token."""

    tokens_per_second: float | None = None
    """Last speed."""

    attempts: int = 0
    """Attempts, the present one included."""

    seconds: float | None = None
    """Time of its last attempt, from its start to its end, if it has ended."""

    whole: bool = False
    """Whether one attempt did all of it, so that ``seconds`` is what such a cell takes."""

    status: int | None = None
    """Exit status of the last attempt that failed, if that is what came of it."""

    where: str = ""
    """Machine and job that run it, or the job that it is queued as."""

    log: tuple[str, ...] = ()
    """Why it failed (``logs.reason``), or the last lines of its log if it has stopped."""

    differs: tuple[str, ...] = ()
    """``key then -> now`` of the settings in which the complete run there is another."""

    cost: float = field(default=0.0, repr=False)
    """Relative cost (weights x tokens)."""


@dataclass
class Overview:
    """The cells of a study, looked at again and again; what is done is looked at once."""

    runs: Sequence[RunConfig]
    """All cells."""

    retries: int = 1
    """Of the executor."""

    lease: float = LEASE_SECONDS
    """Of claims, seconds."""

    _done: dict[str, RunStatus] = field(default_factory=dict)

    def look(self, queue: Mapping[str, Queued] | None = None) -> list[RunStatus]:
        """The status of each cell now.

        Args:
            queue: what a scheduler says, by cell.
        """
        queue = queue or {}
        there: dict[Path, set[str]] = {}
        for folder in {run.output.parent for run in self.runs}:
            there[folder] = _names(folder)
        rows = []
        mine = this_process()
        for run in self.runs:
            row = self._done.get(run.name)
            if row is None:
                names = _names(run.output) if run.output.name in there[run.output.parent] else set()
                row = _status(
                    run,
                    names,
                    queue.get(run.name),
                    retries=self.retries,
                    living=lambda seen: alive(seen, owner=mine, lease=self.lease),
                )
                if row.state in ("done", "other settings"):
                    self._done[run.name] = row
            rows.append(row)
        return rows


def status_of(
    runs: Sequence[RunConfig],
    *,
    queue: Mapping[str, Queued] | None = None,
    retries: int = 1,
    lease: float = LEASE_SECONDS,
) -> list[RunStatus]:
    """The status of each run; see ``Overview``."""
    return Overview(runs, retries, lease).look(queue)


def _status(
    run: RunConfig, names: set[str], queued: Queued | None, *, retries: int, living: Callable[[Seen], bool]
) -> RunStatus:
    row = _last_metrics(run.output / "metrics.jsonl") if "metrics.jsonl" in names else {}
    history = read_attempts(run.output) if ATTEMPTS in names else History()
    seen = look(run.output) if CLAIMS in names and "DONE" not in names else None
    differs = _foreign(run) if {"DONE", RUN_FILE} <= names else []
    state: State = "other settings"
    if not differs:
        state = _state(run, names, history, queued, retries=retries, running=seen is not None and living(seen))
    last = history.attempts[-1] if history.attempts else None
    where = ""
    if state == "running" and seen is not None:
        where = seen.owner.host + (f", job {seen.owner.job}" if seen.owner.job else "")
    elif state == "queued" and queued is not None:
        where = " ".join(filter(None, (f"job {queued.job}" if queued.job else "", queued.state, queued.reason)))
    said = reason if state in ("failed", "given up") else last_lines if state == "stopped" else None
    return RunStatus(
        name=run.name,
        size=run.model.label,
        tokens=run.training.steps * run.training.step_tokens,
        state=state,
        share=1.0 if "DONE" in names else min(1.0, row.get("step", 0) / run.training.steps),
        loss=row.get("loss"),
        tokens_per_second=row.get("tokens_per_second"),
        attempts=len(history.attempts),
        seconds=last.ended - last.started if last and last.ended else None,
        whole=state == "done" and len(history.attempts) == 1,
        status=last.status if last and last.outcome == "failed" else None,
        where=where,
        log=tuple(said(run, _SHOWN_LINES)) if said else (),
        differs=tuple(differs),
        cost=cost(run),
    )


def _state(
    run: RunConfig, names: set[str], history: History, queued: Queued | None, *, retries: int, running: bool
) -> State:
    if "DONE" in names:
        return "done"
    if running:
        return "running"
    last = history.attempts[-1].outcome if history.attempts else None
    if last == "failed" and history.given_up(settings_fingerprint(run), retries):
        return "given up"
    if queued is not None:
        return "queued"
    if last == "failed":
        return "failed"
    return "stopped" if history.attempts or names & {LOG_NAME, "metrics.jsonl"} else "waiting"


def _foreign(run: RunConfig) -> list[str]:
    """How the complete run in a run's folder differs in its settings; that its record is damaged, if it is."""
    try:
        record = json.loads((run.output / RUN_FILE).read_bytes())
    except OSError:
        return []
    except ValueError:
        record = None
    if not isinstance(record, dict) or "config" not in record:
        return [f"{RUN_FILE} is damaged"]
    return foreign_settings(run, record)


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))  # noqa: PTH208 - names alone, for tens of thousands of folders
    except OSError:
        return set()


def _last_metrics(path: Path) -> dict[str, Any]:
    """The last whole row of training; empty if there is none."""
    for size in _TAILS:
        try:
            with open(path, "rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(0, end - size))
                lines = file.read().split(b"\n")
        except OSError:
            return {}
        for line in reversed(lines[:-1]):  # what follows the last newline is still being written
            if b'"train"' not in line:
                continue
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and row.get("kind") == "train" and isinstance(row.get("step"), int):
                return {key: row[key] for key in ("step", "loss", "tokens_per_second") if _number(row.get(key))}
        if end <= size:
            return {}
    return {}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
