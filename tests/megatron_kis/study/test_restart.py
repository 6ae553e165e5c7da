"""Cells that begin again, cells that others have, and settings wherever they stand: through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from megatron_kis.cli import main as cli
from megatron_kis.cli.main import main
from megatron_kis.executor.attempts import read_attempts
from megatron_kis.executor.lease import HeldLease, acquire
from tests.forked import run_kis
from tests.sources import Sources
from tests.studies import write_study

CELL = "1x16_D5.12k_F8_s0"


def edited(study: Path, **changes: object) -> None:
    content = yaml.safe_load(study.read_text())
    study.write_text(yaml.safe_dump(content | changes))


@pytest.mark.slow
def test_after_an_edit_of_the_settings_a_run_begins_again_when_it_is_asked_to(
    tmp_path: Path, tiny_sources: Sources, tiny_data: Path
) -> None:
    shutil.copytree(tiny_data, tmp_path / "out" / "data")
    training = {"sequence_length": 64, "global_batch_size": 8}
    study = write_study(
        tmp_path,
        tiny_sources,
        frequencies=[0, 8],
        training={**training, "optimizer": {"learning_rate": 1e30, "warmup_share": 0.0}},
        checkpoints={"moments": {"every": 1}, "asynchronous": False},
        executor={"workers": 1, "retries": 0},
    )
    failed = run_kis("study", "run", study, "--only", CELL)
    assert failed.returncode == 1
    folder = tmp_path / "out" / "runs" / CELL
    assert list(folder.glob("checkpoints/step-*"))
    assert "--restart" in failed.stderr
    edited(study, training=training)
    ended = run_kis("study", "run", study, "--only", CELL, "--restart")
    assert ended.returncode == 0, ended.stderr
    assert (folder / "DONE").exists()
    assert [session["from_step"] for session in json.loads((folder / "run.json").read_text())["sessions"]] == [0]
    assert [attempt.outcome for attempt in read_attempts(folder).attempts] == ["failed", "done"]
    assert not (tmp_path / "out" / "runs" / CELL.replace("F8", "F0")).exists()

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(["study", "run", str(study), "--only", CELL, "--restart"]) == 0  # what is DONE is left as it is
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.slow
def test_a_study_that_left_runs_to_others_says_so_after_its_report(
    tmp_path: Path, tiny_sources: Sources, tiny_data: Path
) -> None:
    shutil.copytree(tiny_data, tmp_path / "out" / "data")
    study = write_study(tmp_path, tiny_sources, frequencies=[0, 8])
    held = acquire(tmp_path / "out" / "runs" / CELL)
    assert isinstance(held, HeldLease)
    left = run_kis("study", "run", study, "--restart")
    assert left.returncode == 75
    assert f"{CELL} was left to another executor" in left.stderr
    assert "kis: error: 1 of 2 runs left to other executors" in left.stderr
    assert (tmp_path / "out" / "report.html").exists()
    assert not (held.folder / "attempts.jsonl").exists()  # it is at work: its next attempt is not ours to decide
    held.release()
    ended = run_kis("study", "run", study)
    assert ended.returncode == 0, ended.stderr


def understood(words: list[str], monkeypatch: pytest.MonkeyPatch, *, step: str = "run") -> tuple[object, list[str]]:
    """``--only`` and the overrides of a command."""
    found = []
    monkeypatch.setattr(f"megatron_kis.cli.study.{step}._{step}", lambda options: found.append(options) or 0)
    assert cli.main(["study", step, "S.yaml", *words]) == 0
    return getattr(found[0], "only", None), found[0].overrides


@pytest.mark.parametrize(
    ("words", "only", "overrides"),
    [
        (["seeds=[1]"], None, ["seeds=[1]"]),
        (["--only", "A", "seeds=[1]"], ["A"], ["seeds=[1]"]),
        (["name=x", "--only", "A", "B", "seeds=[1]", "--restart"], ["A", "B"], ["name=x", "seeds=[1]"]),
        (["--workers", "2", "seeds=[1]", "--only", "A"], ["A"], ["seeds=[1]"]),
        (["--json", "seeds=[1]", "name=x"], None, ["seeds=[1]", "name=x"]),
    ],
)
def test_settings_are_taken_wherever_they_stand(
    words: list[str], only: list[str] | None, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert understood(words, monkeypatch) == (only, overrides)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ["study", "run", "seeds=[1]", "S.yaml"],
            "seeds=[1]: is a setting, not STUDY.yaml; settings (key=value) come after the file",
        ),
        (["train", "training.seed=1", "R.yaml"], "training.seed=1: is a setting, not RUN.yaml"),
        (["study", "logs", "S.yaml", "seeds=[1]", "A"], "seeds=[1]: is a setting, not the name of a run"),
        (["study", "run", "S.yaml", "--only", "seeds=[1]"], "--only: names no run; kis study status lists them"),
    ],
)
def test_settings_that_stand_for_something_else_are_named(
    words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert problem in capsys.readouterr().err


@pytest.mark.slow
def test_words_that_are_no_settings_are_still_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["S.yaml", "--wrokers=2"], ["S.yaml", "--json", "A"], ["S.yaml", "--json", "=3"]):
        with pytest.raises(SystemExit) as ended:
            main(["study", "run", *words])
        assert ended.value.code == 2
        assert "unrecognized arguments" in capsys.readouterr().err
