"""Background facts that one run shows differently often: exact counts, one plan for equal ones, rows for each."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from megatron_kis.cli.main import main
from megatron_kis.common.configuration import parse_config
from megatron_kis.common.errors import InputError
from megatron_kis.config.data import InfusionConfig
from megatron_kis.config.run import RunConfig
from megatron_kis.data import ExposurePlan, InfusedFacts
from megatron_kis.data.exposure_plan import BackgroundFacts, TokenBudget
from megatron_kis.data.exposure_store import ExposureStore
from megatron_kis.data.extension import check_continuation, extend
from megatron_kis.probes.infusion_order import infusion_order
from megatron_kis.probes.questions import read_questions
from megatron_kis.training.artifacts import open_run
from megatron_kis.training.inputs import open_inputs
from megatron_kis.training.trainer import train
from tests.megatron_kis.data.counting import by_fact, counts
from tests.run_files import rows
from tests.runs import OFTEN, cut_off

MakeRun = Callable[..., RunConfig]
STRENGTHS = np.array([5] * 10 + [20] * 12 + [0] * 8)
GROUPS = [{"facts": 8, "frequency": 2}, {"facts": 4, "frequency": 6}]


def plan(frequency: Any, policy: str = "protected", infused: float = 7, **more: Any) -> ExposurePlan:
    return ExposurePlan(
        InfusedFacts(np.full((40, 3), 9), frequency=infused),
        BackgroundFacts(np.full((30, 2), 8), frequency=frequency, policy=policy),
        budget=TokenBudget(64 * 400, 64),
        seed=3,
        **more,
    )


@pytest.mark.parametrize("policy", ["protected", "displaced"])
def test_each_fact_gets_its_own_number_of_exposures(policy: str) -> None:
    made = plan(STRENGTHS, policy)
    kept = 1.0 if policy == "protected" else 1.0 - made.infusion_ratio
    assert counts(made, "background", 30) == [round(count * kept) for count in STRENGTHS.tolist()]
    assert counts(made, "background", 30) == made.expected("background").tolist()
    assert made.background_frequency == made.expected("background").sum() / 22
    assert made.identity()["background_groups"] == [{"facts": 10, "frequency": 5}, {"facts": 12, "frequency": 20}]


@pytest.mark.parametrize("policy", ["protected", "displaced"])
def test_exposures_that_remain_are_spread_over_the_run(policy: str) -> None:
    made = plan(STRENGTHS, policy)
    for found in by_fact(made, "background").values():
        places = np.array([item.sequence for item in found])
        assert abs(places.mean() / len(made) - 0.5) < 0.15
        assert len({item.exposure.ordinal for item in found}) == len(found)


@pytest.mark.parametrize("policy", ["protected", "displaced"])
def test_equal_strengths_are_the_plan_of_one_frequency(policy: str) -> None:
    one, listed = plan(6, policy), plan(np.full(30, 6), policy)
    assert one.identity() == listed.identity()
    assert "background_groups" not in one.identity()
    assert list(one) == list(listed)


def test_background_exposures_are_where_they_are_whatever_is_infused() -> None:
    without, beside = (plan(STRENGTHS, infused=infused, text_first=True) for infused in (0, 7))
    for fact, found in by_fact(without, "background").items():
        other = by_fact(beside, "background")[fact]
        assert [item.exposure.template for item in found] == [item.exposure.template for item in other]
        apart = [abs(one.sequence - two.sequence) for one, two in zip(found, other, strict=True)]
        assert max(apart) <= 2 * beside.block


def test_an_extension_keeps_the_rates() -> None:
    plan_once = extend(plan(STRENGTHS), 64 * 600)
    longest = extend(plan_once, 64 * 800)
    assert counts(longest, "background", 30) == (2 * STRENGTHS).tolist()
    assert counts(plan_once, "background", 30) == np.rint(1.5 * STRENGTHS).astype(int).tolist()
    for found in by_fact(longest, "background").values():
        ordinals = [item.exposure.ordinal for item in found]
        assert sorted(set(ordinals)) == sorted(ordinals)
    check_continuation(json.loads(json.dumps(plan(STRENGTHS).identity())), longest.identity())
    with pytest.raises(InputError, match="background_groups was"):
        check_continuation(json.loads(json.dumps(plan(STRENGTHS[::-1] + 1).identity())), longest.identity())


def test_which_facts_have_which_strength_is_in_the_identity() -> None:
    assert plan(STRENGTHS).fingerprint != plan(STRENGTHS[::-1].copy()).fingerprint


def test_what_does_not_fit_or_is_impossible_is_refused() -> None:
    with pytest.raises(InputError, match=r"background_frequency: 22 background facts x 659\.091 exposures need"):
        plan(STRENGTHS * 50)
    with pytest.raises(InputError, match="lists 3 frequencies for 30 facts"):
        plan(STRENGTHS[:3])
    with pytest.raises(InputError, match="is -5; must not be negative"):
        plan(-STRENGTHS[::-1] // 4)


def parsed(background: Any) -> InfusionConfig:
    return parse_config(InfusionConfig, {"frequency": 1, "background": background}, source="run")


def test_a_list_is_protected_groups() -> None:
    short = parsed(GROUPS)
    assert short == parsed({"policy": "protected", "groups": GROUPS})
    assert short == parsed(short.model_dump(mode="json")["background"])


@pytest.mark.parametrize(
    ("background", "message"),
    [
        ({"frequency": 3, "groups": GROUPS}, "background: has both 'frequency' and 'groups'; give one"),
        ([*GROUPS, {"facts": 1, "frequency": 6}], "background: has two groups of frequency 6; merge them into one"),
        ([{"facts": 0, "frequency": 6}], r"background\.groups\.0\.facts"),
        ([{"facts": 3, "frequency": 0}], r"background\.groups\.0\.frequency"),
    ],
)
def test_impossible_groups_are_refused(background: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parsed(background)


def test_groups_take_stretches_of_the_nested_order(tiny_run: MakeRun) -> None:
    config = tiny_run(infusion={"background": {"frequency": 0, "groups": GROUPS, "policy": "protected"}})
    inputs = open_inputs(config)
    store = ExposureStore(config.data.exposures)
    order = infusion_order(read_questions(config.data.questions, config.probes.templates), "background")
    wanted = dict.fromkeys(store.ids("background"), 0)
    wanted |= dict.fromkeys(order[:8], 2) | dict.fromkeys(order[8:12], 6)
    assert dict(zip(wanted, inputs.plan.expected("background").tolist(), strict=True)) == wanted
    asked = {question.fact for question in inputs.questions.questions if question.group == "background"}
    assert asked == set(order[:12])
    assert inputs.questions.strengths == {fact: count for fact, count in wanted.items() if count}


def test_one_group_of_all_facts_is_one_frequency(tiny_run: MakeRun) -> None:
    one = open_inputs(tiny_run())
    groups = {"frequency": 0, "groups": [{"facts": 16, "frequency": 6}]}
    listed = open_inputs(tiny_run(infusion={"background": groups}))
    assert one.plan.identity() == listed.plan.identity()
    assert not listed.questions.strengths
    assert list(one.questions.questions) == list(listed.questions.questions)


def test_more_background_facts_than_there_are_is_refused(tiny_run: MakeRun) -> None:
    config = tiny_run(infusion={"background": {"frequency": 0, "groups": [*GROUPS, {"facts": 5, "frequency": 1}]}})
    with pytest.raises(InputError, match=r"background\.groups: have 17 facts together, the data 16 background facts"):
        train(config)
    assert not config.output.exists()


@pytest.mark.slow
def test_a_run_counts_and_asks_each_strength(tiny_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    background = {"frequency": 0, "groups": GROUPS, "policy": "protected"}
    config = tiny_run(infusion={"background": background})
    run = train(config)
    record = json.loads((run / "run.json").read_text())
    assert record["background_groups"] == GROUPS
    assert record["background_frequency"] == (8 * 2 + 4 * 6) / 12
    ledger = json.loads((run / "exposures.json").read_text())
    assert ledger["exact"] is True
    received = ledger["received"]["background"]
    assert sorted(received.values()) == [0] * 4 + [2] * 8 + [6] * 4
    found = {(row["group"], row["split"], row["scoring"]): row for row in rows(run, "probes.jsonl")}
    assert {group for group, _, _ in found} == {"infused", "background", "background@2", "background@6", "control"}
    for (group, split, rule), row in found.items():
        if group == "background":
            weak, strong = (found[f"background@{count}", split, rule] for count in (2, 6))
            for key in ("n", "facts", "correct", "facts_always", "facts_ever"):
                assert row[key] == weak[key] + strong[key]
            assert (weak["facts"], strong["facts"]) == (8, 4)
    settings = json.loads((run / "outcomes" / "probe.json").read_text())
    by_name = {fact: int(name.split("@")[1]) for name, facts in settings["strengths"].items() for fact in facts}
    assert by_name == {fact: count for fact, count in received.items() if count}
    assert open_run(run).questions(config.probes.templates).strengths == by_name
    capsys.readouterr()
    assert main(["probe", str(run), "--device", "cpu", "--json"]) == 0
    again = {(row["group"], row["split"], row["scoring"]): row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert {key: (row["n"], row["correct"]) for key, row in again.items()} == {
        key: (row["n"], row["correct"]) for key, row in found.items()
    }


@pytest.mark.slow
def test_a_run_of_several_strengths_resumes_and_others_do_not(tiny_run: MakeRun) -> None:
    def config(groups: Any) -> RunConfig:
        return tiny_run(**{**OFTEN, "infusion": {"background": {"frequency": 0, "groups": groups}}})

    cut_off(config(GROUPS), 12)
    with pytest.raises(InputError, match=r"infusion\.background\.groups"):
        train(config(GROUPS[:1]))
    assert (train(config(GROUPS)) / "DONE").exists()


@pytest.mark.slow
def test_a_run_that_extends_another_shows_the_same_groups(tiny_run: MakeRun) -> None:
    background = {"frequency": 0, "groups": GROUPS, "policy": "protected"}
    first = train(tiny_run(name="first", infusion={"background": background}))
    longer = {"name": "second", "extends": first, "training": {"token_budget": 40 * 8 * 64}}
    with pytest.raises(InputError, match=r"infusion\.background\.groups: says that other facts are shown"):
        train(tiny_run(**longer))
    with pytest.raises(InputError, match=r"infusion\.facts: says that other facts are shown"):
        train(tiny_run(**longer, infusion={"background": background, "facts": 4}))
    run = train(tiny_run(**longer, infusion={"background": background}))
    received = json.loads((run / "exposures.json").read_text())["received"]["background"]
    assert sorted(received.values()) == [0] * 4 + [4] * 8 + [12] * 4
