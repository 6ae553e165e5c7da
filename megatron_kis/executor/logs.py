"""The log of a cell, which all its attempts share: its last lines, and why the last attempt failed."""

from __future__ import annotations

import re

from megatron_kis.common.errors import printable
from megatron_kis.config.run import RunConfig
from megatron_kis.executor.attempts import read_attempts

LOG_NAME = "log.txt"
ATTEMPT = "==== attempt "
"""How the line begins that the executor writes before each attempt."""

_ERROR = "kis: error:"
_CONSEQUENCE = "another rank of this run has ended"
"""What a rank says that has met the end of another one. That one says why; or it was killed, and the launcher's last
lines tell more."""

_TAIL = 1 << 18
"""Bytes from the end of a log in which the reason is looked for; what torchrun prints after it takes a few thousand."""

_SEQUENCES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
"""Sequences that set colours, move the cursor or name the window (ECMA-48)."""


def last_lines(run: RunConfig, count: int = 5) -> list[str]:
    """The last lines of a run's log that are not empty."""
    return [line for line in _tail(run, 8192) if line.strip()][-count:]


def reason(run: RunConfig, count: int = 5) -> list[str]:
    """Why the last attempt of a cell failed.

    Returns:
        What its first failing rank wrote, or the last line of the log that begins with ``kis: error:``; where there is
        neither (a process that was killed), the last ``count`` lines of the log.
    """
    attempts = read_attempts(run.output).attempts
    if attempts and attempts[-1].outcome == "failed" and attempts[-1].error:
        return [f"{_ERROR} {attempts[-1].error}"]
    for line in reversed(_tail(run, _TAIL)):
        if line.startswith(_ERROR) and _CONSEQUENCE not in line:
            return [line]
        if line.startswith(ATTEMPT):
            break
    return last_lines(run, count)


def for_terminal(text: str) -> str:
    """A piece of a log as one that changes nothing on a terminal: without colours, a line for each return."""
    plain = _SEQUENCES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return printable(plain, keep="\n\t")


def _tail(run: RunConfig, size: int) -> list[str]:
    path = run.output / LOG_NAME
    if not path.exists():
        return []
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read().decode("utf-8", errors="replace").split("\n")
