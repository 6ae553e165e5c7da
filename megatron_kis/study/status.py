"""The states of a study's runs, read from the ends of their files: DONE, leases, attempts, metrics, log.

Nothing is written, and no file is read whole except those of a few lines: ten thousand runs take seconds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from megatron_kis.common.asked import asking_of, has_answers, own_asking
from megatron_kis.common.identity import RUN_FILE
from megatron_kis.config.run import RunConfig
from megatron_kis.executor.attempts import NAME as ATTEMPTS
from megatron_kis.executor.attempts import History, read_attempts
from megatron_kis.executor.lease import FOLDER as LEASES
from megatron_kis.executor.lease import LEASE_SECONDS, Lease, is_live, read_lease, this_process
from megatron_kis.executor.logs import LOG_NAME, failure_reason, last_lines
from megatron_kis.executor.slurm.queue import Queued
from megatron_kis.study.conflicts import foreign_settings
from megatron_kis.study.grid import cost, own_share

State = Literal["waiting", "queued", "running", "stopped", "done", "unasked", "failed", "given up", "other settings"]

STATES: tuple[State, ...] = (
    "done",
    "unasked",
    "running",
    "queued",
    "waiting",
    "stopped",
    "failed",
    "given up",
    "other settings",
)
"""All states, in the order in which they are shown."""

_TAILS = (4096, 1 << 18)
"""Bytes from the end of the metrics that are searched: the first usually suffices, the second always."""

_SHOWN_LINES = 3  # of the log of a failed run


@dataclass(frozen=True)
class RunStatus:
    """The status of one run; its fields are the keys of ``kis study status --json``."""

    name: str
    """Name of the run."""

    size: str
    """Size, as the ladder names it."""

    tokens: int
    """Budget D: tokens that it feeds."""

    state: State
    """``waiting``: not begun. ``queued``: a scheduler has it. ``running``: a living executor holds its lease.
    ``stopped``: asked to stop, or cut off; it resumes where it was saved. ``failed``: will be tried again.
    ``given up``: failed too often. ``done``. ``unasked``: done, without answers to the questions that the study asks
    now. ``other settings``: its folder holds a complete run of other settings."""

    share: float = 0.0
    """Share of its steps that the log shows."""

    own: float = 1.0
    """Share of its steps that it trains itself; the others are those of its trunk."""

    loss: float | None = None
    """Last training loss, nats per token."""

    tokens_per_second: float | None = None
    """Last training speed, tokens per second."""

    attempts: int = 0
    """Number of attempts, the present one included."""

    seconds: float | None = None
    """Duration of its last attempt, if that has ended."""

    whole: bool = False
    """Whether one attempt did all of the run, so that ``seconds`` is what such a run takes."""

    status: int | None = None
    """Exit status of the last attempt, if it failed."""

    where: str = ""
    """Machine and job that execute it, or the job that it is queued as."""

    log: tuple[str, ...] = ()
    """Why it failed (``logs.failure_reason``), or the last lines of its log if it has stopped."""

    differs: tuple[str, ...] = ()
    """``key then -> now`` of the settings in which the complete run there is another, or of the questions."""

    cost: float = field(default=0.0, repr=False)
    """Relative cost (weights x tokens that it trains itself)."""


@dataclass
class Overview:
    """The runs of a study, whose status is read repeatedly; runs that are done are read once."""

    runs: Sequence[RunConfig]
    """All runs of the study."""

    retries: int = 1
    """Number of retries of the executor."""

    lease: float = LEASE_SECONDS
    """Duration of leases, seconds."""

    questions: str | None = None
    """Fingerprint of the questions that the study asks; None where it is not known."""

    _done: dict[str, RunStatus] = field(default_factory=dict)

    def look(self, queue: Mapping[str, Queued] | None = None) -> list[RunStatus]:
        """Returns the present status of each run.

        Args:
            queue: states in a scheduler's queue, by the name of the run.
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
                    live=lambda lease: is_live(lease, owner=mine, seconds=self.lease),
                    questions=self.questions,
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
    """Returns the status of each run; see ``Overview``."""
    return Overview(runs, retries, lease).look(queue)


