"""The process of one attempt: started with its slot and log, asked to stop, killed, and its exit status read."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import yaml

from megatron_kis.common.ending import VARIABLE, Ending, read_ending
from megatron_kis.common.files import write_text
from megatron_kis.executor.attempts import read_attempts, start_attempt
from megatron_kis.executor.interface import Launcher, Run, Slot
from megatron_kis.executor.lease import HeldLease
from megatron_kis.executor.logs import ATTEMPT, LOG_NAME
from megatron_kis.executor.processes import before_start, descendants, kill_tree
from megatron_kis.executor.starter import Process, Starter

_ENDING = ".status-{}.json"  # in the run's folder, by the number of the attempt


@dataclass(eq=False)
class RunProcess:
    """A run that is being executed."""

    run: Run
    """The run that is executed."""

    slot: Slot
    """Its GPUs and cores."""

    lease: HeldLease
    """The lease under which it is executed."""

    process: Process
    """Its process, or that of its launcher."""

    signal_children: bool
    """Whether a request to stop goes to the process's children and not to itself."""

    log: IO[bytes]
    """Its log, open for the process to write."""

    ending: Path
    """File in which its first failing rank says why it failed."""

    lost: bool = False
    """Whether another executor has taken the run over."""

    def ask_to_stop(self) -> None:
        """Asks the run to save a checkpoint and end."""
        process = self.process.pid
        asked = descendants(process, depth=1) if self.signal_children else []
        for number in asked or [process]:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGTERM)

    def kill(self) -> None:
        """Kills the run with all processes that it started."""
        kill_tree(self.process.pid)

    def read_ending(self) -> Ending | None:
        """Returns what the first failing rank wrote: launchers of several ranks end with a status of their own."""
        ending = read_ending(self.ending) if self.process.returncode else None
        with suppress(OSError):
            self.ending.unlink(missing_ok=True)
        return ending


def start_run(
    run: Run,
    slot: Slot,
    lease: HeldLease,
    launcher: Launcher,
    *,
    lock: int | None,
    starter: Starter | None = None,
) -> RunProcess:
    """Starts an attempt of a run, and writes its configuration, the attempt and the head of its log.

    Args:
        run: the run.
        slot: its GPUs and cores.
        lease: its lease.
        launcher: returns its command.
        lock: file descriptor for the process to inherit, if there is one.
        starter: starts runs that may be forked; None: each is started by its command.
    """
    config = run.output / "config.yaml"
    write_text(config, yaml.safe_dump(run.absolute_content(), sort_keys=False))
    command = launcher(run, config, slot)
    restart = ["--restart"] if read_attempts(run.output).restart else []
    start_attempt(lease, run.settings_fingerprint())
    for left in run.output.glob(_ENDING.format("*")):  # by an executor that was killed
        left.unlink(missing_ok=True)
    # A name that was never looked up before: NFS remembers for a while that a file is not there.
    ending = run.output.resolve() / _ENDING.format(lease.number)
    log = open(run.output / LOG_NAME, "ab")  # noqa: SIM115 - closed when the run ends
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    log.write(f"{ATTEMPT}{lease.number}, {when}, {lease.owner}\n".encode())
    log.flush()
    arguments = [*command.arguments, *restart]
    environment, own = {**os.environ, **command.environment}, {VARIABLE: str(ending)}
    process: Process | None = None
    if starter is not None:
        written = run.output / LOG_NAME
        process = starter.start(arguments, run, slot, environment=environment, own=own, log=written, lock=lock)
    if process is None:
        # A session of its own: Ctrl-C reaches the executor alone, which then stops its runs in order.
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment | own,
            start_new_session=True,
            pass_fds=() if lock is None else (lock,),
            preexec_fn=before_start(slot.cores),  # noqa: PLW1509 - two system calls, looked up before the fork
        )
    lease.record_process(process.pid)
    return RunProcess(run, slot, lease, process, command.signal_children, log, ending)
