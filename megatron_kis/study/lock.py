"""The lock of a study: ``kis study run`` holds it while it works, and is found and ended by it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from megatron_kis.common.errors import JobError
from megatron_kis.common.files import locked
from megatron_kis.executor.processes import parent, start_ticks


@contextmanager
def study_lock(folder: Path) -> Iterator[int]:
    """Holds the lock of a study, without which nobody changes its data or starts its runs.

    Yields:
        Its file descriptor, for the runs to inherit.

    Raises:
        JobError: another process holds it.
    """
    with locked(folder, "kis study run") as lock:
        yield lock


def end_study_run(output: Path, *, seconds: float) -> list[int]:
    """Sends SIGTERM to the ``kis study run`` of a study, whose runs then save a checkpoint; waits until it has ended.

    Args:
        output: folder of the study.
        seconds: how long to wait.

    Returns:
        The processes that ended; none where nothing was at work.

    Raises:
        JobError: it belongs to somebody else, or does not end.
    """
    found = lock_holders(output)
    for process in found:
        try:
            os.kill(process, signal.SIGTERM)
        except ProcessLookupError:
            continue
        except PermissionError:
            raise JobError(f"process {process} works on this study and belongs to another user") from None
    deadline = time.monotonic() + seconds
    while any(map(start_ticks, found)):
        if time.monotonic() > deadline:
            raise JobError(f"process {found[0]} was asked to stop and still runs after {seconds:.0f} s")
        time.sleep(0.1)
    return found


def lock_holders(output: Path) -> list[int]:
    """Returns the processes that hold the study's lock, without the runs that inherited it."""
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
