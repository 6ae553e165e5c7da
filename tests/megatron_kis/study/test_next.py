"""Where no run would add information, ``kis study next`` says why and what to change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from megatron_kis.analysis.simulate import Truth, simulate_table, write_runs
from megatron_kis.cli.main import main
from megatron_kis.cli.study.common import data_config
from megatron_kis.common.configuration import load_config, parse_config
from megatron_kis.config.study import LadderEntry, StudyConfig
from megatron_kis.study.grid import runs_of
from megatron_kis.training.record import result_settings

ENTRIES = [{"layers": 2, "width": width, "heads": 2, "name": f"w{width}"} for width in (32, 48, 64)]
LEVELS = [0, 100, 200, 400, 800]


def written(folder: Path, truth: Truth, levels: list[int] = LEVELS, seeds: int = 1) -> Path:
    """A study whose runs are simulated."""
    sizes = {}
    for entry in ENTRIES:
        shape = parse_config(LadderEntry, entry, source="", section="ladder").shape()
        sizes[shape.params(2048)] = entry["name"]
    table, _ = simulate_table(truth, [(n, 600_000) for n in sizes], levels, seeds, np.random.default_rng(2))
    runs = folder / "out" / "runs"
    write_runs(table, runs)
    for path in list(runs.iterdir()):
        run = json.loads((path / "run.json").read_text())
        run["run"] = f"{sizes[run['params']]}_D600k_F{run['infusion_frequency']}_s{run['seed']}"
        (path / "run.json").write_text(json.dumps(run))
        path.rename(path.with_name(run["run"]))
    content: dict[str, Any] = {
        "name": "s",
        "output": "out",
        "ladder": ENTRIES,
        "token_budgets": [600_000],
        "frequencies": levels,
        "seeds": list(range(seeds)),
        "training": {"sequence_length": 64, "global_batch_size": 8},
        "background": {"frequency": 100},
        "data": {"text": ["t.jsonl"], "facts": "f.tsv", "templates": "t.yaml"},
        "analysis": {"resamples": 99, "split": "held_out", "scoring": "statement"},
        "predict": [1e6],
    }
    study = folder / "study.yaml"
    study.write_text(yaml.safe_dump(content))
    return study


def asked(study: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    assert main(["study", "next", str(study), "--json"]) == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert main(["study", "next", str(study)]) == 0
    return content, capsys.readouterr().out


def without_collapse(*, facts: int, base: float, fact_tokens: float, **changes: float) -> Truth:
    """Models that forget next to nothing."""
    known = {"base": base, "plateau": base + 0.001} | changes
    return Truth(reference=(230_000, 600_000), facts=facts, collapses=False, fact_tokens=fact_tokens, **known)


def test_a_study_that_taught_nothing_is_told_how_to_teach(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = without_collapse(facts=200, base=0.2501, plateau=0.2502, collapse_at=1e9, fact_tokens=3.5)
    content, printed = asked(written(tmp_path, truth), capsys)
    assert content["runs"] == []
    said = {remark["key"]: remark["problem"] + "; " + remark["change"] for remark in content["change"]}
    assert "background facts, every model: never reliably above chance (0.25; " in said["background.frequency"]
    wanted = int(said["background.frequency"].split("background.frequency: ")[1].split()[0])
    assert wanted >= 200
    assert "3 models of 3 sizes can carry only an unvalidated" in said["ladder"]
    assert "s: no run of these sizes, budgets and facts would add information\nto change:\n- " in printed
    assert "why" not in printed.splitlines()[0]  # no empty table


def test_where_falls_are_too_faint_seeds_are_proposed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = without_collapse(facts=30, base=0.55, fact_tokens=24.0)
    study = written(tmp_path, truth, [0, 100, 200, 400, 780])
    content, printed = asked(study, capsys)
    assert {row["reason"] for row in content["runs"]} == {"another seed: a fall that matters would not have shown"}
    assert {row["seed"] for row in content["runs"]} >= {1}
    assert {row["frequency"] for row in content["runs"]} <= {0, 100, 200, 400, 780}
    assert {row["size"] for row in content["runs"]} >= {"w32", "w48"}
    assert "another seed" in printed


def test_where_nothing_can_be_lost_any_more_the_limit_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = without_collapse(facts=400, base=0.8, fact_tokens=1.75, correlation=0.0)
    content, printed = asked(written(tmp_path, truth, seeds=2), capsys)
    assert content["runs"] == []
    assert "nothing is lost up to the largest F" in printed
    assert "of the tokens are exposures: larger token_budgets, fewer infused facts" in printed


def test_runs_that_were_not_asked_the_study_s_questions_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = written(tmp_path, without_collapse(facts=30, base=0.55, fact_tokens=24.0))
    config = load_config(StudyConfig, study)
    one = next(run for run in runs_of(config, data_config(config)) if run.infusion.frequency == 100)
    record = one.output / "run.json"
    asked_few = one.replace(probes=one.probes.replace(facts_per_group=3))
    record.write_text(json.dumps(json.loads(record.read_text()) | {"settings": result_settings(asked_few)}))
    capsys.readouterr()
    assert main(["study", "next", str(study)]) == 0
    said = capsys.readouterr().err
    assert f"1 complete run was not asked the study's questions yet: {one.name}; kis study probe" in said
