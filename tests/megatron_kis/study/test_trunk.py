"""A study whose runs branch from trunks: which runs there are, in which order, at what cost, and that it is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.cli.main import main
from megatron_kis.common.configuration import parse_config
from megatron_kis.common.errors import InputError
from megatron_kis.config.data import DataConfig
from megatron_kis.config.run import RunConfig
from megatron_kis.config.study import StudyConfig
from megatron_kis.study.forecast import forecast
from megatron_kis.study.grid import cost, runs_of
from megatron_kis.study.status import RunStatus
from tests.forked import run_kis
from tests.sources import Sources
from tests.studies import GRID_STUDY, write_study

DATA = DataConfig(corpus=Path("c"), validation=Path("v"), exposures=Path("e"), tokenizer=Path("t"))
TRUNK: dict[str, Any] = {"trunk": {"share": 0.5}, "token_budgets": [64_000], "facts": [20, 100], "frequencies": [7]}


def runs(**changes: Any) -> list[RunConfig]:
    return runs_of(parse_config(StudyConfig, {**GRID_STUDY, **TRUNK, **changes}, source="study"), DATA)


def test_each_size_budget_and_seed_has_one_trunk_and_it_comes_first() -> None:
    found = runs(runs=[{"size": "cpu-32", "tokens": 128_000, "frequency": 9, "seed": 2}])
    trunks, branches = found[:5], found[5:]
    assert {run.name for run in trunks} == {
        *(f"{size}_D64k_F0_s{seed}" for size in ("cpu-32", "3x32") for seed in (0, 4)),
        "cpu-32_D128k_F0_s2",
    }
    assert len(branches) == 9
    assert all(run.trunk is None and run.infusion.frequency == 0 for run in trunks)
    outputs = {run.name: run.output for run in trunks}
    for run in branches:
        size, budget, *_, seed = run.name.split("_")
        assert run.trunk == outputs[f"{size}_{budget}_F0_{seed}"]
    assert {run.infusion.begins for run in found} == {0.5}
    for part in (trunks, branches):
        costs = [cost(run) for run in part]
        assert costs == sorted(costs, reverse=True)


def test_a_run_without_infusion_that_is_named_is_the_trunk() -> None:
    names = {run.name for run in runs()}
    assert {run.name for run in runs(facts=[0, 20, 100])} == names
    assert {run.name for run in runs(frequencies=[0, 7])} == names


def test_the_checkpoint_that_branches_take_stays() -> None:
    moments = {"shares": [1.0], "every": 10}
    found = runs(checkpoints={"moments": moments}, trunk={"share": 0.3})
    shares = {run.trunk is None: run.checkpoints.moments.shares for run in found}
    assert shares == {True: (0.3, 1.0), False: (1.0,)}
    for run in found:
        assert run.begin_step == round(0.3 * run.training.steps)
        assert run.begin_step in found[0].checkpoints.moments.steps(run.training.steps)


def test_a_branch_costs_what_it_trains_itself() -> None:
    found = {run.name: cost(run) for run in runs(trunk={"share": 0.25})}
    assert found["cpu-32_D64k_K20_F7_s0"] == pytest.approx(0.75 * found["cpu-32_D64k_F0_s0"])


def test_the_planner_counts_what_each_run_trains_itself(
    tmp_path: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    flops = {}
    for share in (None, 0.25):
        trunk = None if share is None else {"share": share}
        study = write_study(tmp_path, tiny_sources, trunk=trunk, frequencies=[0, 3, 8])
        assert main(["plan", str(study), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["runs"] == 3
        flops[share] = found["flops"]
    assert flops[0.25] == pytest.approx(flops[None] * (1 + 2 * 0.75) / 3, rel=0.02)


def test_a_study_without_a_trunk_has_none() -> None:
    for run in runs(trunk=None):
        assert (run.trunk, run.infusion.begins, run.infusion.facts is None) == (None, None, False)


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.0, "trunk.share: is 0.0; must be above 0"),
        (1.0, "trunk.share: is 1.0; must be below 1"),
        (
            0.0001,
            "trunk.share: run cpu-32_D64k_K20_F7_s0: .* is step 0; use a share from 1/500 to 499/500",
        ),
    ],
)
def test_a_share_that_cannot_be_is_refused(share: float, said: str) -> None:
    with pytest.raises(InputError, match=said):
        runs(trunk={"share": share})


def test_the_rest_of_a_branch_is_predicted_by_what_it_trains_itself() -> None:
    def row(name: str, state: Any, **values: Any) -> RunStatus:
        return RunStatus(name, "s", 1000, state, **{"cost": 10_000.0, **values})

    done = row("t", "done", share=1.0, whole=True, seconds=200.0)
    waiting = row("b", "waiting", own=0.25, cost=2500.0)
    half = row("c", "stopped", own=0.25, share=0.9, cost=2500.0)
    assert forecast([done, waiting, half]).runs == {"b": pytest.approx(50.0), "c": pytest.approx(20.0)}
    branch = row("b", "done", share=1.0, own=0.25, whole=True, seconds=50.0, cost=2500.0)
    other = RunStatus("o", "large", 1000, "waiting", own=0.5, cost=40_000.0)
    found = forecast([branch, row("t", "waiting"), other]).runs
    assert found == {"t": pytest.approx(200.0), "o": pytest.approx(800.0)}


def test_jobs_of_branches_come_after_those_of_trunks(
    tmp_path: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    study = write_study(tmp_path, tiny_sources, trunk={"share": 0.5}, frequencies=[3, 8], seeds=[0, 1])
    assert main(["study", "submit", "--dry-run", "--json", str(study)]) == 0
    shown = json.loads(capsys.readouterr().out)
    data, trunks, small, report = shown["jobs"]
    assert (trunks["job"], trunks["cells"], small["job"], small["cells"]) == ("small-trunks", 2, "small", 4)
    assert "--dependency=afterok:data" in trunks["options"]
    assert "--dependency=afterok:data,afterany:small-trunks" in small["options"]
    assert "--dependency=afterok:data,afterany:small-trunks:small" in report["options"]
    assert data["options"] == []
    assert {"small-trunks.sbatch", "small.sbatch"} <= {job["script"] for job in shown["jobs"]}


@pytest.mark.slow
def test_a_study_with_a_trunk_is_planned_trained_and_counted(
    tmp_path: Path, tiny_sources: Sources, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_data, tmp_path / "out" / "data")
    study = write_study(tmp_path, tiny_sources, trunk={"share": 0.5}, frequencies=[2, 4], output="out")
    assert main(["study", "plan", str(study), "--json"]) == 0
    rows = {row["run"]: row for row in json.loads(capsys.readouterr().out)["runs"]}
    trunk, branches = "1x16_D5.12k_F0_s0", ["1x16_D5.12k_F2_s0", "1x16_D5.12k_F4_s0"]
    assert set(rows) == {trunk, *branches}
    assert {rows[name]["trunk"] for name in branches} == {trunk}
    assert [rows[name]["flops"] for name in branches] == [rows[trunk]["flops"] / 2] * 2
    assert main(["study", "plan", str(study)]) == 0
    assert "2 runs branch at 0.5 of their tokens" in capsys.readouterr().out
    ended = run_kis("study", "run", study)
    assert ended.returncode == 0, ended.stderr
    for name in branches:
        folder = tmp_path / "out" / "runs" / name
        record = json.loads((folder / "run.json").read_text())
        assert record["branched_from"]["run"] == trunk
        assert record["config"]["trunk"] == f"../{trunk}"
        assert json.loads((folder / "exposures.json").read_text())["exact"] is True
    again = run_kis("study", "run", study)
    assert "3 runs, 3 done already" in again.stderr
    assert main(["study", "report", str(study), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["not_counted"] == []
