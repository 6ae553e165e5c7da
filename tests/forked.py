"""``kis`` as a process of its own, forked by a server that has imported PyTorch and Megatron-Core once.

For tests that need what a command leaves and says, and not how a process of it starts: most of the time of a command
that trains a model this small is that import. Runs that such a command starts are forked out of it, with the session,
files, variables and last words of the processes that they stand for.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from megatron_kis.cli import main as cli
from megatron_kis.executor import run_process, starter
from tests.megatron_kis.ranks import SERVER

_KIS = [sys.executable, "-m", "megatron_kis"]


class Kis:
    """A command that was started."""

    def __init__(self, words: Sequence[str], folder: Path | None = None) -> None:
        """Starts ``kis`` with some words, in a folder or where this process is."""
        self._folder = tempfile.TemporaryDirectory(prefix="kis-")
        where = str(folder or Path.cwd())
        self._process = SERVER.Process(target=_begin, args=(list(words), where, dict(os.environ), self._folder.name))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """Its exit status, once it has ended; that of a signal is negative."""
        return self._process.exitcode

    poll = returncode.fget

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it has printed, after its end."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("kis", timeout or 0.0)
        files = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        printed = [file.read_text(encoding="utf-8") if file.exists() else "" for file in files]
        self._folder.cleanup()
        return printed[0], printed[1]


def run_kis(*words: object, folder: Path | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    command = Kis([str(word) for word in words], folder)
    output, errors = command.communicate(timeout)
    return subprocess.CompletedProcess(words, command.returncode or 0, output, errors)


def _begin(words: list[str], folder: str, variables: dict[str, str], printed: str) -> None:
    for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
        with open(Path(printed) / name, "wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    os.chdir(folder)
    _set_variables(variables)
    run_process.subprocess = SimpleNamespace(  # type: ignore[attr-defined]
        Popen=_start, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT
    )
    starter.may_fork = lambda *_: False  # they are forked here
    sys.exit(cli.main(words))


class _Forked:
    """A run of an executor, as ``subprocess.Popen`` would show it."""

    def __init__(self, process: multiprocessing.process.BaseProcess) -> None:
        self._process = process
        assert process.pid is not None
        self.pid: int = process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    poll = returncode.fget

    def wait(self) -> int:
        self._process.join()
        assert self.returncode is not None
        return self.returncode


def _start(
    arguments: list[str],
    *,
    stdin: int,
    stdout: IO[bytes],
    stderr: int,
    env: Mapping[str, str],
    start_new_session: bool,
    pass_fds: tuple[int, ...],
    preexec_fn: Callable[[], None],
) -> Any:
    """Starts a run for an executor."""
    assert (stdin, stderr, start_new_session) == (subprocess.DEVNULL, subprocess.STDOUT, True)
    if arguments[:3] != _KIS:  # a launcher of several ranks
        return subprocess.Popen(
            arguments,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            start_new_session=True,
            pass_fds=pass_fds,
            preexec_fn=preexec_fn,  # noqa: PLW1509
        )

    def begin() -> None:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(stdout.fileno(), 1)
        os.dup2(1, 2)
        for file in {int(path.name) for path in Path("/proc/self/fd").iterdir()} - {0, 1, 2, *pass_fds}:
            os.close(file) if os.path.exists(f"/proc/self/fd/{file}") else None  # noqa: PTH110
        preexec_fn()
        _set_variables(env)
        sys.exit(cli.main(arguments[3:]))

    process = multiprocessing.get_context("fork").Process(target=begin)
    process.start()
    return _Forked(process)


def _set_variables(variables: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)
