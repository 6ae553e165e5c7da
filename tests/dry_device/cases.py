"""``run_case``: a rank on the fake device in a process of its own, once for all tests that ask for it.

``ask_dry_device``: another function in a process that can have the device.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dry_device import wheel

ROOT = Path(__file__).parents[2]
TORCH = "2.13"
"""What the stand-ins are written for: they replace private names of PyTorch's."""
CUDA_BUILD = "the stand-ins need a CPU build of PyTorch"

Case = dict[str, Any]

LAYOUTS: dict[str, Case] = {
    "one GPU": {"preset": "70m"},
    "fp32": {"preset": "70m", "precision": "fp32", "layers": 2},
    "1b, full recomputation": {"preset": "1b", "layers": 2, "recompute": "full"},
    "1b, selective recomputation": {"preset": "1b", "layers": 2, "recompute": "selective"},
    "grouped queries": {"preset": "3b", "layers": 2, "length": 4096},
    "replicas": {"preset": "70m", "data": 4, "layers": 2, "rank": 1},
    "first stage": {"preset": "7b", "tensor": 4, "pipeline": 2, "layers": 4, "micro_batches": 4},
    "last stage": {"preset": "7b", "tensor": 4, "pipeline": 2, "layers": 4, "micro_batches": 4, "rank": 5},
    "interleaved stages": {
        "preset": "7b",
        "tensor": 4,
        "pipeline": 2,
        "virtual": 2,
        "data": 2,
        "sequence": True,
        "layers": 4,
        "micro_batches": 4,
    },
    "70b, first stage": {
        "preset": "70b",
        "tensor": 8,
        "pipeline": 4,
        "data": 8,
        "sequence": True,
        "layers": 8,
        "micro_batches": 4,
    },
    "70b, last stage": {
        "preset": "70b",
        "tensor": 8,
        "pipeline": 4,
        "data": 8,
        "sequence": True,
        "layers": 8,
        "micro_batches": 4,
        "rank": 192,
    },
    "shared sequences": {"preset": "1b", "context": 2, "layers": 2, "length": 4096},
}
"""Options of the layouts that most tests go through."""

ENGINE_CASES: dict[str, Case] = {
    "one GPU": {"preset": "70m", "layers": 2},
    "tensor, last stage": {
        "preset": "7b",
        "tensor": 4,
        "pipeline": 2,
        "layers": 4,
        "micro_batches": 2,
        "rank": 5,
        "sequence": True,
    },
    "replicas": {"preset": "3b", "layers": 2, "data": 2},
    "FP8": {"preset": "70m", "layers": 2, "precision": "fp8"},
    "normed queries and biases": {
        "preset": "70m",
        "layers": 2,
        "tensor": 2,
        "sequence": True,
        "set": {"model.query_groups": 4, "model.head_width": 128, "model.qk_norm": True, "model.qkv_bias": True},
    },
    "FP8, shared out sequences": {"preset": "1b", "layers": 2, "tensor": 2, "sequence": True, "precision": "fp8"},
}
"""Options of the layouts that are tried with Transformer Engine."""


def missing() -> str | None:
    """Why nothing runs here; None if it does."""
    torch = importlib.metadata.distribution("torch")  # which is not imported here: the shim has to be there before it
    if not torch.version.startswith(f"{TORCH}."):
        return f"the dry device is written for torch {TORCH}, and {torch.version} is installed"
    if re.search(r"^cuda\b.*= '", Path(str(torch.locate_file("torch/version.py"))).read_text(), re.MULTILINE):
        return CUDA_BUILD
    return None if shutil.which("g++") else "the dry device needs g++"


def need(problem: str | None) -> None:
    """Skips a test where something is missing; in CI, which has all but perhaps the build of PyTorch, it fails."""
    if problem is not None:
        (pytest.fail if os.environ.get("CI") and problem != CUDA_BUILD else pytest.skip)(problem)


@pytest.fixture(scope="session")
def ask_dry_device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Calls a function in a process forked from a server: ``ask_dry_device("module:function", *arguments)``.

    The process has imported PyTorch with the device; with ``start`` it has also begun as ``server.STARTS`` says.
    Shared: the server starts with the first call, and nothing that a call does lasts.
    """
    servers: list[subprocess.Popen[str]] = []
    log = tmp_path_factory.mktemp("dry_server") / "log"

    def ask(call: str, *arguments: Any, start: str | None = None) -> Any:
        if not servers:
            servers.append(_server(log))
        (server,) = servers
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps({"start": start, "call": call, "arguments": arguments}) + "\n")
        server.stdin.flush()
        line = server.stdout.readline()
        answer = json.loads(line or '{"failed": "the server has ended"}')
        if "failed" in answer:
            pytest.fail(f"{call} {arguments}: {answer['failed']}\n{log.read_text()[-4000:]}")
        return answer["found"]

    yield ask
    for server in servers:
        with server:  # closes its input
            pass


def _server(log: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-m", "tests.dry_device.server"]
    with log.open("w") as said:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )


@pytest.fixture(scope="session")
def run_case(tmp_path_factory: pytest.TempPathFactory, ask_dry_device: Callable[..., Any]) -> Callable[..., Case]:
    """Runs a rank: ``run_case("7b", tensor=4, rank=2, layers=2)`` returns what ``rank.py`` prints.

    Keywords are the options of ``python -m tests.dry_device.rank``; ``set`` is a mapping of the configuration's keys:
    ``set={"training.optimizer.gradient_clip": 0.5}``. Messages are always in it. Equal calls of one session, in all its
    workers, run once.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "dry_device"
    shared.mkdir(exist_ok=True)

    def run(preset: str, **options: Any) -> Case:
        engine = options.get("transformer_engine")
        need(missing() or (wheel.missing() if engine else None))
        words = [preset, *_words(options)]
        file = shared / f"{hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]}.json"
        with open(file.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not file.exists():
                start = "Transformer Engine" if engine else "rank"
                found = ask_dry_device("tests.dry_device.rank:answer", [*words, "--messages"], start=start)
                file.write_text(json.dumps(found))
        case: Any = json.loads(file.read_text())
        return case

    return run


def _words(options: Case) -> list[str]:
    words = []
    for name, value in sorted(options.items()):
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, dict):
            words += [f"{flag}={key}={json.dumps(setting)}" for key, setting in sorted(value.items())]
        elif value is not False:
            words.append(flag if value is True else f"{flag}={value}")
    return words
