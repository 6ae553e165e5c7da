"""Data that runs were made with are not rewritten, and cells meet no other data: real commands on a tiny study."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from megatron_kis.cli.main import main
from megatron_kis.data_tools.preparation import steps as prepare_steps
from megatron_kis.executor.attempts import read_attempts
from megatron_kis.executor.lease import HeldLease, acquire
from megatron_kis.executor.slurm import queue
from megatron_kis.executor.slurm.queue import Task
from megatron_kis.executor.slurm.records import Submitted, record, submission_folder, write_tasks
from megatron_kis.study.holders import holders_of
from megatron_kis.study.lock import study_lock
from tests.forked import run_kis
from tests.sources import Sources
from tests.studies import ONE, RUN, edited, tree, write_study


@pytest.fixture
def fresh(tmp_path: Path, tiny_sources: Sources) -> Path:
    """The file of a study of which nothing is there."""
    (tmp_path / "w").mkdir()
    return write_study(tmp_path / "w", tiny_sources, **ONE)


@pytest.fixture
def prepared(fresh: Path, tiny_data: Path) -> Path:
    """The file of a study whose data are there."""
    shutil.copytree(tiny_data, fresh.parent / "out" / "data")
    return fresh


def test_a_plan_of_a_study_whose_data_are_there_writes_nothing(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(prepared.parent)
    assert main(["study", "plan", str(prepared)]) == 0
    assert RUN in capsys.readouterr().out
    assert tree(prepared.parent) == before


@pytest.mark.slow
def test_a_plan_makes_data_next_to_the_study_and_run_takes_them_over(
    fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "plan", str(fresh)]) == 0
    planned = fresh.parent / ".out.planned"
    assert f"the data are prepared in {planned}" in capsys.readouterr().err
    assert not (fresh.parent / "out").exists()  # not even a lock
    names = ("facts.jsonl", "tokenizer.model", "corpus.bin", "corpus.validation.bin", "exposures.bin")
    made = {name: (planned / "data" / name).stat().st_ino for name in names}
    ended = run_kis("study", "run", fresh)
    assert ended.returncode == 0, ended.stderr
    there = fresh.parent / "out" / "data"
    assert {name: (there / name).stat().st_ino for name in made} == made  # moved, and not made again
    assert not planned.exists()


@pytest.mark.slow
def test_a_plan_next_to_a_run_at_work_disturbs_nothing(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with study_lock(prepared.parent / "out"):
        before, tree_of_data = tree(prepared.parent / "out"), tree(prepared.parent / "out" / "data")
        assert main(["study", "plan", str(prepared)]) == 0
        assert main(["study", "plan", str(prepared), "data.seed=7"]) == 0  # nothing was trained on what is there
        assert tree(prepared.parent / "out") == before
        assert main(["study", "run", str(prepared), "data.seed=7"]) == 1
        assert tree(prepared.parent / "out" / "data") == tree_of_data
    assert "another 'kis study run' is running here" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("step", ["plan", "run"])
@pytest.mark.parametrize("change", ["data.vocab_size=390", "data.seed=7", "data.select.infused=12"])
def test_data_that_a_run_was_made_with_are_not_made_again(
    step: str, change: str, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(done.parent)
    assert main(["study", step, str(done), change]) == 2
    said = capsys.readouterr().err
    assert f"1 complete run ({RUN})" in said
    assert change.partition("=")[0].split(".")[-1] in said
    assert "another 'output'" in said
    after = tree(done.parent)
    changed = {path for path in {*before, *after} if before.get(path) != after.get(path)}
    assert changed <= {"out", "out/.lock"}
    helped = run_kis("study", step, done, change, f"output={done.parent / 'other'}")  # the advice does
    assert helped.returncode == 0, helped.stderr


@pytest.mark.slow
def test_a_plan_reads_data_that_differ_in_versions_alone_where_runs_hold_them(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(prepare_steps.CODE, "render", "99")
    before = tree(done.parent)
    assert main(["study", "plan", str(done)]) == 0
    said = capsys.readouterr().err
    assert "the data are kept because runs were trained on them (versions.code " in said
    assert tree(done.parent) == before


@pytest.mark.slow
def test_a_changed_source_is_refused_as_well(
    done: Path, tmp_path: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.jsonl"
    text.write_bytes(b"".join(tiny_sources.text.read_bytes().splitlines(keepends=True)[:-1]))
    content = yaml.safe_load(done.read_text())
    content["data"]["text"] = ["../text.jsonl"]
    edited(done, data=content["data"])
    before = tree(done.parent / "out" / "data")
    assert main(["study", "run", str(done)]) == 2
    assert f"1 complete run ({RUN})" in capsys.readouterr().err
    assert tree(done.parent / "out" / "data") == before


@pytest.mark.slow
def test_a_run_on_other_data_holds_nothing_and_stands_in_the_way(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(done.parent / "out" / "data")
    assert main(["study", "plan", str(done), "data.vocab_size=390"]) == 2
    said = capsys.readouterr().err
    assert "1 complete run used other data: exposures " in said
    assert "tokenizer " in said
    assert main(["study", "run", str(done), "data.vocab_size=390"]) == 2
    assert "1 complete run used other data: exposures " in capsys.readouterr().err
    # Nobody holds the data that lie there by now, and so the old ones are made again.
    assert main(["study", "run", str(done)]) == 0
    assert "1 done already" in capsys.readouterr().err


THERE = {"corpus": "c" * 64, "tokenizer": "t" * 64}


def run_record(output: Path, name: str, **prints: str) -> Path:
    folder = output / "runs" / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"schema": "kis.run/1", "fingerprints": {**THERE, **prints}}))
    return folder


def test_all_run_folders_checkpoints_and_living_runs_hold_data(tmp_path: Path) -> None:
    for name in ("old", "renamed"):
        (run_record(tmp_path, name) / "DONE").touch()
    (run_record(tmp_path, "other", corpus="d" * 64) / "DONE").touch()
    (run_record(tmp_path, "damaged") / "DONE").touch()
    (tmp_path / "runs" / "damaged" / "run.json").write_text("{")
    for name, corpus in (("saved", "c" * 64), ("elsewhere", "d" * 64)):
        place = run_record(tmp_path, name) / "checkpoints" / "step-00000012"
        place.mkdir(parents=True)
        identity = {"data": {**THERE, "corpus": corpus}}
        (place / "checkpoint.json").write_text(json.dumps({"schema": "kis.checkpoint/1", "identity": identity}))
    held = acquire(tmp_path / "runs" / "at work")
    assert isinstance(held, HeldLease)
    found = holders_of(tmp_path, THERE)
    assert (found.runs, found.checkpoints, found.running) == (("damaged", "old", "renamed"), ("saved",), ("at work",))
    held.release()
    assert holders_of(tmp_path, THERE).running == ()
    assert not holders_of(tmp_path, {})  # nothing is there to be held
    assert str(found).startswith("3 complete runs (damaged, old, renamed), 1 unfinished run with checkpoints (saved)")


def test_jobs_in_the_queue_hold_data_but_those_of_the_submission_that_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [
        Submitted(1, "small", "kis-a", count=2, number="11"),
        Submitted(1, "report", "kis-r", number="12"),
        Submitted(2, "data", "kis-d", number="13"),
        Submitted(2, "small", "kis-b", number="14", refused=True),
    ]
    for job in jobs:
        record(tmp_path, job)
    live = [Task(job, str(job.number), (), state="RUNNING") for job in jobs[:3]]
    monkeypatch.setattr("megatron_kis.study.holders.live_tasks", lambda _: live)
    assert holders_of(tmp_path, THERE).jobs == ("11", "13")
    assert holders_of(tmp_path, THERE, submission=2).jobs == ("11",)
    assert "1 job in the queue (11)" in str(holders_of(tmp_path, THERE, submission=2))


def test_a_queue_that_cannot_be_asked_holds_data_until_all_of_its_runs_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert queue.live_tasks(tmp_path) == []
    record(tmp_path, Submitted(1, "small", "kis-a", count=1, number="11"))
    folder = submission_folder(tmp_path, 1)
    folder.mkdir(parents=True)
    write_tasks(folder, [("small", 0, ["a"])])
    found = holders_of(tmp_path, THERE)
    assert found.unknown == ("11",)
    assert "1 job that may still wait or run (SLURM: scontrol is not installed here" in str(found)
    (run_record(tmp_path, "a", corpus="d" * 64) / "DONE").touch()
    assert not holders_of(tmp_path, THERE)


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Submits a study to a SLURM that takes everything and runs nothing; returns the submission's folder."""
    numbers = iter(range(1, 100))
    monkeypatch.setattr("megatron_kis.executor.slurm.client.max_array_size", lambda: 1001)
    monkeypatch.setattr("megatron_kis.executor.slurm.client.run", lambda *_, **__: f"{next(numbers)}\n")
    monkeypatch.setattr("megatron_kis.executor.slurm.queue.client.show_job", lambda _: [])
    monkeypatch.setattr("megatron_kis.study.submission.submit.__kwdefaults__", {"sbatch": lambda *_, **__: "1"})

    def submit(study: Path) -> Path:
        assert main(["study", "submit", str(study)]) == 0
        return max((study.parent / "out" / "slurm").glob("[0-9]*"))

    return submit


