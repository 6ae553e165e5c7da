"""The log of a run, which all its attempts share: its last lines, and why the last attempt failed."""

from __future__ import annotations

import re
from pathlib import Path

from megatron_kis.common.errors import printable
from megatron_kis.executor.attempts import read_attempts

LOG_NAME = "log.txt"
ATTEMPT = "==== attempt "
"""Beginning of the line that the executor writes before each attempt."""

_ERROR = "kis: error:"
_CONSEQUENCE = "another rank of this run has ended"
"""Message of a rank that noticed the end of another one. That rank says why; or it was killed, and the launcher's last
lines tell more."""

_TAIL = 1 << 18
"""Bytes at the end of a log in which the reason is sought; what torchrun prints after it takes a few thousand."""

_SEQUENCES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
"""Escape sequences that set colours, move the cursor or name the window (ECMA-48)."""


def last_lines(folder: Path, count: int = 5) -> list[str]:
    """Returns the last lines of the log in a run's folder that are not empty."""
    return [line for line in _tail(folder, 8192) if line.strip()][-count:]


def failure_reason(folder: Path, count: int = 5) -> list[str]:
    """Returns why the last attempt of a run failed.

    Returns:
        What its first failing rank wrote, or the last line of the log that begins with ``kis: error:``; where there is
        neither (a process that was killed), the last ``count`` lines of the log.
    """
    attempts = read_attempts(folder).attempts
    if attempts and attempts[-1].outcome == "failed" and attempts[-1].error:
        return [f"{_ERROR} {attempts[-1].error}"]
    for line in reversed(_tail(folder, _TAIL)):
        if line.startswith(_ERROR) and _CONSEQUENCE not in line:
            return [line]
        if line.startswith(ATTEMPT):
            break
    return last_lines(folder, count)


def for_terminal(text: str) -> str:
    """Returns a piece of a log that is safe to print on a terminal: without colours, one line per carriage return."""
    plain = _SEQUENCES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return printable(plain, keep="\n\t")


def _tail(folder: Path, size: int) -> list[str]:
    path = folder / LOG_NAME
    if not path.exists():
        return []
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read().decode("utf-8", errors="replace").split("\n")
