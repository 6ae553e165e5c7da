"""Runs forked by one process that has imported what they need, so that a study of small models imports it once.

A process of ``kis train`` takes seconds to import PyTorch and Megatron-Core; a run of ten thousand parameters trains
for a few more. The starter (``cli.starter``) imports them, opens nothing, has one thread, and forks a process for each
run: with the run's own session, cores, variables and log, like one that was started by its command. It is used where
that is sound: on Linux, for runs of one rank and one thread that use no GPU. Where it is not available, or has ended,
runs are started by their commands.

The kernel ends the starter with the executor, and its runs with the starter: they save, as if they were asked to stop.
A forked process begins its run only when the executor says so, through a pipe that came with the request. One that the
starter forks too late finds that pipe closed, and ends: its run has been started by its command in the meantime.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from megatron_kis.executor.attempts import STOPPED
from megatron_kis.executor.interface import Run, Slot
from megatron_kis.executor.processes import before_start, start_ticks

MODULE = "megatron_kis.cli.starter"
GO = b"."
"""What the executor sends to a forked process to start its run."""

_PATIENCE = 120.0  # seconds for the imports, on a machine at full load
_WAIT = 0.05


class Process(Protocol):
    """What the executor asks of a run's process; ``subprocess.Popen`` is one."""

    pid: int

    @property
    def returncode(self) -> int | None:
        """Exit status once it has ended; negative for a signal."""

    def poll(self) -> int | None:
        """Returns the exit status, or None while it runs."""

    def wait(self) -> int:
        """Waits for the end."""


class Starter:
    """The starter of an executor: begun with the first run that it may start, ended with the executor."""

    def __init__(self) -> None:
        """Begins nothing yet."""
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._received = b""
        self._running: set[int] = set()
        self._statuses: dict[int, int] = {}
        self._failed = False

    def start(
        self,
        arguments: list[str],
        run: Run,
        slot: Slot,
        *,
        environment: Mapping[str, str],
        own: Mapping[str, str],
        log: Path,
        lock: int | None,
    ) -> Process | None:
        """Starts a run, if it is one that may be forked and the starter is there.

        Args:
            arguments: those of the run's command: ``PYTHON -m megatron_kis train ...``.
            run: the run.
            slot: its share of the machine.
            environment: variables that the starter has as well; PyTorch reads some of them when it is imported.
            own: variables of this run alone.
            log: file to which it appends what it says.
            lock: file descriptor that the processes inherit.

        Returns:
            The process; None if the run is to be started by its command.
        """
        if not may_fork(run, slot) or self._failed or arguments[:3] != [sys.executable, "-m", "megatron_kis"]:
            return None
        wanted = {
            "arguments": arguments[3:],
            "environment": {**environment, **own},
            "log": str(log.resolve()),
            "cores": slot.cores,
        }
        try:
            if self._link is None:
                self._begin(environment, lock)
            process = self._request(json.dumps(wanted).encode() + b"\n")
        except OSError:
            process = None
        if process is None:
            self._failed = True
            if not self._running:  # those that it has started end with it
                self.close()
            return None
        self._running.add(process)
        return _Forked(process, run.output / "DONE", self)

    def _request(self, wanted: bytes) -> int | None:
        """Has a process forked, and lets it begin; None, and it never begins, if it is not there in time."""
        assert self._link is not None
        begin, go = os.pipe()
        try:
            sent = socket.send_fds(self._link, [wanted], [begin])
            self._link.sendall(wanted[sent:])
            process = self._receive(until=time.monotonic() + _PATIENCE)
            if process is not None:
                os.write(go, GO)
            return process
        finally:
            os.close(go)
            os.close(begin)

    def _begin(self, environment: Mapping[str, str], lock: int | None) -> None:
        self._link, theirs = socket.socketpair()
        self._link.settimeout(_PATIENCE)
        with theirs:
            kept = (theirs.fileno(),) if lock is None else (theirs.fileno(), lock)
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=dict(environment),
                start_new_session=True,
                pass_fds=kept,
                preexec_fn=before_start(None),  # noqa: PLW1509 - two system calls, looked up before the fork
            )

    def _receive(self, *, until: float | None = None) -> int | None:
        """Reads the starter's messages: ends of runs and, until a deadline, the process that it has just started."""
        while self._link is not None:
            line, found, rest = self._received.partition(b"\n")
            if found:
                self._received = rest
                said: dict[str, Any] = json.loads(line)
                if "ended" in said:
                    self._running.discard(said["ended"])
                    self._statuses[said["ended"]] = said["status"]
                elif until is not None:
                    return int(said["started"])
                continue
            patience = 0.0 if until is None else max(0.0, until - time.monotonic())
            if not select.select([self._link], [], [], patience)[0]:
                return None
            try:
                block = self._link.recv(1 << 16)
            except OSError:
                block = b""
            if not block:  # it has ended
                self.close()
                self._failed = True
            self._received += block
        return None

    def status(self, process: int) -> int | None:
        """Returns the exit status of a process started here, once; None while it runs, or if it is not known."""
        self._receive()
        return self._statuses.pop(process, None)

    @property
    def is_closed(self) -> bool:
        """Whether the starter has ended, and sends no more messages."""
        return self._link is None

    def close(self) -> None:
        """Ends the starter; the kernel then asks what it has started to end, too."""
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class _Forked:
    """A run that the starter has started."""

    def __init__(self, process: int, done: Path, starter: Starter) -> None:
        self.pid = process
        self._done = done
        self._starter = starter
        self._began = start_ticks(process)
        self._status: int | None = None

    @property
    def returncode(self) -> int | None:
        return self._status

    def poll(self) -> int | None:
        if self._status is None:
            self._status = self._starter.status(self.pid)
        if self._status is None and self._starter.is_closed and self._is_gone():
            # Its exit status is lost: either it was complete, or it was asked to end with the starter.
            self._status = 0 if self._done.exists() else STOPPED
        return self._status

    def _is_gone(self) -> bool:
        return not self._began or start_ticks(self.pid) != self._began

    def wait(self) -> int:
        while (status := self.poll()) is None:
            time.sleep(_WAIT)
        return status


def may_fork(run: Run, slot: Slot) -> bool:
    """Returns whether a run may be forked: with more threads PyTorch's would exist before the fork and be lost."""
    return hasattr(os, "pidfd_open") and run.ranks == slot.threads == 1 and slot.gpus is None
