"""What ``kis study run`` says of its progress where there is no terminal."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from megatron_kis.cli.study.run import shown_progress
from megatron_kis.executor.attempts import start_attempt
from megatron_kis.executor.interface import Progress
from megatron_kis.executor.lease import HeldLease, acquire
from tests.studies import run_of, train_row, write_log


def test_plain_lines_tell_each_change_once_with_the_time_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runs = [run_of(tmp_path, "first"), run_of(tmp_path, "second"), run_of(tmp_path, "third")]
    held = acquire(runs[0].output)
    assert isinstance(held, HeldLease)
    start_attempt(held, runs[0].settings_fingerprint())
    with caplog.at_level(logging.INFO, logger="megatron_kis"), shown_progress(runs) as report:
        report(Progress(done=(), failed=(), running=("first",), total=3))
        report(Progress(done=(), failed=(), running=("first",), total=3))
        write_log(runs[0].output, "", [train_row(2, 3.0), train_row(4, 2.5)])
        report(Progress(done=("third",), failed=(), running=("first",), total=3))
    assert len(caplog.messages) == 2
    assert caplog.messages[0] == "0 of 3 runs done; running: first"
    assert caplog.messages[1].startswith("1 of 3 runs done; running: first 50%; about ")
    assert caplog.messages[1].endswith(" left")
