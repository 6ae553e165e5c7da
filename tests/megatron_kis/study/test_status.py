from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_kis.config import RunConfig
from megatron_kis.settings import parse_config
from megatron_kis.study.status import RunStatus, status_of


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    """A run of 8 steps whose folder a test fills."""
    content = {
        "name": "r",
        "output": tmp_path / "r",
        "data": {"corpus": "c", "validation": "v", "exposures": "e", "tokenizer": "t"},
        "model": {"preset": "cpu-32"},
        "training": {"token_budget": 64, "sequence_length": 8, "global_batch_size": 1},
        "infusion": {"frequency": 0},
    }
    return parse_config(RunConfig, content, source="test")


def log(run: RunConfig, text: str, metrics: list[object] = (), *, torn: str = "") -> None:  # type: ignore[assignment]
    run.output.mkdir(exist_ok=True)
    (run.output / "log.txt").write_text(text)
    lines = [line if isinstance(line, str) else json.dumps(line) for line in metrics]
    if metrics or torn:
        (run.output / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines) + torn)


def train_row(step: int, loss: float) -> dict[str, object]:
    return {"kind": "train", "step": step, "loss": loss, "tokens_per_second": 5.0}


def test_a_run_that_was_not_started_is_waiting(run: RunConfig) -> None:
    assert status_of([run]) == [RunStatus("r", "waiting", 0.0, None, None, "")]


def test_a_run_that_has_no_metrics_yet_is_unfinished(run: RunConfig) -> None:
    log(run, "starting\n")
    assert status_of([run]) == [RunStatus("r", "unfinished", 0.0, None, None, "starting")]


def test_an_unfinished_run_shows_how_far_it_is(run: RunConfig) -> None:
    validation = {"kind": "validation", "step": 4, "loss": 9.0}
    log(run, "a\nb\n", [train_row(2, 3.0), train_row(4, 2.5), validation], torn='{"kind": "train", "st')
    assert status_of([run]) == [RunStatus("r", "unfinished", 0.5, 2.5, 5.0, "b")]


def test_a_done_run_is_done(run: RunConfig) -> None:
    log(run, "a\n", [train_row(8, 2.0)])
    (run.output / "DONE").write_text("{}")
    assert status_of([run]) == [RunStatus("r", "done", 1.0, 2.0, 5.0, "")]


@pytest.mark.parametrize("damaged", ["not json", '{"kind": "train"}', '{"kind": "train", "step": null}'])
def test_a_damaged_log_does_not_end_the_overview(run: RunConfig, damaged: str) -> None:
    log(run, "a\n", [train_row(2, 3.0), damaged])
    (status,) = status_of([run])
    assert status.state == "unfinished"
    assert 0.0 <= status.share <= 1.0
