from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_kis.config import RunConfig
from megatron_kis.data.settings import DataConfig
from megatron_kis.errors import InputError
from megatron_kis.settings import parse_config
from megatron_kis.study.config import StudyConfig
from megatron_kis.study.grid import cost, runs_of

DATA = DataConfig(corpus=Path("c"), validation=Path("v"), exposures=Path("e"), tokenizer=Path("t"))
STUDY: dict[str, Any] = {
    "name": "s",
    "output": "out",
    "data": {},
    "ladder": [
        {"preset": "cpu-32", "learning_rate": 0.01},
        {"layers": 3, "width": 32, "heads": 2, "parallel": {"tensor": 2}},
    ],
    "token_budgets": [100_000, 250_000],
    "frequencies": [0, 7],
    "seeds": [0, 4],
    "training": {
        "sequence_length": 32,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "optimizer": {"learning_rate": 0.5, "schedule": "wsd"},
    },
    "background": {"policy": "protected", "frequency": 9},
    "probes": {"batch_size": 17},
    "validation": {"max_tokens": 640},
    "logging": {"every": 3},
    "device": "cpu",
}


def runs(**changes: Any) -> list[RunConfig]:
    return runs_of(parse_config(StudyConfig, {**STUDY, **changes}, source="study"), DATA)


def test_every_combination_is_one_run_with_a_folder_of_its_own() -> None:
    found = runs()
    cells = {
        (run.model.label, run.training.token_budget, run.infusion.frequency, run.training.seed): run for run in found
    }
    assert set(cells) == {
        (size, budget, frequency, seed)
        for size in ("cpu-32", "3x32")
        for budget in (100_000, 250_000)
        for frequency in (0, 7)
        for seed in (0, 4)
    }
    assert len({run.output for run in found}) == len({run.name for run in found}) == 16
    assert cells["3x32", 250_000, 7, 4].name == "3x32_D250k_F7_s4"
    assert cells["3x32", 250_000, 7, 4].output == Path("out/runs/3x32_D250k_F7_s4")


def test_a_run_has_the_settings_of_its_study_and_of_its_size() -> None:
    small = next(run for run in runs() if run.model.preset == "cpu-32")
    large = next(run for run in runs() if run.model.preset is None)
    for run in (small, large):
        assert (run.study, run.device, run.data) == ("s", "cpu", DATA)
        assert (run.training.sequence_length, run.training.global_batch_size) == (32, 4)
        assert run.training.micro_batch_size == 2
        assert run.training.optimizer.schedule == "wsd"
        assert run.infusion.background.model_dump() == {"policy": "protected", "frequency": 9}
        assert (run.probes.batch_size, run.validation.max_tokens, run.logging.every) == (17, 640, 3)
    assert (small.training.optimizer.learning_rate, large.training.optimizer.learning_rate) == (0.01, 0.5)
    assert (small.parallel.tensor, large.parallel.tensor) == (1, 2)
    assert large.model.shape().layers == 3


def test_a_run_file_gives_the_same_run() -> None:
    for run in runs():
        assert parse_config(RunConfig, run.model_dump(mode="json"), source="run") == run


def test_the_most_expensive_runs_start_first() -> None:
    costs = [cost(run) for run in runs()]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > costs[-1]


@pytest.mark.parametrize(
    "ladder",
    [
        [{"preset": "cpu-32", "learning_rate": 0.01}, {"preset": "cpu-32", "learning_rate": 0.02}],
        [{"layers": 2, "width": 32, "heads": 2}, {"layers": 2, "width": 32, "heads": 4}],
    ],
)
def test_two_runs_never_share_a_folder(ladder: list[dict[str, Any]]) -> None:
    with pytest.raises(InputError, match=r"ladder: 2 runs would be called '.*'; give each size its own 'name'"):
        runs(ladder=ladder)
    named = [{**rung, "name": f"size{number}"} for number, rung in enumerate(ladder)]
    assert len({run.output for run in runs(ladder=named)}) == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_budgets": [100]}, "training: token_budget 100 is less than one step"),
        ({"seeds": [-1]}, "training.seed: .*greater than or equal to 0"),
        ({"training": {**STUDY["training"], "micro_batch_size": 3}}, "must be a multiple of micro_batch_size"),
        ({"ladder": [{"layers": 2, "width": 30, "heads": 4}]}, "model.heads: width 30 over 4 heads"),
    ],
)
def test_a_run_that_cannot_be_is_refused_as_wrong_input(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        runs(**changes)


@pytest.mark.parametrize(
    ("budget", "name"),
    [(999, "D999"), (1500, "D1.5k"), (1_200_000, "D1.2M"), (2 * 10**9, "D2B"), (15 * 10**12, "D15T")],
)
def test_a_budget_is_short_in_a_name(budget: int, name: str) -> None:
    (run,) = runs(
        token_budgets=[budget], frequencies=[0], seeds=[0], ladder=[{"preset": "cpu-32"}],
        training={"sequence_length": 8, "global_batch_size": 1},
    )  # fmt: skip
    assert name in run.name.split("_")
