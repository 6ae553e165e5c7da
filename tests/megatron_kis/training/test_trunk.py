"""Runs that are infused from a share of their steps on, and take over a trunk's checkpoint there."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_kis.common.configuration import parse_config
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_json
from megatron_kis.config.run import RunConfig
from megatron_kis.data.exposure_plan import BackgroundFacts, InfusedFacts, TokenBudget
from megatron_kis.data.exposure_schedule import UNIFORM, schedule_of
from megatron_kis.data.extension import ExtendedPlan, same_until
from megatron_kis.data.late_infusion import begin_later
from megatron_kis.training.trainer import train
from tests.run_files import losses, rows
from tests.runs import cut_off, trained

MakeRun = Callable[..., RunConfig]

SEQUENCES, BEGIN = 400, 160  # of 64 tokens


def plan(
    frequency: float | None = 0, *, ratio: float | None = None, background: Any = 13, when: Any = "uniform", **more: Any
) -> ExtendedPlan:
    return begin_later(
        BEGIN * 64,
        InfusedFacts(np.full((40, 3), 9), frequency=frequency, ratio=ratio),
        BackgroundFacts(
            np.full((10, 2), 8),
            frequency=background,
            policy=more.pop("policy", "protected"),
            schedule=schedule_of(when),
        ),
        budget=TokenBudget(SEQUENCES * 64, 64),
        seed=3,
        **more,
    )


def shown(of: ExtendedPlan, group: str, sequences: range) -> int:
    return sum(exposure.group == group for place in sequences for exposure in of[place].exposures)


@pytest.mark.parametrize("background", [1, 13, 60])
def test_infusion_begins_late_and_all_else_is_as_before(background: int) -> None:
    none, some = plan(background=background), plan(30, background=background)
    assert [some[place] for place in range(BEGIN)] == [none[place] for place in range(BEGIN)]
    assert shown(some, "infused", range(BEGIN)) == 0
    assert shown(some, "infused", range(BEGIN, SEQUENCES)) == 30 * 40
    assert set(some.expected("infused")) == {30} == {some.infusion_frequency}
    for made in (none, some):
        assert set(made.expected("background")) == {background}
        before = shown(made, "background", range(BEGIN))
        assert before == 10 * round(background * BEGIN / SEQUENCES)
        assert before + shown(made, "background", range(BEGIN, SEQUENCES)) == 10 * background


def test_a_ratio_is_one_of_the_whole_run() -> None:
    made = plan(None, ratio=0.3)
    assert made.infusion_ratio == pytest.approx(0.3, abs=9 / made.token_budget)
    assert shown(made, "infused", range(BEGIN)) == 0
    with pytest.raises(
        InputError,
        match=r"infusion_ratio: 0\.7 of 25,600 tokens is more than .* fits is about 0\.562",
    ):
        plan(None, ratio=0.7)
    assert plan(None, ratio=0.562).infusion_ratio == pytest.approx(0.562, abs=0.001)
    with pytest.raises(InputError, match=r"infusion_ratio: 40 infused facts x .* need .* fits is about 0\.562"):
        plan(None, ratio=0.59)


def test_displaced_background_gives_way_after_infusion_begins_alone() -> None:
    none, some = plan(background=40, policy="displaced"), plan(20, background=40, policy="displaced")
    assert shown(none, "background", range(BEGIN)) == shown(some, "background", range(BEGIN)) == 10 * 16
    left = 1 - some.tail.infusion_ratio
    assert shown(some, "background", range(BEGIN, SEQUENCES)) == 10 * round(24 * left)


def test_background_facts_of_several_strengths_keep_their_counts() -> None:
    frequencies = np.repeat([5, 12], 5)
    none, some = plan(background=frequencies), plan(20, background=frequencies)
    assert (some.expected("background") == frequencies).all()
    assert same_until(BEGIN, none.identity(), some.identity())
    assert (some.base.expected("background") == np.rint(frequencies * BEGIN / SEQUENCES)).all()


@pytest.mark.parametrize(
    ("when", "before"),
    [
        ({"kind": "window", "start": 0.0, "end": 0.4}, 20),
        ({"kind": "window", "start": 0.2, "end": 0.6}, 10),
        ({"kind": "final", "share": 0.3}, 0),
        ("front_loaded", 13),
    ],
)
def test_the_schedule_of_the_background_is_one_of_the_whole_run(when: Any, before: int) -> None:
    made = plan(10, background=20, when=when)
    schedule = schedule_of(when)
    assert shown(made, "background", range(BEGIN)) == 10 * before
    for place in range(40, SEQUENCES, 40):
        wanted = 200 * float(schedule.share(np.array([place / SEQUENCES]))[0])
        assert shown(made, "background", range(place)) == pytest.approx(wanted, abs=12)
    assert set(made.expected("background")) == {20}


def test_a_schedule_is_cut_in_two_at_a_time() -> None:
    times = np.linspace(0, 1, 41)
    for described in (
        "back_loaded",
        {"kind": "bursts", "count": 3, "width": 0.2},
        {"kind": "window", "start": 0.1, "end": 0.5},
    ):
        whole = schedule_of(described)
        for at in (0.05, 0.25, 0.5, 0.9):
            share, first, last = whole.split(at)
            parts = np.where(times < at, 0.0, share + (1 - share) * last.share(np.clip((times - at) / (1 - at), 0, 1)))
            early = share * first.share(np.minimum(times / at, 1.0))
            np.testing.assert_allclose(np.where(times < at, early, parts), whole.share(times), atol=1e-12)
    assert UNIFORM.split(0.3) == (0.3, UNIFORM, UNIFORM)


def test_plans_agree_until_infusion_begins_and_no_longer() -> None:
    none, some, other = plan().identity(), plan(30).identity(), plan(30, background=14).identity()
    assert same_until(BEGIN, none, some)
    assert not same_until(BEGIN + 1, none, some)
    assert not same_until(BEGIN, none, other)


def test_a_schedule_is_one_of_the_rest() -> None:
    made = plan(10, schedule={"kind": "window", "start": 0.5, "end": 1.0})
    middle = BEGIN + (SEQUENCES - BEGIN) // 2
    assert shown(made, "infused", range(middle - 10)) == 0
    assert shown(made, "infused", range(middle - 10, SEQUENCES)) == 400


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trunk": "t"}, "trunk: needs infusion.begins"),
        ({"infusion": {"begins": 0.01}}, r"infusion.begins: 0.01 of 20 steps is step 0"),
        ({"infusion": {"begins": 0.99}}, r"infusion.begins: 0.99 of 20 steps is step 20"),
        ({"extends": "t", "infusion": {"begins": 0.5}}, "extends: excludes infusion.begins"),
        ({"infusion": {"begins": 1.0}}, "infusion.begins: is 1.0; must be below 1"),
    ],
)
def test_a_beginning_that_cannot_be_is_refused(tiny_run: MakeRun, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        tiny_run(**changes)


def run(make: MakeRun, name: str, infusion: dict[str, Any], **changes: Any) -> RunConfig:
    """A run of 20 steps in which infusion begins after 10, every step logged."""
    probes = {"moments": {"shares": [0.5, 1.0]}, "templates": {"train": 2, "held_out": 1}}
    return make(
        name=name,
        infusion={"begins": 0.5, **infusion},
        logging={"every": 1},
        checkpoints={"moments": {"shares": [0.5, 1.0], "every": 3}, "asynchronous": False},
        probes=probes,
        **changes,
    )


@pytest.fixture
def trunk(tiny_run: MakeRun) -> Path:
    return trained(run(tiny_run, "trunk", {"frequency": 0}))


def results(folder: Path) -> dict[str, Any]:
    """What a run learned and was fed."""
    asked = [{key: value for key, value in row.items() if key != "seconds"} for row in rows(folder, "probes.jsonl")]
    outcomes = {path.name: path.read_bytes() for path in sorted((folder / "outcomes").glob("*.npz"))}
    ledger = (folder / "exposures.json").read_bytes()
    return {"losses": losses(folder), "probes": asked, "outcomes": outcomes, "ledger": ledger}


@pytest.mark.slow
@pytest.mark.parametrize("dose", [{"frequency": 8}, {"frequency": None, "ratio": 0.2}, {"frequency": 8, "facts": 8}])
def test_a_branch_is_the_run_that_was_trained_from_the_start(
    tiny_run: MakeRun, trunk: Path, dose: dict[str, Any]
) -> None:
    branch = train(run(tiny_run, "branch", dose, trunk=trunk))
    record = read_json(branch / "run.json", "kis.run/1")
    assert record["branched_from"] == {"run": "trunk", "folder": "../trunk", "step": 10}
    assert [session["from_step"] for session in record["sessions"]] == [0, 10]
    alone = train(run(tiny_run, "alone", dose))
    assert "branched_from" not in read_json(alone / "run.json", "kis.run/1")
    assert results(branch) == results(alone)
    assert {row["step"] for row in rows(branch, "probes.jsonl")} == {10, 20}
    before = [losses(branch)[step] for step in range(1, 11)]
    assert before == [losses(trunk)[step] for step in range(1, 11)]
    assert losses(branch)[20] != losses(trunk)[20]


@pytest.mark.slow
def test_a_branch_that_names_all_facts_keeps_its_trunks_answers(tiny_run: MakeRun, trunk: Path) -> None:
    asked = [row for row in rows(trunk, "probes.jsonl") if row["step"] == 10]
    facts = read_json(trunk / "run.json", "kis.run/1")["infused_facts"]
    branch = train(run(tiny_run, "branch", {"frequency": 8, "facts": facts}, trunk=trunk))
    assert [row for row in rows(branch, "probes.jsonl") if row["step"] == 10] == asked  # to the seconds they took


@pytest.mark.slow
def test_a_branch_that_is_cut_off_needs_its_trunk_no_more(tiny_run: MakeRun, trunk: Path) -> None:
    branch = run(tiny_run, "branch", {"frequency": 8, "facts": 8}, trunk=trunk)
    cut_off(branch, 13)
    shutil.rmtree(trunk)
    train(branch)
    assert results(branch.output) == results(train(run(tiny_run, "alone", {"frequency": 8, "facts": 8})))


@pytest.mark.slow
def test_without_the_trunks_checkpoint_a_run_trains_all_and_says_so(
    tiny_run: MakeRun, trunk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(trunk / "checkpoints" / "step-00000010")
    with caplog.at_level(logging.WARNING):
        folder = train(run(tiny_run, "branch", {"frequency": 8}, trunk=trunk))
    assert "trunk has no complete checkpoint of step 10; branch trains the steps until there itself" in caplog.text
    assert results(folder) == results(train(run(tiny_run, "alone", {"frequency": 8})))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("infusion", "changes", "said"),
    [
        ({"frequency": 8, "background": {"frequency": 5}}, {}, "another exposure plan"),
        ({"frequency": 8}, {"training": {"optimizer": {"learning_rate": 1e-4}}}, "the trunk has other settings"),
        ({"frequency": 8}, {"training": {"seed": 1}}, "the trunk has other settings: training.seed 0 -> 1"),
    ],
)
def test_a_trunk_of_other_settings_is_refused(
    tiny_run: MakeRun, trunk: Path, infusion: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    config = run(tiny_run, "branch", infusion, trunk=trunk, **changes)
    with pytest.raises(InputError, match=said):
        train(config)
    assert not (config.output / "checkpoints").exists()


def test_a_file_of_a_run_names_its_trunk(tiny_run: MakeRun, tmp_path: Path) -> None:
    config = run(tiny_run, "branch", {"frequency": 8}, trunk=tmp_path / "trunk")
    assert parse_config(RunConfig, config.model_dump(mode="json"), source="run") == config
