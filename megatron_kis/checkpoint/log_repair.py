"""The logs of a run, brought back to a checkpoint: what was written after it is dropped, what is lost is restored.

A checkpoint keeps a copy of both logs as they were. Where there is none (an older checkpoint, or a damaged copy) the
rows that are still in the run's own log are used, and the loss is reported.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from megatron_kis.checkpoint.folders import Checkpoint
from megatron_kis.common.files import steadily, write_bytes

METRICS, PROBES = "metrics.jsonl", "probes.jsonl"
LOGS = (METRICS, PROBES)


@dataclass
class RepairedLogs:
    """Result of bringing a run's logs back to a checkpoint."""

    sizes: dict[str, int] = field(default_factory=dict)
    """Number of bytes of each log that stay."""

    problems: dict[str, str] = field(default_factory=dict)
    """Problem of each log that was not as written, and what was done about it."""

    lost: set[str] = field(default_factory=set)
    """Kinds of rows that are missing at the checkpoint's own step, of logs that lost some: train, validation, probe."""


def content_at(checkpoint: Checkpoint, run: Path, name: str) -> tuple[bytes, str | None]:
    """Returns a log as it was at a checkpoint.

    Args:
        checkpoint: the checkpoint.
        run: folder of the run that wrote it.
        name: name of the log.

    Returns:
        The rows, and how many bytes of them are lost, in words; None if nothing is.

    Raises:
        InputError, JobError: it cannot be read.
    """
    size = int(checkpoint.manifest["logs"][name])
    copied = checkpoint.manifest["files"].get(name)
    if copied is not None:
        copy = _content(checkpoint.folder / name)
        if hashlib.sha256(copy).hexdigest() == copied["sha256"]:
            return copy, None
    content = _content(run / name)[:size]
    if len(content) == size:
        return content, None
    kept = b"".join(line for line in content.splitlines(keepends=True) if _reached(line) <= checkpoint.step)
    return kept, f"lost {size - len(kept)} of its {size} bytes up to step {checkpoint.step}"


def repair_logs(checkpoint: Checkpoint, run: Path) -> RepairedLogs:
    """Brings both logs back to a checkpoint.

    Args:
        checkpoint: checkpoint of this run.
        run: the run's folder.

    Raises:
        InputError, JobError: something cannot be read.
    """
    repaired = RepairedLogs()
    found = {name: (*content_at(checkpoint, run, name), _content(run / name)) for name in LOGS}
    for name, (content, loss, there) in found.items():
        repaired.sizes[name] = len(content)
        if there[: len(content)] != content or loss:
            repaired.problems[name] = loss or "had changed since it was written; restored from the checkpoint"
            write_bytes(run / name, content)
        if loss:
            kinds = {"probe"} if name == PROBES else {"train", "validation"}
            repaired.lost |= kinds - _kinds(content, checkpoint.step)
    return repaired


def _content(path: Path) -> bytes:
    def read() -> bytes:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return b""

    return steadily(read, path)


def _row(line: bytes) -> dict[str, object] | None:
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _reached(line: bytes) -> float:
    """Returns the step of a row; infinity for a line that is no row."""
    row = _row(line)
    step = None if row is None else row.get("step")
    return step if isinstance(step, int) else float("inf")


def _kinds(content: bytes, step: int) -> set[str]:
    """Returns the kinds of the rows of a step."""
    rows = [row for line in content.splitlines(keepends=True) if (row := _row(line)) and row.get("step") == step]
    return {str(row.get("kind", "probe")) for row in rows}