def test_the_data_job_says_which_data_the_runs_must_find_and_a_late_run_meets_no_others(
    prepared: Path,
    submitted: Callable[[Path], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = submitted(prepared)
    monkeypatch.chdir("/")
    assert main(["study", "work", str(folder), "small"]) == 2  # before its data job
    assert "data.json: is missing: the data job has not ended well" in capsys.readouterr().err
    assert main(["study", "prepare", str(folder)]) == 0
    out = prepared.parent / "out"
    content = json.loads((folder / "data.json").read_text())
    assert content["schema"] == "kis.submission-data/1"
    assert content["data"]["corpus"] == str(out / "data" / "corpus")
    before = content["fingerprints"]
    assert set(before) == {"tokenizer", "corpus", "validation", "exposures", "questions"}
    manifest = json.loads((out / "study.json").read_text())
    assert (manifest["schema"], manifest["data"]) == ("kis.study/1", before)
    assert yaml.safe_load((out / "study.yaml").read_text())["output"] == "."

    # Somebody takes the data away and makes others.
    shutil.rmtree(out / "data")
    monkeypatch.setattr("megatron_kis.study.holders.live_tasks", lambda _: [])
    assert main(["study", "plan", str(prepared), "data.vocab_size=390"]) == 0
    (prepared.parent / ".out.planned" / "data").rename(out / "data")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    assert main(["study", "work", str(folder), "small"]) == 1
    (attempt,) = read_attempts(out / "runs" / RUN).attempts  # and it is not tried again
    assert (attempt.outcome, attempt.status) == ("failed", 2)
    log = (out / "runs" / RUN / "log.txt").read_text()
    assert before["tokenizer"][:12] in log
    written = yaml.safe_load((out / "runs" / RUN / "config.yaml").read_text())
    trained_on = {name: found for name, found in before.items() if name != "questions"}
    assert written["data"]["fingerprints"] == trained_on
    assert not (out / "runs" / RUN / "DONE").exists()


def test_the_data_job_refuses_sources_that_changed_since_the_submission(
    prepared: Path, tiny_sources: Sources, submitted: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    templates = prepared.parent / "templates.yaml"
    shutil.copy(tiny_sources.templates, templates)
    content = yaml.safe_load(prepared.read_text())
    edited(prepared, data=content["data"] | {"templates": "templates.yaml"})
    folder = submitted(prepared)
    templates.write_text(templates.read_text() + "\n")
    assert main(["study", "prepare", str(folder)]) == 2
    assert f"{templates}: changed since the study was submitted" in capsys.readouterr().err
    assert not (folder / "data.json").exists()


@pytest.mark.slow
def test_the_data_job_does_not_make_data_again_that_a_run_was_made_with(
    done: Path, submitted: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    edited(done, frequencies=[0, 8])
    folder = submitted(done)
    content = yaml.safe_load((folder / "study.yaml").read_text())
    content["data"]["vocab_size"] = 390
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    before = tree(done.parent / "out" / "data")
    assert main(["study", "prepare", str(folder)]) == 2
    assert f"1 complete run ({RUN})" in capsys.readouterr().err
    assert tree(done.parent / "out" / "data") == before
