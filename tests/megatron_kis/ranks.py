"""Real processes of one run: started as ranks, watched through their log, killed, and asked how they ended.

They are forked by a server that has imported once what takes most of a short run's time: PyTorch with its compiler
(which Megatron-Core's optimizer asks for), Megatron-Core, what a study's report needs, and what files of tests import.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from megatron_kis.cli import main as cli
from megatron_kis.config.run import RunConfig
from tests.run_files import rows

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "megatron_kis.cli.train",
        "megatron_kis.training.trainer",
        "megatron_kis.data_tools.preparation.prepare",
        "megatron_kis.analysis.outputs",
        "megatron_kis.analysis.report.summary",
        "torch._dynamo",
        "tests.conftest",
    ]
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Rank:
    """One rank."""

    def __init__(
        self, arguments: list[str], env: dict[str, str], log: Path, before: Callable[[], None] | None = None
    ) -> None:
        """Starts ``kis`` with arguments, in a process of its own, after what is to be done there ``before``."""
        self._process = SERVER.Process(target=_command, args=(arguments, env, log, before))
        self._process.start()

    def poll(self) -> int | None:
        """Its exit status, once it has ended; that of a signal is negative."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, after its end."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            msg = f"still running after {timeout} s"
            raise TimeoutError(msg)
        return self._process.exitcode


def _command(arguments: list[str], env: dict[str, str], log: Path, before: Callable[[], None] | None) -> None:
    os.environ.update(env)
    with open(log, "wb") as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    if before is not None:
        before()
    sys.exit(cli.main(arguments))


class Ranks:
    """The processes of one ``kis train``; none outlives the block."""

    def __init__(
        self,
        config: RunConfig,
        size: int,
        *options: str,
        env: dict[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        self.config = config
        config.output.parent.mkdir(parents=True, exist_ok=True)
        path = config.output.parent / f"{config.name}.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
        shared = {
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "WORLD_SIZE": str(size),
            **(env or {}),
        }
        self.logs = [config.output.parent / f"{config.name}.{rank}.log" for rank in range(size)]
        self.processes = [
            Rank(["train", str(path), *options], {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, log, before)
            for rank, log in enumerate(self.logs)
        ]

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def wait_for_step(self, step: int) -> None:
        """Waits until the log shows a step, or all processes have ended."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and any(process.poll() is None for process in self.processes):
            if any(row["step"] >= step for row in rows(self.config.output, "metrics.jsonl") if row["kind"] == "train"):
                return
            time.sleep(0.005)

    def send(self, number: signal.Signals, rank: int) -> None:
        self.processes[rank].send_signal(number)

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def wait(self, seconds: float = 180) -> list[int]:
        """Exit statuses, after all have ended."""
        return [process.wait(timeout=seconds) for process in self.processes]

    def said(self) -> str:
        """What all ranks printed."""
        return "".join(log.read_text(encoding="utf-8", errors="replace") for log in self.logs)


def finish(config: RunConfig, size: int, *options: str, before: Callable[[], None] | None = None) -> str:
    """Runs to the end, and returns what was printed."""
    with Ranks(config, size, *options, before=before) as ranks:
        assert ranks.wait() == [0] * size, ranks.said()
        return ranks.said()
