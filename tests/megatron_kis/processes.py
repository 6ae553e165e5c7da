"""Real processes of one run: started as ranks, watched through their log, killed, and asked how they ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from megatron_kis.config import RunConfig


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """Whole rows of a JSON-lines file."""
    path = folder / name
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def losses(folder: Path) -> dict[int, float]:
    """Training loss by step; a step that is reported twice is an error."""
    found = [(row["step"], row["loss"]) for row in rows(folder, "metrics.jsonl") if row["kind"] == "train"]
    assert len(dict(found)) == len(found), "a step is reported twice"
    return dict(found)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Ranks:
    """The processes of one ``kis train``; none outlives the block."""

    def __init__(self, config: RunConfig, size: int, *options: str, env: dict[str, str] | None = None) -> None:
        self.config = config
        config.output.parent.mkdir(parents=True, exist_ok=True)
        path = config.output.parent / f"{config.name}.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
        command = [sys.executable, "-m", "megatron_kis", "train", str(path), *options]
        shared = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
                  "WORLD_SIZE": str(size), **(env or {})}  # fmt: skip
        self.logs = [config.output.parent / f"{config.name}.{rank}.log" for rank in range(size)]
        self.processes = [
            self.start(command, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, self.logs[rank])
            for rank in range(size)
        ]

    def start(self, command: list[str], env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        """One rank, as a program of its own."""
        with open(log, "wb") as output:
            return subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)

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


def finish(config: RunConfig, size: int, *options: str) -> str:
    """Runs to the end, and returns what was printed."""
    with Ranks(config, size, *options) as ranks:
        assert ranks.wait() == [0] * size, ranks.said()
        return ranks.said()
