from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_kis.common.configuration import parse_config
from megatron_kis.common.errors import InputError
from megatron_kis.config.data import DataConfig
from megatron_kis.config.dose import Dose
from megatron_kis.config.run import RunConfig
from megatron_kis.config.study import StudyConfig
from megatron_kis.study.grid import cost, runs_of
from megatron_kis.study.specs import expand_grid
from tests.studies import GRID_STUDY

DATA = DataConfig(corpus=Path("c"), validation=Path("v"), exposures=Path("e"), tokenizer=Path("t"))


def runs(**changes: Any) -> list[RunConfig]:
    return runs_of(parse_config(StudyConfig, {**GRID_STUDY, **changes}, source="study"), DATA)


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
        assert (run.infusion.background.policy, run.infusion.background.frequency) == ("protected", 9)
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
        [{"preset": "cpu-32", "name": "A"}, {"preset": "cpu-48", "name": "a"}],
        [{"preset": "cpu-32", "name": "caf\u00e9"}, {"preset": "cpu-48", "name": "cafe\u0301"}],
    ],
)
def test_two_runs_never_share_a_folder(ladder: list[dict[str, Any]]) -> None:
    with pytest.raises(InputError, match=r"called '.*' \(ladder\.0 and ladder\.1\); give each size its own 'name'"):
        runs(ladder=ladder)
    named = [{**rung, "name": f"size{number}"} for number, rung in enumerate(ladder)]
    assert len({run.output for run in runs(ladder=named)}) == 16


def test_a_run_of_two_entries_of_one_size_is_to_be_left_out_of_one() -> None:
    size = {"layers": 2, "width": 32, "heads": 2}
    again = {**size, "frequencies": [8], "seeds": [0]}
    told = r"ladder: 2 runs would be called '2x32_D100k_F8_s0' \(ladder\.0 and ladder\.1\); leave that run out"
    with pytest.raises(InputError, match=told):
        runs(ladder=[{**again, "frequencies": [0, 8]}, again])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_budgets": [100]}, "^token_budgets: run cpu-32_D100_F0_s0: 100 is less than one step"),
        ({"seeds": [-1]}, "seeds.0: is -1; must be at least 0"),
        ({"training": {**GRID_STUDY["training"], "micro_batch_size": 3}}, "must be a multiple of micro_batch_size"),
        (
            {"ladder": [{"layers": 2, "width": 30, "heads": 4}]},
            "^ladder.0.heads: run 2x30_D100k_F0_s0: width 30",
        ),
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
        token_budgets=[budget],
        frequencies=[0],
        seeds=[0],
        ladder=[{"preset": "cpu-32"}],
        training={"sequence_length": 8, "global_batch_size": 1},
    )
    assert name in run.name.split("_")


def spots(**changes: Any) -> set[tuple[str, int, int | None, int]]:
    study = parse_config(StudyConfig, {**GRID_STUDY, **changes}, source="study")
    found = expand_grid(study)
    assert all(spec.dose == Dose(frequency=spec.dose.frequency) for spec in found)
    return {(spec.entry.label, spec.tokens, spec.dose.frequency, spec.seed) for spec in found}


def test_a_size_may_have_budgets_frequencies_and_seeds_of_its_own() -> None:
    ladder = [
        {"preset": "cpu-32", "frequencies": [1, 2], "seeds": [5], "token_budgets": [50_000]},
        {"preset": "cpu-48"},
        {"preset": "cpu-64", "frequencies": []},
    ]
    assert spots(ladder=ladder, token_budgets=[100_000], seeds=[0]) == {
        ("cpu-32", 50_000, 1, 5),
        ("cpu-32", 50_000, 2, 5),
        ("cpu-48", 100_000, 0, 0),
        ("cpu-48", 100_000, 7, 0),
    }


def test_listed_runs_stand_next_to_the_grid_or_without_one() -> None:
    listed = [
        {"size": "3x32", "tokens": 300_000, "frequency": 11, "seed": 2},
        {"size": "cpu-32", "tokens": 100_000, "frequency": 9},
    ]
    wanted = {("3x32", 300_000, 11, 2), ("cpu-32", 100_000, 9, 0)}
    assert spots(runs=listed) == spots() | wanted
    alone = {key: value for key, value in GRID_STUDY.items() if key not in ("token_budgets", "frequencies", "seeds")}
    study = parse_config(StudyConfig, {**alone, "runs": listed}, source="study")
    (large, small) = runs_of(study, DATA)
    assert (large.name, small.name) == ("3x32_D300k_F11_s2", "cpu-32_D100k_F9_s0")
    assert (large.training.token_budget, large.infusion.frequency, large.training.seed) == (300_000, 11, 2)
    assert (large.parallel.tensor, small.training.optimizer.learning_rate) == (2, 0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": "cpu-33"}, "study: runs.1.size: 'cpu-33' is not a size of the ladder; did you mean 'cpu-32'"),
        ({"size": "cpu-32", "seed": 4}, "study: runs.1: the same run is in the grid already"),
        ({"frequency": 8}, "study: runs.1: the same run is runs.0 already"),
        ({"frequency": -8}, "study: runs.1.frequency: is -8; must be at least 0"),
        ({"tokens": 0}, "study: runs.1.tokens: is 0; must be above 0"),
        ({"seed": -1}, "study: runs.1.seed: is -1; must be at least 0"),
        ({"frequencies": 7}, "study: runs.1.frequencies: unknown key; did you mean 'frequency'"),
        ({"infusion_ratio": 0.5}, "study: runs.1: needs one of 'frequency' and 'infusion_ratio'"),
        ({"frequency": None}, "study: runs.1: needs one of 'frequency' and 'infusion_ratio'"),
        ({"frequency": None, "infusion_ratio": 1.0}, "study: runs.1.infusion_ratio: is 1.0; must be below 1"),
        ({"facts": 101}, "study: runs.1.facts: 101 of 100 infused facts"),
        ({"frequency": 8, "facts": 100}, "study: runs.1: the same run is runs.0 already"),
        ({"facts": 0, "seed": 4}, "study: runs.1: the same run is in the grid already"),
    ],
)
def test_a_wrong_listed_run_is_named(changes: dict[str, Any], message: str) -> None:
    first = {"size": "cpu-32", "tokens": 250_000, "frequency": 8, "seed": 0}
    with pytest.raises(InputError, match=message):
        spots(runs=[first, {**first, "frequency": 7, **changes}])