def _status(
    run: RunConfig,
    names: set[str],
    queued: Queued | None,
    *,
    retries: int,
    live: Callable[[Lease], bool],
    questions: str | None,
) -> RunStatus:
    row = _last_metrics(run.output / "metrics.jsonl") if "metrics.jsonl" in names else {}
    history = read_attempts(run.output) if ATTEMPTS in names else History()
    lease = read_lease(run.output) if LEASES in names and "DONE" not in names else None
    done = {"DONE", RUN_FILE} <= names
    record = _record(run) if done or (RUN_FILE in names and run.trunk is not None) else None
    differs = _foreign(run, record) if done and record is not None else []
    own = _trained_itself(run, record)
    state: State = "other settings"
    if done and record and not differs and (differs := _other_questions(run, record, questions)):
        state = "unasked"
    elif not differs:
        state = _state(run, names, history, queued, retries=retries, running=lease is not None and live(lease))
    last = history.attempts[-1] if history.attempts else None
    where = ""
    if state == "running" and lease is not None:
        where = lease.owner.host + (f", job {lease.owner.job}" if lease.owner.job else "")
    elif state == "queued" and queued is not None:
        where = " ".join(filter(None, (f"job {queued.job}" if queued.job else "", queued.state, queued.reason)))
    shown = failure_reason if state in ("failed", "given up") else last_lines if state == "stopped" else None
    return RunStatus(
        name=run.name,
        size=run.model.label,
        tokens=run.training.steps * run.training.step_tokens,
        state=state,
        share=1.0 if "DONE" in names else min(1.0, row.get("step", 0) / run.training.steps),
        own=own,
        loss=row.get("loss"),
        tokens_per_second=row.get("tokens_per_second"),
        attempts=len(history.attempts),
        seconds=last.ended - last.started if last and last.ended else None,
        whole=state in ("done", "unasked") and len(history.attempts) == 1,
        status=last.status if last and last.outcome == "failed" else None,
        where=where,
        log=tuple(shown(run.output, _SHOWN_LINES)) if shown else (),
        differs=tuple(differs),
        cost=cost(run, own),
    )


def _state(
    run: RunConfig, names: set[str], history: History, queued: Queued | None, *, retries: int, running: bool
) -> State:
    if "DONE" in names:
        return "done"
    if running:
        return "running"
    last = history.attempts[-1].outcome if history.attempts else None
    if last == "failed" and history.exhausted(run.settings_fingerprint(), retries):
        return "given up"
    if queued is not None:
        return "queued"
    if last == "failed":
        return "failed"
    return "stopped" if history.attempts or names & {LOG_NAME, "metrics.jsonl"} else "waiting"


def _record(run: RunConfig) -> dict[str, Any] | None:
    """Returns the record in a run's folder: an empty one if it is damaged, None if it cannot be read."""
    try:
        record = json.loads((run.output / RUN_FILE).read_bytes())
    except OSError:
        return None
    except ValueError:
        return {}
    return record if isinstance(record, dict) and "config" in record else {}


def _foreign(run: RunConfig, record: dict[str, Any]) -> list[str]:
    """Returns how the settings of the complete run in a folder differ; that its record is damaged, if it is."""
    return foreign_settings(run, record) if record else [f"{RUN_FILE} is damaged"]


def _other_questions(run: RunConfig, record: dict[str, Any], questions: str | None) -> list[str]:
    """Returns how what a complete run was asked differs from what the study asks; empty if it has those answers."""
    wanted = asking_of(questions, {"probes": run.probes.model_dump(mode="json")})
    return [] if has_answers(run.output, record, wanted) else own_asking(record).differences(wanted)


def _trained_itself(run: RunConfig, record: dict[str, Any] | None) -> float:
    """Returns the share of its steps that a run trains itself: all, if it began where its trunk had no checkpoint."""
    if not record or run.trunk is None:
        return own_share(run)
    branched = record.get("branched_from")
    step = branched.get("step") if isinstance(branched, dict) else 0
    return 1.0 - step / run.training.steps if isinstance(step, int) else own_share(run)


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))  # noqa: PTH208 - names alone, for tens of thousands of folders
    except OSError:
        return set()


def _last_metrics(path: Path) -> dict[str, Any]:
    """Returns the last whole row of training; empty if there is none."""
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
