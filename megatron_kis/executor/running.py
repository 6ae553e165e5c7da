"""The ``kis study run`` that is at work on a study on this machine: who it is, and ending it in order."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from megatron_kis.common.errors import JobError
from megatron_kis.executor.processes import began, parent


def end_executor(output: Path, *, seconds: float) -> list[int]:
    """Asks it to stop, as SIGTERM does: its cells save a checkpoint; and waits until it has.

    Args:
        output: the study's folder.
        seconds: how long to wait.

    Returns:
        The processes that ended; none where nothing is at work.

    Raises:
        JobError: it belongs to somebody else, or does not end.
    """
    found = executors(output)
    for process in found:
        try:
            os.kill(process, signal.SIGTERM)
        except ProcessLookupError:
            continue
        except PermissionError:
            raise JobError(f"process {process} works on this study, and is not yours to end") from None
    deadline = time.monotonic() + seconds
    while any(map(began, found)):
        if time.monotonic() > deadline:
            raise JobError(f"process {found[0]} was asked to end and has not after {seconds:.0f} s")
        time.sleep(0.1)
    return found


def executors(output: Path) -> list[int]:
    """Processes that hold the study's lock; its cells hold it, too, and are not among them."""
    lock = output / ".lock"
    if not lock.exists():
        return []
    wanted = lock.stat()
    holders = [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if _has_open(folder, wanted)]
    return [process for process in holders if parent(process) not in holders and process != os.getpid()]


def _has_open(process: Path, wanted: os.stat_result) -> bool:
    try:
        for descriptor in (process / "fd").iterdir():
            with suppress(OSError):
                found = descriptor.stat()
                if (found.st_ino, found.st_dev) == (wanted.st_ino, wanted.st_dev):
                    return True
    except OSError:  # it has ended, or is another user's
        return False
    return False
