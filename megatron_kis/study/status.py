"""Where the runs of a study stand, read from their folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_kis.config import RunConfig
from megatron_kis.errors import InputError
from megatron_kis.files import read_json_lines
from megatron_kis.study.executor import LOG_NAME, last_lines


@dataclass(frozen=True)
class RunStatus:
    """One run."""

    name: str
    state: str
    """``done``, ``unfinished`` (in flight, or cut off) or ``waiting``."""

    share: float
    """Share of its steps that the log shows."""

    loss: float | None
    """Last training loss, nats a token."""

    tokens_per_second: float | None
    """Last speed."""

    last_line: str
    """Of its log, if it is unfinished."""


def status_of(runs: Sequence[RunConfig]) -> list[RunStatus]:
    """The status of each run."""
    return [_status(run) for run in runs]


def _status(run: RunConfig) -> RunStatus:
    row = _last_metrics(run)
    loss = row.get("loss") if row else None
    speed = row.get("tokens_per_second") if row else None
    if (run.output / "DONE").exists():
        return RunStatus(run.name, "done", 1.0, loss, speed, "")
    if not (run.output / LOG_NAME).exists() and row is None:
        return RunStatus(run.name, "waiting", 0.0, None, None, "")
    share = row["step"] / run.training.steps if row else 0.0
    return RunStatus(run.name, "unfinished", share, loss, speed, "".join(last_lines(run, 1)))


def _last_metrics(run: RunConfig) -> dict[str, float] | None:
    path = run.output / "metrics.jsonl"
    if not path.exists():
        return None
    last = None
    try:
        for _, row in read_json_lines(path, tolerate_torn_tail=True):
            if row.get("kind") == "train" and isinstance(row.get("step"), int):
                last = row
    except InputError:
        return last
    return last
