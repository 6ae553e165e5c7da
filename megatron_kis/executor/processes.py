"""Processes of this machine, as the kernel shows them: whether they live, and what came of them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

_STATE, _PARENT, _BEGAN = 0, 1, 19  # fields of /proc/PID/stat behind the program's name (proc(5))
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None


def began(process: int) -> int:
    """When a process began, ticks since the machine was started; 0 if it is gone, or a corpse nobody has collected."""
    fields = _stat(process)
    return 0 if not fields or fields[_STATE] in "ZX" else int(fields[_BEGAN])


def parent(process: int) -> int:
    """Who started a process; 0 if it is gone."""
    fields = _stat(process)
    return int(fields[_PARENT]) if fields else 0


def descendants(process: int, *, depth: int | None = None) -> list[int]:
    """Processes that a process started, and those that they did, so many levels down."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        children.setdefault(parent(int(folder.name)), []).append(int(folder.name))
    found, level = list[int](), [process]
    while level and depth != 0:
        level = [child for one in level for child in children.get(one, ())]
        found += level
        depth = None if depth is None else depth - 1
    return found


def prepared(cores: tuple[int, ...] | None) -> Callable[[], None]:
    """For a new process, before it starts: its cores; and let the kernel send SIGTERM when its parent dies, however.

    One whose parent died before it could ask for that does not start.
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
    """The fields behind the name, which may hold anything, brackets too; none if the process is gone."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
