"""Commands of ``benchmarks.gpu`` without the seconds in which each would import PyTorch and Megatron-Core."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests.megatron_kis.ranks import SERVER, free_port

RANKS = "--nproc-per-node="

_ONE = threading.Lock()
"""Starting one process looks after the others, too, and the status of each can be read but once."""


class Fork:
    """What ``benchmarks.gpu.commands`` needs of ``subprocess.Popen``, for a module of Python: forked from a server.

    torchrun's ranks are forked, too, and the first that fails ends the others.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        stdout: IO[bytes],
        stderr: IO[bytes],
        cwd: Path,
        env: Mapping[str, str],
        **_: Any,
    ) -> None:
        """Starts it in a session of its own."""
        assert arguments[:2] == [sys.executable, "-m"], arguments
        self.args = arguments
        self._process = SERVER.Process(
            target=_begin, args=(list(arguments[2:]), stdout.name, stderr.name, str(cwd), dict(env))
        )
        with _ONE:
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, that of a signal negative; None while it runs."""
        with _ONE:
            return self._process.exitcode

    def poll(self) -> int | None:
        """Its exit status."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, after its end."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.returncode) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(0.01)
        return status


def _begin(words: list[str], output: str, errors: str, folder: str, environment: dict[str, str]) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for name, number in ((output, 1), (errors, 2)):
        file = os.open(name, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    if words[0] == "torch.distributed.run":
        (ranks,) = (int(word.removeprefix(RANKS)) for word in words if word.startswith(RANKS))
        _fork_ranks(ranks, words[words.index("-m") + 1 :])
    else:
        _run(words)


def _run(words: list[str]) -> None:
    """Runs a module as ``python -m`` does."""
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def _fork_ranks(ranks: int, words: list[str]) -> None:
    """Runs a module as all ranks of one run."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), WORLD_SIZE=str(ranks))
    os.environ.update(LOCAL_WORLD_SIZE=str(ranks))
    children = [_fork_rank(rank, words) for rank in range(ranks)]
    while children:
        ended, status = os.wait()
        children.remove(ended)
        if status:
            for child in children:
                os.kill(child, 9)
            sys.exit(1)


def _fork_rank(rank: int, words: list[str]) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        _run(words)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
