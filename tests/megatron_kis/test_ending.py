"""What a rank leaves for whoever started it: the first one that fails says why, and a consequence never comes first."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_kis.cli import main as cli
from megatron_kis.common import ending
from megatron_kis.common.ending import Ending, read_ending, tell_starter
from megatron_kis.common.errors import InputError, JobError, KisError, Stopped
from megatron_kis.config.run import RunConfig
from tests.megatron_kis.ranks import Ranks

MakeRun = Callable[..., RunConfig]


def test_the_first_that_fails_is_the_one_that_counts(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    tell_starter(2, "seed: is -1", environment={"KIS_STATUS_FILE": str(path)})
    tell_starter(1, "connection closed", environment={"KIS_STATUS_FILE": str(path)})
    assert json.loads(path.read_text()) == {"schema": "kis.status/1", "status": 2, "error": "seed: is -1"}
    assert read_ending(path) == Ending(2, "seed: is -1")


def test_nothing_is_written_where_nobody_asks_and_nothing_fails_where_nobody_can(tmp_path: Path) -> None:
    tell_starter(2, "seed: is -1", environment={})
    asked = {"KIS_STATUS_FILE": str(tmp_path / "no" / "folder"), "TORCHELASTIC_ERROR_FILE": str(tmp_path)}
    tell_starter(2, "seed: is -1", environment=asked)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_of_several_ranks_one_without_a_cause_waits_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "status.json"
    asked = {"KIS_STATUS_FILE": str(path), "WORLD_SIZE": "2"}
    consequence = threading.Thread(target=lambda: tell_starter(1, "connection closed", environment=asked))
    consequence.start()  # it sees that the other has left before that one has written
    time.sleep(0.3)
    tell_starter(2, "seed: is -1", environment=asked)
    consequence.join()
    assert read_ending(path) == Ending(2, "seed: is -1")
    path.unlink()
    monkeypatch.setattr(ending, "_PATIENCE", 0.2)
    tell_starter(1, "out of memory", environment=asked)
    assert read_ending(path) == Ending(1, "out of memory")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"schema": "kis.status/1"}',
        '{"schema": "kis.status/1", "status": 2, "status": 1, "error": ""}',
        '{"schema": "kis.status/1", "status": 0, "error": ""}',
        '{"schema": "other", "status": 2, "error": ""}',
    ],
)
def test_what_is_no_whole_status_file_says_nothing(content: str, tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    assert read_ending(path) is None
    path.write_text(content)
    assert read_ending(path) is None


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InputError("is -1", where="seed"), 2, "seed: is -1"),
        (JobError("the loss is nan"), 1, "the loss is nan"),
        (Stopped("stopped by SIGTERM"), 75, "stopped by SIGTERM"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "/x"), 1, "/x: No space left on device"),
        (RuntimeError("CUDA out of memory"), 1, "RuntimeError: CUDA out of memory"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_kis_train_says_how_it_ends(
    error: BaseException, status: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> int:
        raise error

    monkeypatch.setattr("megatron_kis.cli.train._train", fail)
    monkeypatch.setenv("KIS_STATUS_FILE", str(tmp_path / "status.json"))
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "torch.json"))
    if isinstance(error, RuntimeError):
        with pytest.raises(RuntimeError):
            cli.main(["train", "run.yaml"])
    else:
        assert cli.main(["train", "run.yaml"]) == status
    assert read_ending(tmp_path / "status.json") == Ending(status, message)
    assert json.loads((tmp_path / "torch.json").read_text())["message"]["message"] == message


def test_other_commands_say_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIS_STATUS_FILE", str(tmp_path / "status.json"))
    assert cli.main(["study", "status", str(tmp_path / "absent.yaml")]) == InputError.exit_status
    assert not (tmp_path / "status.json").exists()
    assert KisError.exit_status == 1


def test_torchrun_shows_our_reason(tmp_path: Path) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    path = tmp_path / "error.json"
    tell_starter(2, "parallel.tensor: 1 query_groups", environment={"TORCHELASTIC_ERROR_FILE": str(path)})
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(path))
    assert failure.message["message"] == "parallel.tensor: 1 query_groups"
    assert abs(failure.timestamp - time.time()) < 60


@pytest.mark.slow
@pytest.mark.distributed
def test_ranks_of_a_run_that_is_refused_after_they_have_met_leave_its_reason(tiny_run: MakeRun, tmp_path: Path) -> None:
    config = tiny_run(name="refused", parallel={"tensor": 2}, output=tmp_path / "refused")
    config.output.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "refused" / "checkpoints").mkdir(parents=True)
    path = tmp_path / "status.json"
    with Ranks(config, 2, "--branch-from", str(tmp_path / "nowhere"), env={"KIS_STATUS_FILE": str(path)}) as ranks:
        statuses = ranks.wait()
    assert set(statuses) == {2}, ranks.said()
    found = read_ending(path)
    assert found is not None
    assert found.status == 2
    assert "nowhere" in found.error
    assert yaml.safe_load((config.output.parent / "refused.yaml").read_text())["name"] == "refused"
