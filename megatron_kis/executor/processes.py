"""Processes of this machine, as the kernel shows them: whether they live, what they started, and their end."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_STATE, _PARENT, _START = 0, 1, 19  # fields of /proc/PID/stat after the program's name (proc(5))
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None


def start_ticks(process: int) -> int:
    """Returns when a process began, in ticks since the machine was started; 0 if it is gone, or is a zombie."""
    fields = _stat(process)
    return 0 if not fields or fields[_STATE] in "ZX" else int(fields[_START])


def parent(process: int) -> int:
    """Returns the parent of a process; 0 if it is gone."""
    fields = _stat(process)
    return int(fields[_PARENT]) if fields else 0


def descendants(process: int, *, depth: int | None = None) -> list[int]:
    """Returns the processes that a process started, and those that they started, down to ``depth`` levels."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        children.setdefault(parent(int(folder.name)), []).append(int(folder.name))
    found: list[int] = []
    level = [process]
    while level and depth != 0:
        level = [child for one in level for child in children.get(one, ())]
        found += level
        depth = None if depth is None else depth - 1
    return found


def kill_tree(process: int) -> None:
    """Kills a process that leads a session, with all that it started; torchrun's ranks have sessions of their own."""
    for number in [process, *descendants(process)]:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)


def before_start(cores: tuple[int, ...] | None) -> Callable[[], None]:
    """Returns what a new process does first: it takes its cores, and asks for a SIGTERM when its parent dies.

    The kernel sends that signal however the parent dies. A process whose parent died before it could ask for that does
    not start.
    """
    starter = os.getpid()

    def prepare() -> None:
        if cores is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)
        if _prctl is not None:
            _prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
            if os.getppid() != starter:
                os._exit(128 + signal.SIGTERM)

    return prepare


def _stat(process: int) -> list[str]:
    """Returns the fields after the program's name, which may hold anything, even brackets; none if it is gone."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
