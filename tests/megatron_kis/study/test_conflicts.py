"""What stands in a study's way is found before training and said by key; and where a study's paths begin."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from megatron_kis.cli.main import main
from tests.forked import run_kis
from tests.sources import Sources
from tests.studies import RUN, edited, tree

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("step", [["plan"], ["run"], ["run", "--only", "1x16_D5.12k_F0_s0"], ["submit"]])
def test_complete_runs_of_other_settings_are_named_by_key_before_anything_is_done(
    step: list[str], done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited(done, training={"sequence_length": 64, "global_batch_size": 8, "optimizer": {"learning_rate": 1e-4}})
    edited(done, frequencies=[0, 8], background={"frequency": 2})
    before = tree(done.parent)
    assert main(["study", step[0], str(done), *step[1:]]) == 2
    said = capsys.readouterr().err
    assert "1 complete run has other settings: " in said
    assert "training.optimizer.learning_rate 0.003 -> 0.0001" in said
    assert "infusion.background.frequency 4 -> 2" in said
    assert f"({RUN})" in said
    assert tree(done.parent) == before


def test_several_runs_are_counted_and_the_first_is_named(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = done.parent / "out" / "runs"
    for frequency in (3, 5):
        copy = runs / f"1x16_D5.12k_F{frequency}_s0"
        shutil.copytree(runs / RUN, copy)
        record = json.loads((copy / "run.json").read_text())
        record["config"]["infusion"]["frequency"] = frequency
        record["config_fingerprint"] = f"{frequency:064d}"
        (copy / "run.json").write_text(json.dumps(record))
    edited(done, frequencies=[3, 5, 8])
    assert main(["study", "plan", str(done), "training.global_batch_size=4"]) == 2
    said = capsys.readouterr().err
    assert "3 complete runs have other settings: training.global_batch_size 8 -> 4 (first 1x16_D5.12k_F" in said


def test_a_status_of_an_edited_study_does_not_call_an_old_run_done(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "status", "--json", str(done)]) == 0
    assert json.loads(capsys.readouterr().out)["states"] == {"done": 1}
    change = "training.optimizer.learning_rate=1e-4"
    assert main(["study", "status", "--json", str(done), change]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["states"] == {"other settings": 1}
    assert found["runs"][0]["differs"] == ["training.optimizer.learning_rate 0.003 -> 0.0001"]
    assert main(["study", "status", str(done), change]) == 0
    said = capsys.readouterr().out
    assert said.startswith("small: 1 run: 1 other settings")
    assert f"1 complete run has other settings: training.optimizer.learning_rate 0.003 -> 0.0001 ({RUN})" in said
    assert main(["study", "watch", str(done), change]) == 1
    assert "runs with other settings: 1 of 1" in capsys.readouterr().err
    for same in ("executor.workers=2", "device=auto", "ladder=[{layers: 1, width: 16, heads: 2, micro_batch_size: 4}]"):
        assert main(["study", "status", "--json", str(done), same]) == 0
        assert json.loads(capsys.readouterr().out)["states"] == {"done": 1}, same


def test_a_status_says_that_the_data_were_made_with_other_settings(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "status", str(done)]) == 0
    assert capsys.readouterr().err == ""
    assert main(["study", "status", str(done), "data.vocab_size=390"]) == 0
    assert "out/data were made with other settings: data.vocab_size 400 -> 390\n" in capsys.readouterr().err


def test_runs_that_the_study_does_not_name_are_told_and_kept(done: Path) -> None:
    runs = done.parent / "out" / "runs"
    before = tree(runs / RUN)
    ended = run_kis("study", "run", done, "frequencies=[0]")
    assert ended.returncode == 0, ended.stderr
    assert f"1 run in {runs} that the study does not name: kept, and not analysed ({RUN})" in ended.stderr
    assert tree(runs / RUN) == before


def test_an_output_of_another_study_is_refused_and_a_renamed_study_is_the_same(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(done.parent)
    others = {
        "frequencies=[0]": "with 1 run, none of them this one's",
        "background.frequency=2": "its runs have other settings: infusion.background.frequency 4 -> 2",
        "data.vocab_size=390": "its data were made with other settings: data.vocab_size 400 -> 390",
    }
    for step in ("plan", "run", "submit", "status", "watch", "report", "next --params=1e6", "cancel", f"logs {RUN}"):
        name, *rest = step.split()
        for change, said in others.items():
            words = ["study", name, str(done), *rest, "name=other", change]
            assert main(words) == 2, words
            assert f"holds another study, 'small', {said}" in capsys.readouterr().err, words
    assert tree(done.parent) == before
    assert main(["study", "run", str(done), "name=renamed"]) == 0
    assert "renamed: 1 run, 1 done already" in capsys.readouterr().err


def test_data_without_runs_belong_to_their_study_too(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(done.parent / "out" / "runs")
    before = tree(done.parent)
    for change in ("data.vocab_size=390", "frequencies=[1]"):
        for step in ("plan", "run", "status"):
            assert main(["study", step, str(done), "name=other", change]) == 2
            assert "holds another study, 'small', " in capsys.readouterr().err
    assert tree(done.parent) == before
    assert main(["study", "plan", str(done), "data.vocab_size=390"]) == 0  # its own study may be changed
    assert main(["study", "plan", str(done), "name=renamed"]) == 0


def test_an_unfinished_run_of_other_settings_is_found_before_it_starts(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = done.parent / "out" / "runs" / RUN
    (folder / "DONE").unlink()
    assert main(["study", "run", str(done), "training.optimizer.learning_rate=1e-4"]) == 2
    said = capsys.readouterr().err
    assert "1 unfinished run has checkpoints of other settings: training.optimizer.learning_rate" in said
    assert "--restart" in said


def test_a_study_is_the_same_from_every_folder(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    before = tree(done.parent)
    for file in (done, Path("../w/study.yaml"), done.parent / "out" / "study.yaml"):
        for step in ("status", "plan"):
            assert main(["study", step, "--json", str(file)]) == 0
        assert main(["study", "status", str(file)]) == 0
        assert "1 run: 1 done" in capsys.readouterr().out
    assert tree(done.parent) == before
    assert main(["study", "run", "../w/study.yaml"]) == 0
    assert "1 done already" in capsys.readouterr().err
    monkeypatch.chdir(done.parent / "out")
    assert main(["study", "run", "study.yaml"]) == 0  # its own record, from its own folder
    assert "1 done already" in capsys.readouterr().err
    assert yaml.safe_load(Path("study.yaml").read_text())["output"] == "."
    assert not list(elsewhere.iterdir())


def test_a_copied_study_stands_for_itself(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    edited(done, output=str(done.parent / "out"))  # an absolute path does not tie the record to its place
    assert main(["study", "run", str(done)]) == 0
    copy = tmp_path / "far" / "away"
    shutil.copytree(done.parent / "out", copy)
    shutil.rmtree(done.parent)
    monkeypatch.chdir("/")
    capsys.readouterr()
    assert main(["study", "status", str(copy / "study.yaml")]) == 0
    assert "1 run: 1 done" in capsys.readouterr().out
    (copy / "report.html").unlink()
    assert main(["study", "report", str(copy / "study.yaml")]) == 0
    assert (copy / "report.html").exists()


@pytest.mark.parametrize("key", ["output", "data.text", "data.facts", "data.templates", "data.tokenizer"])
def test_variables_and_home_are_filled_in_or_refused(
    key: str, done: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    value = "[$NOT_SET_HERE/x]" if key == "data.text" else "$NOT_SET_HERE/x"
    assert main(["study", "status", str(done), f"{key}={value}"]) == 2
    assert "NOT_SET_HERE" in capsys.readouterr().err
    content = yaml.safe_load(done.read_text())
    section, _, last = key.rpartition(".")
    place = content[section] if section else content
    place[last] = [f"{value[1:-1]}"] if key == "data.text" else value
    done.write_text(yaml.safe_dump(content))
    assert main(["study", "status", str(done)]) == 2
    said = capsys.readouterr().err
    assert f"study.yaml: {key}" in said
    assert "NOT_SET_HERE, which is not set" in said
    if key == "output":
        monkeypatch.setenv("NOT_SET_HERE", str(done.parent))
        (done.parent / "out").rename(done.parent / "x")
        assert main(["study", "status", str(done)]) == 0
        assert "1 done" in capsys.readouterr().out
        monkeypatch.setenv("HOME", str(done.parent))
        assert main(["study", "status", str(done), "output=~/x"]) == 0
        assert "1 done" in capsys.readouterr().out


def test_programs_and_images_of_a_cluster_may_name_variables(
    done: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (done.parent / "out" / "runs" / RUN / "DONE").unlink()
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("IMAGES", "/images")
    edited(done, cluster={"python": "~/env/bin/python", "container": {"kind": "apptainer", "image": "$IMAGES/a.sif"}})
    assert main(["study", "submit", "--dry-run", str(done)]) == 0
    assert "/images/a.sif python -m megatron_kis study prepare" in capsys.readouterr().out
    edited(done, cluster={"python": "~/env/bin/python"})
    assert main(["study", "submit", "--dry-run", str(done)]) == 0
    assert "/home/somebody/env/bin/python -m megatron_kis study prepare" in capsys.readouterr().out
    edited(done, cluster={"python": "$NOT_SET_HERE/bin/python"})
    assert main(["study", "submit", "--dry-run", str(done)]) == 2
    assert "cluster.python: " in capsys.readouterr().err
