"""A study over the number of infused facts, from its plan to its report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.cli.main import main
from tests.forked import run_kis
from tests.sources import Sources
from tests.studies import write_study

AMOUNT = {"facts": [0, 8, 16], "frequencies": [8], "infusion_ratios": [0.3], "output": "out"}
RUNS = ["1x16_D5.12k_F0_s0", *(f"1x16_D5.12k_K{facts}_{often}_s0" for facts in (8, 16) for often in ("F8", "R0.3"))]


@pytest.fixture
def study(tmp_path: Path, tiny_sources: Sources, tiny_data: Path) -> Path:
    shutil.copytree(tiny_data, tmp_path / "out" / "data")
    return write_study(tmp_path, tiny_sources, **AMOUNT)


def planned(study: Path, capsys: pytest.CaptureFixture[str], *changes: str) -> dict[str, dict[str, Any]]:
    capsys.readouterr()
    assert main(["study", "plan", str(study), *changes, "--json"]) == 0
    return {row["run"]: row for row in json.loads(capsys.readouterr().out)["runs"]}


def test_the_plan_shows_how_many_facts_and_how_often(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = planned(study, capsys)
    assert sorted(rows) == sorted(RUNS)
    assert [rows[name]["facts"] for name in RUNS] == [0, 8, 8, 16, 16]
    assert [rows[name]["infusion_frequency"] for name in RUNS[:2]] == [0, 8]
    few, many = rows[RUNS[2]], rows[RUNS[4]]
    assert few["infusion_ratio"] == pytest.approx(many["infusion_ratio"], abs=0.01)
    assert few["infusion_ratio"] == pytest.approx(0.3, abs=0.01)
    assert few["infusion_frequency"] == pytest.approx(2 * many["infusion_frequency"], rel=0.1)
    assert main(["study", "plan", str(study)]) == 0
    assert "facts" in capsys.readouterr().out.splitlines()[1]


def test_the_command_line_may_change_the_doses(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ("facts=[4]", "frequencies=[]", "infusion_ratios=[0.1]")
    assert sorted(planned(study, capsys, *changes)) == ["1x16_D5.12k_K4_R0.1_s0"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("facts=[17]",), "facts=[17]: 17 of 16 infused facts; at most 16, or raise data.select.infused"),
        (
            ("infusion_ratios=[0.001]",),
            "infusion_ratios: run 1x16_D5.12k_K8_R0.001_s0: 0.001 of 5,120 tokens shows",
        ),
        (("infusion_ratios=[0.99]",), "tokens"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_dose_that_cannot_be_fed_is_refused_before_any_run(
    study: Path, changes: tuple[str, ...], said: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", command, str(study), *changes]) == 2
    assert said in capsys.readouterr().err
    assert not (study.parent / "out" / "runs").exists()


@pytest.mark.slow
def test_a_study_of_numbers_of_facts_is_trained_and_nothing_twice(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = run_kis("study", "run", study)
    assert ended.returncode == 0, ended.stderr
    shown = {}
    for name in RUNS:
        folder = study.parent / "out" / "runs" / name
        record = json.loads((folder / "run.json").read_text())
        ledger = json.loads((folder / "exposures.json").read_text())
        assert ledger["exact"] is True
        shown[name] = {fact for fact, count in ledger["received"].get("infused", {}).items() if count}
        assert len(shown[name]) == (record["infused_facts"] if record["infusion_frequency"] else 0)
    assert [len(shown[name]) for name in RUNS] == [0, 8, 8, 16, 16]
    assert shown[RUNS[1]] == shown[RUNS[2]] < shown[RUNS[3]]
    before = {path: path.stat().st_mtime_ns for path in (study.parent / "out" / "runs").rglob("*") if path.is_file()}
    again = run_kis("study", "run", study)
    assert again.returncode == 0, again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in before}
    capsys.readouterr()
    assert main(["study", "status", str(study), "--json"]) == 0
    assert {row["state"] for row in json.loads(capsys.readouterr().out)["runs"]} == {"done"}
