from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from megatron_kis.analysis.design import new_sizes as design
from megatron_kis.analysis.design.new_sizes import NewSize
from megatron_kis.analysis.runs.slices import Slice
from megatron_kis.analysis.simulate import Truth, simulate_table, write_runs
from megatron_kis.cli.main import main
from megatron_kis.config.study import LadderEntry
from megatron_kis.study.proposals import nearest_new_size, rate_exponent, rate_words

VOCABULARY = 2048


def rungs(*entries: dict[str, Any]) -> dict[int, LadderEntry]:
    made = [LadderEntry(**entry) for entry in entries]
    return {rung.shape().params(VOCABULARY): rung for rung in made}


SMALL = rungs(
    {"preset": "cpu-48", "learning_rate": 8e-3},
    {"preset": "cpu-64", "learning_rate": 5e-3},
    {"preset": "cpu-128", "learning_rate": 2e-3},
)


def test_a_size_between_two_has_their_heads_and_a_learning_rate_between_theirs() -> None:
    wanted = math.sqrt(sorted(SMALL)[1] * sorted(SMALL)[2])
    rung, params = nearest_new_size(wanted, SMALL) or pytest.fail("none")
    assert rung.model_dump(exclude_defaults=True).keys() == {"layers", "width", "heads", "learning_rate"}
    assert (rung.layers, rung.width) == (3, 96)
    assert rung.width // rung.heads == 32
    assert params == rung.shape().params(VOCABULARY)
    assert abs(math.log(params / wanted)) < 0.15
    assert rung.learning_rate == pytest.approx(math.sqrt(5e-3 * 2e-3), rel=0.05)


def test_a_size_beyond_the_last_is_wider_and_as_deep() -> None:
    largest = max(SMALL)
    rung, params = nearest_new_size(3 * largest, SMALL) or pytest.fail("none")
    assert rung.layers == 4
    assert rung.width > 128
    assert rung.width is not None
    assert rung.learning_rate == pytest.approx(2e-3 * (rung.width / 128) ** -1.4, rel=0.05)  # 8, 5, 2e-3 at 48, 64, 128
    assert abs(math.log(params / (3 * largest))) < 0.2


