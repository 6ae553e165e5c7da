"""What is lost or cannot be read costs no checkpoint: a run never begins again by itself where some lie."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.checkpoint import shards
from megatron_kis.checkpoint.folders import write_manifest
from megatron_kis.cli.main import main
from megatron_kis.common import files
from megatron_kis.common.errors import InputError, JobError
from megatron_kis.common.files import read_json
from megatron_kis.config.run import RunConfig
from megatron_kis.training.run_dir import RunDir
from megatron_kis.training.trainer import train
from tests.run_files import losses, rows
from tests.runs import OFTEN, cut_off, trained, trunk_of

pytestmark = pytest.mark.slow

MakeRun = Callable[..., RunConfig]
LOGS = ("metrics.jsonl", "probes.jsonl")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_WAITS", (0.0, 0.0, 0.0))


def folders(config: RunConfig) -> list[str]:
    return sorted(path.name for path in (config.output / "checkpoints").iterdir())


def content(config: RunConfig) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in config.output.rglob("*") if path.is_file()}


def failing(monkeypatch: pytest.MonkeyPatch, name: str, number: int, times: int) -> list[int]:
    """Reading files of this name fails; returns a list whose only item counts how often."""
    count = [0]

    def guard(read: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Path, *arguments: Any, **options: Any) -> Any:
            if Path(path).name == name and count[0] < times:
                count[0] += 1
                raise OSError(number, os.strerror(number), str(path))
            return read(path, *arguments, **options)

        return wrapped

    for method in ("read_text", "read_bytes", "iterdir"):
        monkeypatch.setattr(Path, method, guard(getattr(Path, method)))
    return count


def test_no_run_begins_again_by_itself_where_checkpoints_lie(tiny_run: MakeRun) -> None:
    config = tiny_run(**OFTEN)
    cut_off(config, 12)
    (config.output / "checkpoints" / "step-00000010" / "index.json").write_text("{}")
    (config.output / "checkpoints" / "step-00000005" / "checkpoint.json").unlink()
    before = content(config)
    with pytest.raises(InputError) as refused:
        train(config)
    said = str(refused.value)
    assert refused.value.exit_status == 2
    assert "step 10: index.json has changed since it was written" in said
    assert "step 5: checkpoint.json is missing" in said
    assert "--restart" in said
    after = content(config)
    assert before == {name: after[name] for name in before}
    with pytest.raises(InputError, match=r"holds step-00000005, step-00000010, and no checkpoint"):
        RunDir(config.output).clear(restart=False)
    train(config, restart=True)
    assert [session["from_step"] for session in read_json(config.output / "run.json", "kis.run/1")["sessions"]] == [0]
    assert folders(config) == ["step-00000015", "step-00000020"]


@pytest.mark.parametrize("how", ["renamed", "links", "link", "archive"])
def test_what_lies_among_checkpoints_is_not_removed_unasked(tiny_run: MakeRun, tmp_path: Path, how: str) -> None:
    """Checkpoints under other names, and links to a place that is away, are somebody's work."""
    config = tiny_run(**OFTEN)
    cut_off(config, 12)
    there = config.output / "checkpoints"
    names = sorted(path.name for path in there.iterdir())
    if how == "link":
        there.rename(tmp_path / "away")
        there.symlink_to(tmp_path / "not mounted")
    else:
        for name in names:
            (there / name).rename(there / f"old-{name}")
            if how == "links":
                (there / name).symlink_to(tmp_path / "not mounted" / name)
    if how == "archive":
        (there / "old.tar").write_bytes(b"")
    before = content(config)
    with pytest.raises(InputError, match=r"checkpoints: holds .*begin again with --restart"):
        train(config)
    after = content(config)
    assert before == {name: after[name] for name in before}
    assert there.is_symlink() == (how == "link")
    cut_off(config, 2, lambda: train(config, restart=True))
    assert [session["from_step"] for session in read_json(config.output / "run.json", "kis.run/1")["sessions"]] == [0]
    assert sorted(losses(config.output)) == [1, 2]


def test_lost_copies_of_logs_are_no_damage_of_weights(tiny_run: MakeRun) -> None:
    config = tiny_run(**OFTEN)
    cut_off(config, 12)
    for path in (config.output / "checkpoints").glob("*/*.jsonl"):
        path.unlink()
    cut_off(config, 12)
    assert [row["from_step"] for row in read_json(config.output / "run.json", "kis.run/1")["sessions"]] == [0, 10]


