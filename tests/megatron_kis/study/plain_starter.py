"""A starter that imports no trainer. Its runs do one of the few things below in the current folder.

test_starter.py copies this file to a folder of its own and has it started there. While a file ``slow`` is there, it
forks nothing.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

from megatron_kis.cli.starter import serve

_fork = os.fork


def slow_fork() -> int:
    while Path("slow").exists():
        time.sleep(0.02)
    return _fork()


def wait_for(name: str) -> None:
    while not Path(name).exists():
        time.sleep(0.02)


def train(*_: str) -> None:
    """What the executor asks for; it does not end by itself."""
    time.sleep(600)


def touch(name: str) -> None:
    """Ends at once, and leaves a file."""
    Path(name).touch()


def end() -> None:
    """Ends with status 3 when there is a file ``end``."""
    wait_for("end")
    sys.exit(3)


def save(status: str) -> None:
    """Says ``ready``; takes 1.5 s to save when it is asked to stop, and ends with a status. With 0 the run is DONE."""

    def saved(*_: object) -> None:
        time.sleep(1.5)
        if status == "0":
            Path("runs/a/DONE").touch()
        sys.exit(int(status))

    signal.signal(signal.SIGTERM, saved)
    Path("ready").touch()
    wait_for("never")


if __name__ == "__main__":
    os.fork = slow_fork
    wanted = serve(socket.socket(fileno=int(sys.argv[1])))
    if wanted is not None:
        does, *arguments = wanted["arguments"]
        {"train": train, "touch": touch, "end": end, "save": save}[does](*arguments)
