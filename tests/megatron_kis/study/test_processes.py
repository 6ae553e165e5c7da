"""A process that an executor starts lives no longer than the executor, however that ends."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

_EXECUTOR = """
import os, signal, subprocess, sys, time
from megatron_kis.executor.processes import before_start
prepare, (when, started, ended) = before_start(None), sys.argv[1:]

def die_first():
    if when == "before it asks":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(0.5)
    prepare()

run = "import signal, sys, time; from pathlib import Path\\n"
run += "signal.signal(signal.SIGTERM, lambda *_: (Path(sys.argv[2]).touch(), sys.exit()))\\n"
run += "Path(sys.argv[1]).touch(); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", run, started, ended], preexec_fn=die_first)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's death is Linux's")
@pytest.mark.parametrize("when", ["before it asks", "after it began"])
def test_a_run_ends_with_its_executor(when: str, tmp_path: Path) -> None:
    started, ended = tmp_path / "started", tmp_path / "ended"
    executor = subprocess.Popen([sys.executable, "-c", _EXECUTOR, when, str(started), str(ended)])
    if when == "after it began":
        _wait_for(started)
        executor.kill()
    executor.wait(timeout=30)
    if when == "after it began":
        _wait_for(ended)
    else:
        time.sleep(2)
        assert not started.exists()


def _wait_for(path: Path) -> None:
    until = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < until, path
        time.sleep(0.05)
