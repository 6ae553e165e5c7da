"""The starter of runs: imports what ``kis train`` needs, then forks a process for each run that it is told to start.

    python -m megatron_kis.cli.starter FILE_DESCRIPTOR

``executor.starter`` starts it, and exchanges lines of JSON with it through the socket of that descriptor. With each
line comes the end of a pipe, which tells the process that is forked for it when to begin.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
from pathlib import Path
from typing import Any

from megatron_kis.cli.main import main
from megatron_kis.cli.train import import_trainer


def serve(link: socket.socket) -> dict[str, Any] | None:
    """Starts runs until the other end of ``link`` is closed.

    Returns:
        In the process of a run: what the executor asked for. In the starter: None, at the end.
    """
    from megatron_kis.executor.processes import before_start

    received = b""
    pipes: list[int] = []  # of requests
    running: dict[int, int] = {}  # file descriptors of processes
    while True:
        ready = set(select.select([link.fileno(), *running], [], [])[0])
        for descriptor in ready & running.keys():
            process = running.pop(descriptor)
            os.close(descriptor)
            status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            link.sendall(json.dumps({"ended": process, "status": status}).encode() + b"\n")
        if link.fileno() not in ready:
            continue
        block, passed, *_ = socket.recv_fds(link, 1 << 16, 1)
        pipes += passed
        if not block:
            return None
        *lines, received = (received + block).split(b"\n")
        for line in lines:
            wanted: dict[str, Any] = json.loads(line)
            cores = wanted["cores"]
            prepare = before_start(None if cores is None else tuple(cores))
            begin = pipes.pop(0)
            process = os.fork()
            if process == 0:
                os.setsid()
                link.close()
                for descriptor in running:
                    os.close(descriptor)
                prepare()
                if not os.read(begin, 1):  # too late
                    os._exit(0)
                os.close(begin)
                return wanted
            os.close(begin)
            running[os.pidfd_open(process)] = process
            link.sendall(json.dumps({"started": process}).encode() + b"\n")


def threads() -> int:
    """Returns the number of this process's threads; a fork keeps only one of them."""
    return len(list(Path("/proc/self/task").iterdir()))


def run() -> int:
    """Imports, serves, and in a run's process trains."""
    link = socket.socket(fileno=int(sys.argv[1]))
    import_trainer()
    if threads() > 1 or sys.modules["torch"].cuda.is_initialized():
        return 1
    wanted = serve(link)
    if wanted is None:
        return 0
    with open(wanted["log"], "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(1, 2)
    os.environ.clear()
    os.environ.update(wanted["environment"])
    sys.argv = ["kis", *wanted["arguments"]]
    return main(wanted["arguments"])


if __name__ == "__main__":
    sys.exit(run())