def test_a_learning_rate_continues_as_a_power_of_the_width_beyond_both_ends() -> None:
    rates = {width: round(0.32 / width, 4) for width in (24, 40, 80)}
    known = rungs(*({"layers": 2, "width": w, "heads": w // 8, "learning_rate": rate} for w, rate in rates.items()))
    assert rate_exponent(known) == pytest.approx(-1, abs=0.02)
    assert rate_words(known) == "learning rates continue those of the ladder, fitted as width^-1.00"
    for wanted in (0.5 * min(known), 2 * max(known)):
        rung, _ = nearest_new_size(wanted, known) or pytest.fail("none")
        assert rung.width not in (24, 40, 80)
        assert rung.learning_rate == pytest.approx(0.32 / (rung.width or 1), rel=0.05)


def test_a_learning_rate_that_is_no_power_of_the_width_is_held_and_said_to_be() -> None:
    rates = {24: 1e-2, 40: 2e-3, 80: 8e-3}
    known = rungs(*({"layers": 2, "width": w, "heads": w // 8, "learning_rate": rate} for w, rate in rates.items()))
    assert rate_exponent(known) is None
    assert "held beyond its ends" in rate_words(known)
    rung, _ = nearest_new_size(2 * max(known), known) or pytest.fail("none")
    assert rung.learning_rate == 8e-3
    without = rungs({"layers": 2, "width": 24, "heads": 2}, {"layers": 2, "width": 40, "heads": 2})
    assert rate_words(without) == "the learning rate is that of the study, training.optimizer.learning_rate"


def test_what_is_unusual_of_the_nearest_size_is_kept() -> None:
    grouped = {
        "layers": 4,
        "width": 256,
        "heads": 8,
        "query_groups": 2,
        "ffn_width": 512,
        "tied_embeddings": False,
        "micro_batch_size": 2,
        "parallel": {"tensor": 2, "pipeline": 4},
    }
    known = rungs(grouped)
    rung, _ = nearest_new_size(2.5 * max(known), known) or pytest.fail("none")
    shape = rung.shape()
    assert shape.heads == 4 * shape.query_groups
    assert shape.query_groups % 2 == 0
    assert shape.layers % 4 == 0
    assert shape.ffn_width == 2 * shape.width
    assert not shape.tied_embeddings
    assert (rung.micro_batch_size, rung.parallel.tensor) == (2, 2)
    assert rung.learning_rate is None  # the study's


def test_no_width_is_named_next_to_a_size_of_imported_weights() -> None:
    known = rungs({"layers": 2, "width": 64, "heads": 2, "init_from": "imported"})
    assert nearest_new_size(2 * max(known), known) is None


def test_a_size_that_only_a_size_of_the_study_comes_near_has_none() -> None:
    assert nearest_new_size(1.02 * sorted(SMALL)[1], SMALL) is None


def test_next_names_entries_that_the_study_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = (32, 48, 64, 96)
    entries = [
        {"layers": 2, "width": width, "heads": width // 16, "learning_rate": 0.3 / width, "name": f"w{width}"}
        for width in widths
    ]
    known = rungs(*entries)
    truth = Truth(reference=(230_000, 600_000), facts=200, fact_tokens=2.0, scatter=0.05)
    levels = [0, *np.geomspace(80, 1400, 8).round().astype(int).tolist()]
    table, _ = simulate_table(
        truth, [(n, 600_000) for n in known], levels, 1, np.random.default_rng(0), groups=("background",)
    )
    write_runs(table, tmp_path / "out" / "runs")
    labels = {n: rung.label for n, rung in known.items()}
    for path in (tmp_path / "out" / "runs").iterdir():  # under the names that the study gives its runs
        run = json.loads((path / "run.json").read_text())
        run["run"] = f"{labels[run['params']]}_D600k_F{run['infusion_frequency']}_s0"
        (path / "run.json").write_text(json.dumps(run))
        path.rename(path.with_name(run["run"]))
    study = {
        "name": "s",
        "output": str(tmp_path / "out"),
        "ladder": entries,
        "token_budgets": [600_000],
        "frequencies": levels,
        "seeds": [0],
        "training": {"sequence_length": 64, "global_batch_size": 8},
        "data": {"text": ["t.jsonl"], "facts": "f.tsv", "templates": "t.yaml"},
        "analysis": {"resamples": 99, "split": "held_out", "scoring": "statement"},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    ask = ["study", "next", str(tmp_path / "study.yaml"), "--params", "2e6"]
    assert main([*ask, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    sizes, look = told["sizes"], told["look"]
    assert (look["number"], look["level"]) == (1, pytest.approx(0.9696, abs=1e-4))
    assert look["interval"][0] < look["centre"] < look["interval"][1]
    assert len(sizes) == len(widths) + 1
    named = [size for size in sizes if size["rung"]]
    assert named
    for size in named:
        assert abs(math.log(size["rung_params"] / size["params"])) < 0.35
    assert main(ask) == 0
    told = capsys.readouterr().out
    assert "F* expected" in told
    assert "learning rates continue those of the ladder, fitted as width^-1.00" in told
    lines = [line.strip() for line in told.splitlines() if line.startswith("  - {")]
    added = [yaml.safe_load(line)[0] for line in lines]
    assert added == [size["rung"] for size in named]
    study["ladder"] = [*entries, *added]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    assert main([*ask, "--json"]) == 0
    assert not any(size["rung"] for size in json.loads(capsys.readouterr().out)["sizes"])  # they are planned now
    along = Slice("facts", "frequency", 14.0)
    monkeypatch.setattr(design, "new_sizes", lambda *_, **__: [NewSize(300_000, 600_000, 412.0, 9, 1e12, 0.2, along)])
    assert main(ask) == 0
    told = capsys.readouterr().out
    assert "K* expected" in told
    assert "F* expected" not in told
    assert "look 1: F* = " in told
    assert main([*ask, "--write"]) == 0
    assert main([*ask, "--write"]) == 0  # nothing was trained in between: no further look
    capsys.readouterr()
    assert len((tmp_path / "out" / "looks.jsonl").read_text().splitlines()) == 1
    assert main([*ask, "--json"]) == 0
    look = json.loads(capsys.readouterr().out)["look"]
    assert (look["number"], look["level"]) == (2, pytest.approx(0.9924, abs=1e-4))