@pytest.mark.parametrize("key", ["token_budgets", "frequencies", "seeds"])
def test_a_study_without_a_run_is_refused_by_what_is_missing(key: str) -> None:
    with pytest.raises(InputError, match=f"study: {key}: the study has no run"):
        spots(**{key: []})


def test_a_study_takes_every_precision_and_guard_of_a_run() -> None:
    training = {**GRID_STUDY["training"], "precision": "fp8", "guard": {"skip_in_a_row": 3}}
    assert {run.training.precision for run in runs(training=training)} == {"fp8"}
    assert {run.training.guard.skip_in_a_row for run in runs(training=training)} == {3}


AMOUNT: dict[str, Any] = {
    "ladder": [{"preset": "cpu-32"}, {"preset": "cpu-48", "facts": [5], "infusion_ratios": []}],
    "token_budgets": [100_000],
    "seeds": [0, 3],
    "facts": [0, 20, 100],
    "frequencies": [0, 7],
    "infusion_ratios": [0.0, 0.25],
}


def test_numbers_of_facts_are_crossed_with_frequencies_and_ratios_and_no_infusion_is_one_run() -> None:
    found = {run.name: run for run in runs(**AMOUNT)}
    wanted = [f"K{facts}_{often}" for facts in (20, 100) for often in ("F7", "R0.25")]
    assert set(found) == {
        *(f"cpu-32_D100k_{dose}_s{seed}" for dose in ("F0", *wanted) for seed in (0, 3)),
        *(f"cpu-48_D100k_{dose}_s{seed}" for dose in ("F0", "K5_F7") for seed in (0, 3)),
    }
    none, often, share = (found[f"cpu-32_D100k_{dose}_s3"].infusion for dose in ("F0", "K20_F7", "K100_R0.25"))
    assert (none.facts, none.frequency, none.ratio) == (None, 0, None)
    assert (often.facts, often.frequency, often.ratio) == (20, 7, None)
    assert (share.facts, share.frequency, share.ratio) == (100, None, 0.25)
    assert none.background == share.background


def test_without_numbers_of_facts_all_are_shown_and_runs_are_named_as_they_were() -> None:
    found = {run.name: run for run in runs(infusion_ratios=[0.5])}
    assert {name.split("_", 2)[2] for name in found} == {"F0_s0", "F0_s4", "F7_s0", "F7_s4", "R0.5_s0", "R0.5_s4"}
    assert {run.infusion.facts for run in found.values()} == {None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"facts": [20, 101]}, "study: facts: 101 of 100 infused facts; at most 100, or raise data.select.infused"),
        (
            {"ladder": [{"preset": "cpu-32", "facts": [200]}]},
            "study: ladder.0.facts: 200 of 100 infused facts",
        ),
        ({"facts": [20, 20]}, "study: facts: has an entry twice"),
        ({"facts": [-1]}, "study: facts.0: is -1; must be at least 0"),
        ({"facts": [20], "frequencies": [0]}, "study: facts: none of them is shown; give frequencies"),
        (
            {"facts": [20], "ladder": [{"preset": "cpu-32", "facts": [0]}]},
            "study: ladder.0.facts: has only 0, the run without infusion; add a number of facts above 0",
        ),
        (
            {"background": [{"facts": 60, "frequency": 5}, {"facts": 41, "frequency": 6}]},
            "study: background: the groups have 101 facts together, of 100 background facts; .* data.select.background",
        ),
        ({"infusion_ratios": [1]}, "study: infusion_ratios.0: is 1; must be below 1"),
        ({"infusion_ratios": [-0.1]}, "study: infusion_ratios.0: is -0.1; must be at least 0"),
        ({"infusion_ratios": [0.5, 0.5]}, "study: infusion_ratios: has an entry twice"),
        ({"frequencies": [], "facts": [20]}, "study: frequencies: the study has no run"),
    ],
)
def test_wrong_doses_are_refused_with_their_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        runs(**changes)


def test_ratios_alone_make_a_grid() -> None:
    assert {run.infusion.ratio for run in runs(frequencies=[], infusion_ratios=[0.1, 0.2])} == {0.1, 0.2}


def test_listed_runs_may_have_a_number_of_facts_and_a_ratio() -> None:
    cell = {"size": "cpu-32", "tokens": 100_000}
    listed = [{**cell, "facts": 40, "infusion_ratio": 0.5}, {**cell, "facts": 40, "frequency": 7}]
    found = {run.name: run.infusion for run in runs(runs=listed)}
    assert found["cpu-32_D100k_K40_R0.5_s0"].model_dump(include={"facts", "frequency", "ratio"}) == {
        "facts": 40,
        "frequency": None,
        "ratio": 0.5,
    }
    assert found["cpu-32_D100k_K40_F7_s0"].facts == 40