@pytest.mark.parametrize("damage", ["gone", "cut", "changed"])
@pytest.mark.parametrize("name", LOGS)
def test_a_lost_log_is_restored_from_the_checkpoint(
    name: str, damage: str, tiny_run: MakeRun, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, config = tiny_run(name="whole", **OFTEN), tiny_run(**OFTEN)
    trained(whole)
    cut_off(config, 13)
    log = config.output / name
    if damage == "gone":
        log.unlink()
    elif damage == "cut":
        log.write_bytes(log.read_bytes()[:300])
    else:
        log.write_bytes(log.read_bytes().replace(b"1", b"2", 1))
    train(config)
    said = capfd.readouterr().err
    assert "resuming from step 10 of 20" in said
    assert f"{log} had changed since it was written; restored from the checkpoint" in said
    assert losses(config.output) == losses(whole.output)
    for log_name in LOGS:
        keys = [
            [(row["step"], row.get("kind"), row.get("group")) for row in rows(run.output, log_name)]
            for run in (config, whole)
        ]
        assert keys[0] == keys[1]
    sessions = read_json(config.output / "run.json", "kis.run/1")["sessions"]
    assert list(sessions[-1]["logs"]) == [name]
    assert "logs" not in sessions[0]


def without_copies(config: RunConfig) -> None:
    """Makes the checkpoints of a run ones of before they had copies of the logs."""
    for folder in (config.output / "checkpoints").iterdir():
        manifest = json.loads((folder / "checkpoint.json").read_text())
        for name in LOGS:
            (folder / name).unlink()
            del manifest["files"][name]
        write_manifest(folder / "checkpoint.json", manifest)


def test_without_a_copy_the_rows_that_are_there_stay_and_the_loss_is_said(
    tiny_run: MakeRun, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run(**OFTEN)
    cut_off(config, 13)
    without_copies(config)
    log = config.output / "metrics.jsonl"
    kept = log.read_bytes().splitlines(keepends=True)[:7]
    log.write_bytes(b"".join(kept) + b'{"kind": "tra')
    train(config)
    assert "metrics.jsonl lost" in capfd.readouterr().err
    steps = sorted(losses(config.output))
    assert steps == [*range(1, 8), *range(10, 21)]  # that of the checkpoint was made again
    assert [row["step"] for row in rows(config.output, "metrics.jsonl") if row["kind"] == "validation"] == [10, 20]
    said = read_json(config.output / "run.json", "kis.run/1")["sessions"][-1]["logs"]["metrics.jsonl"]
    assert said.startswith("lost ") and said.endswith(" bytes up to step 10")


@pytest.mark.parametrize("lost", [LOGS, LOGS[:1], LOGS[1:]], ids=str)
def test_a_run_at_its_last_step_ends_whole_whatever_logs_it_has_lost(lost: tuple[str, ...], tiny_run: MakeRun) -> None:
    config = tiny_run(**OFTEN)
    trained(config)
    before = {name: rows(config.output, name) for name in LOGS}
    (config.output / "DONE").unlink()
    without_copies(config)
    for name in lost:
        (config.output / name).unlink()
    train(config)
    assert (config.output / "DONE").exists()
    for name in LOGS:
        now = rows(config.output, name)
        then = [row for row in before[name] if row["step"] == 20] if name in lost else before[name]
        keys = ("step", "kind", "loss", "group", "split", "scoring", "correct", "margin")
        assert [[row.get(key) for key in keys] for row in now] == [[row.get(key) for key in keys] for row in then]


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", ["checkpoint.json", "checkpoints"])
def test_a_passing_error_of_the_file_server_is_waited_for(
    name: str, number: int, tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run(**OFTEN)
    cut_off(config, 12)
    with monkeypatch.context() as patch:
        assert failing(patch, name, number, 3) == [0]
        cut_off(config, 12)
    assert [s["from_step"] for s in read_json(config.output / "run.json", "kis.run/1")["sessions"]] == [0, 10]


@pytest.mark.parametrize("name", ["checkpoint.json", "checkpoints", "metrics.jsonl"])
def test_an_error_that_stays_ends_the_work_and_touches_nothing(
    name: str, tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run(**OFTEN)
    cut_off(config, 12)
    before = content(config)
    with monkeypatch.context() as patch:
        failing(patch, name, errno.EIO, 99)
        with pytest.raises(JobError, match=rf"{name}: cannot be read \(Input/output error\)"):
            train(config)
    with monkeypatch.context() as patch:
        failing(patch, name, errno.EACCES, 99)
        with pytest.raises(InputError, match=rf"{name}: cannot be read \(Permission denied\)"):
            train(config)
    after = content(config)
    assert before == {path: after[path] for path in before}


def test_a_damaged_checkpoint_stays_aside_when_its_step_is_saved_again(tiny_run: MakeRun) -> None:
    config = tiny_run(**OFTEN)
    cut_off(config, 11)
    part = config.output / "checkpoints" / "step-00000010" / "__0_0.distcp"
    part.write_bytes(b"damaged")
    cut_off(config, 12)
    assert folders(config) == ["step-00000005", "step-00000010", "step-00000010.damaged"]
    assert (config.output / "checkpoints" / "step-00000010.damaged" / "__0_0.distcp").read_bytes() == b"damaged"
    part.write_bytes(b"again")
    train(config)
    assert folders(config) == [
        "step-00000010.damaged",
        "step-00000010.damaged2",
        "step-00000015",
        "step-00000020",
    ]


def test_room_is_made_by_no_checkpoint_that_a_resume_passed_over(tiny_run: MakeRun) -> None:
    often: dict[str, Any] = {
        "checkpoints": {"moments": {"every": 5}, "keep_last": 1, "asynchronous": False, "keep_best": False}
    }
    config = tiny_run(**{**OFTEN, **often, "checkpoints": {**often["checkpoints"], "keep_last": 9}})
    cut_off(config, 16)
    for step in (10, 15):
        (config.output / "checkpoints" / f"step-{step:08d}" / "__0_0.distcp").write_bytes(b"damaged")
    changed = {**often["checkpoints"], "moments": {"every": 6}}
    cut_off(tiny_run(**{**OFTEN, "checkpoints": changed}), 7)
    # the one of step 6 is the newest of this run as it goes; those of 10 and 15 belong to what was passed over
    assert folders(config) == ["step-00000006", "step-00000010", "step-00000015"]


def test_what_cannot_be_read_is_not_removed_to_make_room(
    tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run(**{**OFTEN, "checkpoints": {**OFTEN["checkpoints"], "keep_last": 1, "keep_best": False}})
    with monkeypatch.context() as patch:
        failing(patch, "checkpoint.json", errno.EIO, 10**6)
        train(config)
    assert folders(config) == ["step-00000005", "step-00000010", "step-00000015", "step-00000020"]
    assert "older checkpoints stay for now" in capfd.readouterr().err


def test_a_probe_and_a_branch_say_why_a_checkpoint_cannot_be_used(
    tiny_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    trunk = trunk_of(tiny_run, "trunk", 10)
    trained(trunk)
    for folder in (trunk.output / "checkpoints").iterdir():
        (folder / "__0_0.distcp").unlink()
    branch = trunk_of(tiny_run, "branch", 16)
    with pytest.raises(InputError, match=r"no complete checkpoint \(step 10: __0_0\.distcp is missing; step 5: "):
        train(branch, branch_from=str(trunk.output))
    assert not (branch.output / "run.json").exists()
    assert main(["probe", str(trunk.output), "--device", "cpu", "--step", "5"]) == 2
    said = capsys.readouterr().err
    assert "no complete checkpoint of step 5 (step 5: __0_0.distcp is missing); available steps: 5, 10" in said
    assert len(list((trunk.output / "checkpoints").iterdir())) == 2


def test_a_branch_takes_a_trunks_rows_from_its_checkpoint(tiny_run: MakeRun) -> None:
    trunk = trunk_of(tiny_run, "trunk", 20)
    trained(trunk)
    theirs = losses(trunk.output)
    (trunk.output / "metrics.jsonl").unlink()
    branch = trunk_of(tiny_run, "branch", 16)
    train(branch, branch_from=f"{trunk.output}@10")
    assert [losses(branch.output)[step] for step in range(1, 11)] == [theirs[step] for step in range(1, 11)]
    record = read_json(branch.output / "run.json", "kis.run/1")
    assert record["beginning"] != read_json(trunk.output / "run.json", "kis.run/1")["beginning"]
    shutil.rmtree(trunk.output)
    assert main(["probe", str(branch.output), "--device", "cpu"]) == 0


def test_weights_that_cannot_be_read_are_an_error_of_the_disk(
    tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run(**OFTEN)
    cut_off(config, 7)

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(shards._IndexReader, "read_data", fail)
        with pytest.raises(JobError, match=r"step-00000005: cannot be read \(Input/output error\)"):
            train(config)
    assert folders(config) == ["step-00000005"]
