"""Ending the ``kis study run`` of a study on this machine, and nobody else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from megatron_kis.cli.main import main
from megatron_kis.common.errors import JobError
from megatron_kis.study.lock import end_study_run, lock_holders, study_lock
from tests.sources import Sources
from tests.studies import write_study

# Holds the study's lock as an executor does, with a child that shares it as a run does.
HOLDER = """
import pathlib, signal, subprocess, sys, time
from megatron_kis.study.lock import study_lock
signal.signal(signal.SIGTERM, lambda *_: None if sys.argv[2] == "deaf" else sys.exit(75))
with study_lock(pathlib.Path(sys.argv[1])) as lock:
    with subprocess.Popen(["/bin/sleep", "60"], pass_fds=(lock,)) as run:
        print(flush=True)
        try:
            while True:
                time.sleep(0.05)
        finally:
            run.kill()
"""


@contextmanager
def holder(folder: Path, kind: str = "") -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder), kind], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()


def test_the_executor_is_asked_to_end_and_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / 'a study\'s "folder"'
    with holder(folder) as process, holder(tmp_path / "another") as other:
        assert lock_holders(folder) == [process.pid]  # and not its run
        assert end_study_run(folder, seconds=20) == [process.pid]
        assert process.wait() == 75
        assert other.poll() is None
    assert end_study_run(folder, seconds=20) == []


def test_cancel_ends_it_and_says_so(tmp_path: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_study(tmp_path, tiny_sources)
    with holder(tmp_path / "out") as process:
        assert main(["study", "submit", str(study)]) == 1  # its data job would find the study taken
        assert f"running this study here (process {process.pid})" in capsys.readouterr().err
        assert main(["study", "cancel", str(study)]) == 0
        assert f"kis study run was ended (process {process.pid})" in capsys.readouterr().out
        assert process.wait() == 75
    assert main(["study", "cancel", "--json", str(study)]) == 0
    assert json.loads(capsys.readouterr().out) == {"jobs": [], "processes": []}


def test_one_that_does_not_end_is_an_error_and_our_own_lock_is_not_meant(tmp_path: Path) -> None:
    with holder(tmp_path, "deaf"), pytest.raises(JobError, match="still runs after"):
        end_study_run(tmp_path, seconds=0.3)
    with study_lock(tmp_path / "own"):
        assert lock_holders(tmp_path / "own") == []
    assert lock_holders(tmp_path / "nowhere") == []
