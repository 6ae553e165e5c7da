"""A whole study through the command line: sources to report, reruns, kills, failures."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_kis.cli.main import main
from megatron_kis.common.units import plural
from megatron_kis.executor.attempts import read_attempts
from tests.forked import Kis, run_kis
from tests.sources import Sources
from tests.studies import FREQUENCIES, edited, processes_naming, write_study


@pytest.fixture
def study(tmp_path: Path, tiny_sources: Sources) -> Path:
    """A study of one size and three frequencies, each run a few seconds long."""
    return write_study(tmp_path, tiny_sources)


@pytest.fixture
def prepared(study: Path, tiny_data: Path) -> Path:
    """The same study, whose data are there."""
    shutil.copytree(tiny_data, study.parent / "out" / "data")
    return study


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_sources: Sources) -> Path:
    """The study, run from its sources to its report once; ``complete`` hands it out."""
    study = write_study(tmp_path_factory.mktemp("whole"), tiny_sources)
    ended = run_kis("study", "run", study)
    assert ended.returncode == 0, ended.stderr
    return study


@pytest.fixture
def complete(whole: Path, tmp_path: Path) -> Iterator[Path]:
    """A study with its runs and its report, as if it had just ended: what a test changes there is undone."""
    kept = shutil.copytree(whole.parent, tmp_path / "kept")
    yield whole
    shutil.rmtree(whole.parent)
    shutil.copytree(kept, whole.parent)


def start(study: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "megatron_kis", "study", "run", str(study)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def runs_of(study: Path) -> Path:
    return study.parent / "out" / "runs"


def wait_for(condition: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


def test_a_study_goes_from_its_sources_to_its_report_and_a_rerun_skips_what_is_done(
    complete: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = complete
    out = study.parent / "out"
    report = (out / "report.html").read_text()
    assert "http://" not in report.replace("http://www.w3.org", "")
    records = [json.loads((run / "run.json").read_text()) for run in sorted(runs_of(study).iterdir())]
    assert sorted(record["infusion_frequency"] for record in records) == FREQUENCIES
    assert len({record["tokens"] for record in records}) == 1
    for name in ("curves.csv", "points.csv", "law.json", "study.yaml"):
        assert (out / name).exists()

    before = {path: path.stat().st_mtime_ns for path in runs_of(study).rglob("*")}
    capsys.readouterr()
    assert main(["study", "run", str(study)]) == 0
    assert "3 runs, 3 done already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in runs_of(study).rglob("*")} == before

    assert main(["study", "status", "--json", str(study)]) == 0
    assert json.loads(capsys.readouterr().out)["states"] == {"done": 3}
    # What is done belongs to these settings; other ones are refused before anything is touched.
    assert main(["study", "run", str(study), "background.frequency=2"]) == 2
    assert "other settings" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in runs_of(study).rglob("*")} == before


def test_the_plan_of_a_study_names_ratios_and_trains_nothing(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "plan", "--json", str(study)]) == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert sorted(row["infusion_frequency"] for row in rows) == FREQUENCIES
    assert all((row["infusion_ratio"] > 0) == (row["infusion_frequency"] > 0) for row in rows)
    assert not runs_of(study).exists()


@pytest.mark.slow
def test_an_ended_study_leaves_no_process_and_goes_on_where_it_was(prepared: Path) -> None:
    edited(prepared, frequencies=[0, 8], executor={"workers": 1})
    second = runs_of(prepared) / "1x16_D5.12k_F8_s0"
    done: dict[Path, int] = {}
    for starts, ending in enumerate((signal.SIGKILL, signal.SIGINT, signal.SIGTERM), 1):
        executor = start(prepared)  # all its processes are real ones: what they started with must not outlive them
        wait_for(lambda: len(read_attempts(second).attempts) == starts or executor.poll() is not None)  # noqa: B023
        assert executor.poll() is None, executor.communicate()
        executor.send_signal(ending)
        _, errors = executor.communicate(timeout=60)
        if ending != signal.SIGKILL:
            assert executor.returncode == (130 if ending == signal.SIGINT else 75)
            assert "run the same command again" in errors
        wait_for(lambda: not processes_naming(str(runs_of(prepared))), seconds=20)
        before, done = done, {path: path.stat().st_mtime_ns for path in runs_of(prepared).glob("*/DONE")}
        assert len(done) == 1  # the second was ended, and did not come to its own end
        assert before in ({}, done)

    again = run_kis("study", "run", prepared)
    assert again.returncode == 0, again.stderr
    assert len(list(runs_of(prepared).glob("*/DONE"))) == 2
    assert {path: path.stat().st_mtime_ns for path in done} == done


@pytest.mark.slow
def test_two_executors_do_not_meet(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edited(prepared, frequencies=[8], token_budgets=[20_000 * 8 * 64])  # longer than this test
    first = Kis(["study", "run", str(prepared)])
    wait_for(lambda: list(runs_of(prepared).glob("*/log.txt")) or first.poll() is not None)
    assert main(["study", "run", str(prepared)]) == 1
    assert "another 'kis study run' is running here" in capsys.readouterr().err
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    assert first.returncode == 130


@pytest.mark.slow
def test_a_failed_run_does_not_stop_the_others_and_is_named(
    tmp_path: Path, tiny_sources: Sources, tiny_data: Path
) -> None:
    shutil.copytree(tiny_data, tmp_path / "out" / "data")
    exploding = {"layers": 1, "width": 32, "heads": 2, "learning_rate": 1e30}
    study = write_study(
        tmp_path,
        tiny_sources,
        ladder=[{"layers": 1, "width": 16, "heads": 2}, exploding],
        frequencies=[0],
        training={"sequence_length": 64, "global_batch_size": 8, "optimizer": {"warmup_share": 0.0}},
        executor={"workers": 2, "retries": 0},
    )
    ended = run_kis("study", "run", study)
    assert ended.returncode == 1
    errors = ended.stderr
    assert "1x32_D5.12k_F0_s0 failed" in errors
    assert "not finite" in errors
    assert "1 of 2 runs failed" in errors
    assert [path.parent.name for path in runs_of(study).glob("*/DONE")] == ["1x16_D5.12k_F0_s0"]
    assert (study.parent / "out" / "report.html").exists()


@pytest.mark.parametrize("wrong", [["--params", "nan"], ["--params", "-5"], ["--tokens", "0"], ["--count", "0"]])
def test_a_target_or_a_count_that_cannot_be_is_refused(
    study: Path, capsys: pytest.CaptureFixture[str], wrong: list[str]
) -> None:
    try:
        status = main(["study", "next", str(study), "--params", "1e6", *wrong])
    except SystemExit as refused:  # by the parser, where it is no number at all
        status = int(refused.code or 0)
    assert status == 2
    assert re.search(rf"error: (argument )?{wrong[0]}: ", capsys.readouterr().err)


def test_no_run_is_proposed_for_a_collapse_by_loss(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "next", str(study), "--params", "1e6", "analysis.criterion=general_loss"]) == 2
    assert "analysis.criterion: is general_loss" in capsys.readouterr().err


@pytest.mark.slow
def test_proposed_runs_are_added_to_the_study_file_and_they_alone_are_trained(
    complete: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = complete
    study.write_text("# my study\n" + study.read_text())
    before = {path: path.stat().st_mtime_ns for path in runs_of(study).glob("*/DONE")}
    propose = ["study", "next", str(study), "--params", "1e6", "--count", "2"]
    capsys.readouterr()
    assert main([*propose, "--json"]) == 0
    asked = json.loads(capsys.readouterr().out)
    proposed = asked["runs"]
    assert proposed
    assert asked["sizes"] == []  # of one size there is no law
    assert {row["size"] for row in proposed} == {"1x16"}
    assert "runs" not in yaml.safe_load(study.read_text())  # asking changes nothing

    assert main([*propose, "--write"]) == 0
    assert f"{plural(len(proposed), 'run')} added to" in capsys.readouterr().out
    assert study.read_text().startswith("# my study\n")
    listed = yaml.safe_load(study.read_text())["runs"]
    assert listed == [
        {"size": "1x16", "tokens": 10 * 8 * 64, "frequency": row["frequency"], "seed": row["seed"]} for row in proposed
    ]
    text = study.read_text()
    assert main([*propose, "--write"]) == 0  # before they are trained, the same ones are proposed and not added again
    assert study.read_text() == text
    assert "planned already" in capsys.readouterr().out

    ended = run_kis("study", "run", study)
    assert ended.returncode == 0, ended.stderr
    assert f"{3 + len(proposed)} runs, 3 done already" in ended.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    names = {path.parent.name for path in runs_of(study).glob("*/DONE")} - {path.parent.name for path in before}
    assert names == {f"1x16_D5.12k_F{run['frequency']}_s{run['seed']}" for run in listed}
