"""Finished runs are asked again: what is trained stays, answers are added, and the analysis uses those it wants."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_kis.analysis.runs.load import load_runs
from megatron_kis.cli.main import main
from megatron_kis.cli.study import asking
from megatron_kis.cli.study.common import data_config
from megatron_kis.common.configuration import load_config
from megatron_kis.common.files import sha256_content, sha256_file
from megatron_kis.common.units import in_bytes
from megatron_kis.config.study import StudyConfig
from megatron_kis.config.training import ParallelConfig
from megatron_kis.study.grid import runs_of
from tests.run_files import tensor_shapes
from tests.runs import hashes
from tests.sources import Sources
from tests.studies import RUN, edited, write_study


def templates_of(folder: Path, sources: Sources, **splits: Any) -> str:
    """A file of templates in which each relation has other sentences of some splits."""
    content = yaml.safe_load(sources.templates.read_text(encoding="utf-8"))
    for own in content.values():
        own.update(splits)
    path = folder / "templates.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def study_with(study: Path, **data: Any) -> Path:
    """The study with other settings of its data."""
    content = yaml.safe_load(study.read_text(encoding="utf-8"))
    return edited(study, data=content["data"] | data)


def kis(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """The status of a command, and all that it has said."""
    capsys.readouterr()
    status = main([str(word) for word in words])
    said = capsys.readouterr()
    return status, said.out + said.err


def test_new_questions_are_asked_without_training_and_added_beside_the_old_ones(
    done: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    out = done.parent / "out"
    before, data = hashes(out / "runs"), hashes(out / "data")
    first = load_runs(out)
    study_with(done, templates=templates_of(done.parent, tiny_sources, held_out=["It is [Y] that [X] belongs to."]))

    status, said = kis(capsys, "study", "plan", done)
    assert (status, hashes(out / "runs")) == (0, before)
    assert "kis study probe asks the finished runs again" in said
    assert "last checkpoint of each run" in said
    assert kis(capsys, "study", "status", done)[1].count("1 done") == 1
    status, said = kis(capsys, "study", "report", done)
    assert status == 2
    assert "now asks other questions: data.templates: " in said
    assert "kis study probe" in said

    status, said = kis(capsys, "study", "probe", done)
    assert status == 0, said
    after = hashes(out / "runs")
    assert {name: after[name] for name in before} == before
    (record,) = (out / "runs" / RUN / "asked").glob("*/asked.json")
    asked = json.loads(record.read_text())
    questions = out / "data" / "exposures.questions.jsonl"
    assert asked["questions"] == sha256_file(questions) == sha256_content(record.parent / "questions.jsonl.gz")
    assert json.loads((out / "study.json").read_text())["data"]["questions"] == asked["questions"]
    assert asked["step"] == 10

    # What is trained on is there byte for byte, and the first questions still tell the order of the facts.
    now = hashes(out / "data")
    kept = [name for name in data if name.startswith(("corpus", "exposures", "facts", "tokenizer"))]
    assert [name for name in kept if now[name] != data[name]] == ["exposures.questions.jsonl"]
    assert now["exposures.order.jsonl"] == data["exposures.questions.jsonl"]

    runs = load_runs(out)
    assert runs.problems.empty
    assert runs.answers == {RUN: record.parent}
    margins = [frame.query("split == 'held_out'")["margin"].tolist() for frame in (first.probes, runs.probes)]
    assert margins[0] != margins[1]
    trained = [frame.query("split == 'train'")["margin"].tolist() for frame in (first.probes, runs.probes)]
    assert trained[0] == pytest.approx(trained[1], abs=1e-5)

    status, said = kis(capsys, "study", "probe", done)
    assert (status, hashes(out / "runs")) == (0, after)
    assert "1 of 1 run finished" in said
    assert "1 of 1 were asked these questions already" in said
    assert kis(capsys, "study", "report", done)[0] == 0
    survival = done.parent / "survival.csv"
    assert kis(capsys, "law", "survival", out, "--output", survival)[0] == 0
    assert len(survival.read_text().splitlines()) == 17

    # With the first questions again, the first answers count again.
    study_with(done, templates=str(tiny_sources.templates))
    assert kis(capsys, "study", "probe", done)[0] == 0
    assert load_runs(out).answers == {}
    assert load_runs(out).probes.equals(first.probes)


@pytest.mark.parametrize(
    "changes",
    [
        {"probes": {"templates": {"train": 0, "held_out": 2, "question": 1}, "batch_size": 7}},
        {"probes": {"moments": {"shares": [1.0]}, "facts_per_group": 4}},
        {"data": {"select": {"infused": 16, "background": 16, "control": 16, "distractors": 2}}},
    ],
    ids=["templates", "facts", "distractors"],
)
def test_settings_of_the_questions_name_the_runs_that_were_not_asked_and_are_asked(
    done: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out = done.parent / "out"
    before = hashes(out / "runs")
    if "data" in changes:
        study_with(done, **changes["data"])
    else:
        edited(done, **changes)
        status, said = kis(capsys, "study", "report", done)
        assert status == 2
        assert "no complete run was asked the study's questions" in said
        assert "kis study probe" in said
    assert kis(capsys, "study", "plan", done)[0] == 0
    status, said = kis(capsys, "study", "probe", done)
    assert status == 0, said
    assert {name: text for name, text in hashes(out / "runs").items() if name in before} == before
    probes = load_runs(out).probes
    if "probes" in changes and "templates" in changes["probes"]:
        assert set(probes["split"]) == {"held_out", "question"}
    elif "probes" in changes:
        assert set(probes["facts"]) == {4}
    else:
        assert probes["chance"].tolist() == pytest.approx([1 / 3] * len(probes))
    assert kis(capsys, "study", "run", done)[0] == 0  # nothing is left to train
    assert {name: text for name, text in hashes(out / "runs").items() if name in before} == before


def test_runs_without_answers_are_shown_and_asked_by_study_run(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = done.parent / "out"
    before = hashes(out / "runs")
    edited(done, probes={"moments": {"shares": [1.0]}, "facts_per_group": 4})
    said = kis(capsys, "study", "status", done)[1]
    assert "1 run: 1 unasked" in said
    assert "1 complete run has answers to other questions: probes." in " ".join(said.split())
    assert "probes.facts_per_group all -> 4" in " ".join(said.split())
    assert "kis study probe asks those of the study" in " ".join(said.split())
    (row,) = json.loads(kis(capsys, "study", "status", done, "--json")[1])["runs"]
    assert (row["state"], row["share"]) == ("unasked", 1.0)

    status, said = kis(capsys, "study", "run", done)
    assert status == 0, said
    assert "asking 1 finished run without answers to the study's questions" in said
    assert f"asking {RUN} (1 of 1)" in said
    assert {name: text for name, text in hashes(out / "runs").items() if name in before} == before
    assert set(load_runs(out).probes["facts"]) == {4}
    assert "1 run: 1 done" in kis(capsys, "study", "status", done)[1]

    after = hashes(out / "runs")
    status, said = kis(capsys, "study", "run", done)
    assert (status, hashes(out / "runs")) == (0, after)
    assert "asking" not in said


@pytest.mark.slow
def test_a_run_of_two_ranks_is_asked_by_two_processes_as_by_one(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edited(done, probes={"moments": {"shares": [1.0]}, "facts_per_group": 4})
    study = load_config(StudyConfig, done)
    (run,) = runs_of(study, data_config(study))
    shared = run.replace(parallel=ParallelConfig(tensor=2))
    questions = data_config(study).questions
    monkeypatch.setattr(asking, "_has_gpus", lambda *_: True)  # two processes on the CPU, over gloo
    margins = []
    for one in (shared, run):
        assert asking.unasked([one], questions) == [one]
        assert asking.ask([one], questions) == []
        assert asking.unasked([one], questions) == []
        (rows,) = (run.output / "asked").glob("*/probes.jsonl")
        margins.append([json.loads(line)["margin"] for line in rows.read_text().splitlines()])
        if one is shared:
            shutil.rmtree(run.output / "asked")
    assert margins[0] == pytest.approx(margins[1], abs=1e-4)


def test_a_run_that_cannot_be_asked_is_named_and_the_study_ends(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edited(done, probes={"moments": {"shares": [1.0]}, "facts_per_group": 4})
    shutil.rmtree(done.parent / "out" / "runs" / RUN / "checkpoints")
    status, said = kis(capsys, "study", "run", done)
    assert f"{RUN} could not be asked: " in said
    assert status == 2  # no run is left to analyse
    assert "no complete run was asked the study's questions" in said


def test_a_damaged_record_of_answers_does_not_stop_the_study_before_it_is_analysed(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited(done, probes={"moments": {"shares": [1.0]}, "facts_per_group": 4})
    record = done.parent / "out" / "runs" / RUN / "asked" / "0123456789ab" / "asked.json"
    record.parent.mkdir(parents=True)
    record.write_text("{")
    status, said = kis(capsys, "study", "run", done)
    assert f"{RUN} could not be asked: {record}:1: not valid JSON" in said
    assert f"remove the folder {record.parent}, and ask again" in said
    assert status == 2  # no run is left to analyse


def test_a_file_in_the_place_of_the_answers_is_refused_before_anything_is_written(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited(done, probes={"moments": {"shares": [1.0]}, "facts_per_group": 4})
    place = done.parent / "out" / "runs" / RUN / "asked"
    place.write_text("mine")
    before = hashes(done.parent / "out")
    status, said = kis(capsys, "study", "probe", done)
    assert status == 2
    assert f"{place}: is a file, not a folder" in said
    assert hashes(done.parent / "out") == before


def test_what_a_run_was_trained_on_is_not_asked_again(
    done: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    out = done.parent / "out"
    before = hashes(out)
    study_with(done, templates=templates_of(done.parent, tiny_sources, train=["[X] belongs to [Y]."]))
    for step in ("plan", "run", "probe"):
        status, said = kis(capsys, "study", step, done)
        assert status == 2, said
        assert "data.templates: " in said.splitlines()[-1]
    left = {name: text for name, text in hashes(out).items() if not name.endswith("seen.json")}
    assert left == {name: text for name, text in before.items() if not name.endswith("seen.json")}
    status, said = kis(capsys, "study", "probe", edited(done, training={"sequence_length": 64, "global_batch_size": 4}))
    assert status == 2
    assert "training.global_batch_size 8 -> 4" in said


def test_a_run_without_its_last_checkpoint_is_named_and_the_others_are_reported(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = done.parent / "out" / "runs" / RUN
    (manifest,) = run.glob("checkpoints/*/checkpoint.json")
    manifest.unlink()
    edited(done, probes={"facts_per_group": 4})
    status, said = kis(capsys, "study", "probe", done)
    assert status == 1
    assert f"{RUN} could not be asked: " in said
    last = said.splitlines()[-1]
    assert last.startswith(f"kis: error: 1 of 1 run could not be asked: {RUN}: ")
    assert "has no complete checkpoint of step 10" in last
    assert not list(run.glob("asked/*"))


def test_the_plan_says_how_many_bytes_the_last_checkpoint_takes(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = json.loads(kis(capsys, "study", "plan", done, "--json")[1])["runs"]
    checkpoints = done.parent / "out" / "runs" / RUN / "checkpoints"
    (last,) = checkpoints.glob("step-*10")
    shapes = {name: shape for name, shape in tensor_shapes(last).items() if not name.startswith(("random", "ledger"))}
    assert row["checkpoint_bytes"] == sum(4 * math.prod(shape) for shape in shapes.values())
    assert row["checkpoint_bytes"] == 12 * row["params"]


@pytest.mark.parametrize(
    ("count", "said"), [(10, "10 bytes"), (850e3, "850 kB"), (1.24e6, "1.2 MB"), (98.7e9, "99 GB"), (3.41e12, "3.4 TB")]
)
def test_bytes_are_said_as_people_say_them(count: float, said: str) -> None:
    assert in_bytes(count) == said


def test_what_cannot_be_asked_is_refused_and_nothing_is_written(
    done: Path, tmp_path: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new").mkdir()
    status, said = kis(capsys, "study", "probe", write_study(tmp_path / "new", tiny_sources))
    assert status == 2
    assert "no run is finished; kis study run trains them" in said
    assert not (tmp_path / "new" / "out").exists()
    status, said = kis(capsys, "study", "probe", done, "--batch-size", "0")
    assert (status, said) == (2, "kis: error: --batch-size: is 0; use at least 1\n")
    run = done.parent / "out" / "runs" / RUN
    before = hashes(run)
    for words, named in (
        (["--keep", "--step", "5"], "--step: cannot be combined with --keep"),
        (["--keep", "--histories", tmp_path / "moments.csv"], "--histories: cannot be combined with --keep"),
        (["--keep", "--all-templates", "--json"], "--json: cannot be combined with --keep"),
        (["--keep", "--all-templates", "--batch-size", "0"], "--batch-size: is 0"),
        (["--keep", "--exposures", tmp_path / "none"], "none.questions.jsonl"),
    ):
        status, said = kis(capsys, "probe", run, *words)
        assert (status, hashes(run)) == (2, before)
        assert named in said
    (run / "DONE").rename(run / "DONE.away")
    status, said = kis(capsys, "probe", run, "--keep")
    assert status == 2
    assert "is not a finished run" in said
    status, said = kis(capsys, "study", "probe", done, "--only", RUN)
    assert status == 2
    assert said.endswith(f"--only: not finished: {RUN}; kis study run trains them\n")


def test_what_is_missing_or_damaged_is_named_with_what_to_do(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = done.parent / "out"
    questions = out / "data" / "exposures.questions.jsonl"
    questions.rename(questions.with_name("away"))
    status, said = kis(capsys, "study", "probe", done)
    assert status == 2
    assert f"more than the questions has changed ({questions.name}: missing)" in said
    assert "kis study run makes missing files again" in said
    questions.with_name("away").rename(questions)
    (out / "data").rename(out / "away")
    status, said = kis(capsys, "study", "probe", done)
    assert status == 2
    assert "there are no facts to ask about; restore what the runs were trained with" in said
    assert not (out / "data").exists()
    (out / "away").rename(out / "data")
    record = out / "runs" / RUN / "asked" / "0123456789ab" / "asked.json"
    record.parent.mkdir(parents=True)
    for content in (None, "x", '{"schema": "kis.asked/1", "questions": "q", "probes": 1, "asked": "t", "files": {}}'):
        if content is not None:
            record.write_text(content)
        status, said = kis(capsys, "study", "probe", edited(done, probes={"facts_per_group": 4}))
        assert status == 2
        assert said.endswith(f"; remove the folder {record.parent}, and ask again with kis study probe\n")


def test_templates_without_the_sentences_that_are_analysed_are_refused_before_anybody_is_asked(
    done: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    out = done.parent / "out"
    before = {name: text for name, text in hashes(out).items() if not name.endswith(".lock")}
    study_with(done, templates=templates_of(done.parent, tiny_sources, held_out=[]))
    status, said = kis(capsys, "study", "probe", done)
    assert status == 2
    assert "no relation of the infused facts has a held_out sentence" in said
    assert {name: text for name, text in hashes(out).items() if not name.endswith(".lock")} == before
