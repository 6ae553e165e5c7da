"""Runs a study's runs on this machine, some side by side, each a process of its own.

A failed run does not stop the others. Ctrl-C and a kill lose at most the runs in flight: whatever is DONE is skipped
when the study is run again. A lock in the study's folder keeps two executors from the same runs. The runs share it, and
ask the kernel to be ended when the executor dies: even a SIGKILL leaves no run behind that a second one would meet.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import yaml

from megatron_kis.config import RunConfig
from megatron_kis.files import locked, write_text
from megatron_kis.study.config import ExecutorConfig

LOG_NAME = "log.txt"
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 5.0


@dataclass(eq=False)
class _Job:
    run: RunConfig
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    started: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Progress:
    """Where the execution stands."""

    done: tuple[str, ...]
    """Runs that are DONE, those skipped included."""

    failed: tuple[str, ...]
    """Runs that ended without DONE."""

    running: tuple[str, ...]
    """Runs in flight."""

    total: int
    """Runs of the study."""


Report = Callable[[Progress], None]


def execute(
    runs: Sequence[RunConfig], *, done: Sequence[str], settings: ExecutorConfig, lock: int, report: Report
) -> Progress:
    """Executes the runs that are not done.

    Args:
        runs: all runs of the study, in the order in which to start them.
        done: names of those that are complete.
        settings: how many side by side.
        lock: file descriptor of the study's lock (``study_lock``), which the runs share.
        report: called whenever something changes and about once a second.

    Returns:
        How it ended.
    """
    waiting = [run for run in runs if run.name not in done]
    finished, failed = list(done), list[str]()
    workers = settings.workers or os.cpu_count() or 1
    jobs: list[_Job] = []

    def progress() -> Progress:
        return Progress(tuple(finished), tuple(failed), tuple(job.run.name for job in jobs), len(runs))

    with _stopped_by_signals():
        try:
            last_report = 0.0
            while waiting or jobs:
                changed = False
                while waiting and len(jobs) < workers:
                    jobs.append(_start(waiting.pop(0), settings, lock))
                    changed = True
                for job in [job for job in jobs if job.process.poll() is not None]:
                    jobs.remove(job)
                    job.log.close()
                    complete = job.process.returncode == 0 and (job.run.output / "DONE").exists()
                    (finished if complete else failed).append(job.run.name)
                    changed = True
                if changed or time.monotonic() - last_report >= 1.0:
                    last_report = time.monotonic()
                    report(progress())
                time.sleep(_POLL_SECONDS)
        finally:
            _stop(jobs)
    return progress()


def _start(run: RunConfig, settings: ExecutorConfig, lock: int) -> _Job:
    run.output.mkdir(parents=True, exist_ok=True)
    config_path = run.output / "config.yaml"
    write_text(config_path, yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False))
    processes = run.parallel.tensor * run.parallel.pipeline
    command = [sys.executable, "-m", "megatron_kis", "train", str(config_path)]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *launcher, "-m", "megatron_kis", "train", str(config_path)]
    threads = str(settings.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    log = open(run.output / LOG_NAME, "wb")  # noqa: SIM115 - closed when the run ends
    # A session of its own: Ctrl-C reaches the executor alone, which then stops its runs in order.
    process = subprocess.Popen(
        command,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
        pass_fds=(lock,),
        preexec_fn=_end_with_parent,  # noqa: PLW1509 - one system call, its function looked up before the fork
    )
    return _Job(run, process, log)


_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None


def _end_with_parent() -> None:
    """In a new run, before it starts: let the kernel send SIGTERM when the executor dies, however it dies."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))


def _stop(jobs: list[_Job]) -> None:
    """Ends what is in flight: asks, waits a little, then kills whole process groups."""
    for job in jobs:
        _signal(job, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_SECONDS
    for job in jobs:
        try:
            job.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal(job, signal.SIGKILL)
            job.process.wait()
        job.log.close()


def _signal(job: _Job, number: signal.Signals) -> None:
    try:
        os.killpg(job.process.pid, number)
    except ProcessLookupError:
        return


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


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """SIGTERM stops the runs as Ctrl-C does, and so does a SIGINT that a shell's background job would ignore."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def last_lines(run: RunConfig, count: int = 5) -> list[str]:
    """The last lines of a run's log."""
    path = run.output / LOG_NAME
    if not path.exists():
        return []
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return [line for line in lines if line.strip()][-count:]
