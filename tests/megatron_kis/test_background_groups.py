"""Background facts that one run shows differently often: exact counts, one plan for equal ones, rows for each."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from megatron_kis.cli.main import main
from megatron_kis.common.configuration import parse_config
from megatron_kis.common.errors import InputError
from megatron_kis.config.data import InfusionConfig
from megatron_kis.config.run import RunConfig
from megatron_kis.data import ExposurePlan, InfusedFacts
from megatron_kis.data.exposure_plan import BackgroundFacts, TokenBudget
from megatron_kis.data.exposure_schedule import schedule_of
from megatron_kis.data.exposure_store import ExposureStore
from megatron_kis.data.extension import check_continuation, extend
from megatron_kis.data.late_infusion import begin_later
from megatron_kis.probes.infusion_order import infusion_order
from megatron_kis.probes.questions import read_questions
from megatron_kis.training.artifacts import open_run
from megatron_kis.training.inputs import open_inputs
from megatron_kis.training.trainer import train
from tests.megatron_kis.data.counting import SEARCH, by_fact, counts, plan_settings, read_all
from tests.megatron_kis.ranks import finish
from tests.run_files import rows
from tests.runs import OFTEN, cut_off
from tests.sources import Sources
from tests.studies import write_study

MakeRun = Callable[..., RunConfig]
STRENGTHS = np.array([5] * 10 + [20] * 12 + [0] * 8)
GROUPS = [{"facts": 8, "frequency": 2}, {"facts": 4, "frequency": 6}]


def plan(
    frequency: Any, policy: str = "protected", infused: float = 7, *, text_first: bool = False, **background: Any
) -> ExposurePlan:
    return ExposurePlan(
        InfusedFacts(np.full((40, 3), 9), frequency=infused),
        BackgroundFacts(np.full((30, 2), 8), frequency=frequency, policy=policy, **background),
        budget=TokenBudget(64 * 400, 64),
        seed=3,
        text_first=text_first,
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


@pytest.mark.parametrize("policy", ["protected", "displaced"])
def test_the_mean_of_two_parts_is_that_of_the_facts_shown_in_either(policy: str) -> None:
    made = begin_later(
        64 * 200,
        InfusedFacts(np.full((40, 3), 9), frequency=0),
        BackgroundFacts(np.full((30, 2), 8), frequency=np.repeat([1, 41, 0], 10), policy=policy),
        budget=TokenBudget(64 * 400, 64),
    )
    assert made.base.background_frequency + made.tail.background_frequency == 20 + 11
    assert made.background_frequency == made.identity()["background_frequency"] == 21
    assert counts(made, "background", 30) == [1] * 10 + [41] * 10 + [0] * 10


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
        ([{"facts": 0, "frequency": 6}], r"background\.0\.facts"),
        ([{"facts": 3, "frequency": 0}], r"background\.0\.frequency"),
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
def test_a_run_counts_and_asks_each_strength(
    tiny_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    history = tmp_path / "history.csv"
    assert main(["probe", str(run), "--histories", str(history)]) == 0
    with open(history, encoding="utf-8", newline="") as file:
        groups = {row["fact"]: row["group"] for row in csv.DictReader(file) if row["group"].startswith("background")}
    assert groups == {fact: f"background@{count}" for fact, count in by_name.items()}
    capsys.readouterr()
    assert main(["probe", str(run), "--device", "cpu", "--json"]) == 0
    again = {(row["group"], row["split"], row["scoring"]): row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert {key: (row["n"], row["correct"]) for key, row in again.items()} == {
        key: (row["n"], row["correct"]) for key, row in found.items()
    }


def test_a_study_of_groups_shows_them_in_its_plan(
    tiny_sources: Sources, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_data, tmp_path / "out" / "data")
    study = write_study(tmp_path, tiny_sources, background=GROUPS, frequencies=[3])
    assert main(["study", "plan", str(study)]) == 0
    said = capsys.readouterr().out
    assert "2, 6" in said
    assert "12 of 16 background facts are shown and asked for" in said
    assert main(["study", "plan", str(study), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["background_groups"] == GROUPS


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


WINDOW = {"kind": "window", "start": 0.25, "end": 0.5}


@SEARCH
@given(plan_settings(), st.integers(0, 2**32 - 1))
def test_any_frequencies_that_fit_are_met_exactly(made: dict[str, Any], seed: int) -> None:
    most, facts = made["background_frequency"], len(made["background_lengths"])
    made["background_frequency"] = wanted = np.random.default_rng(seed).integers(0, most + 1, size=facts)
    try:
        made_plan = ExposurePlan(**made)
    except InputError as error:  # under a schedule that takes all tokens, less background may lie elsewhere
        assert "fits" in str(error) or "densest" in str(error), str(error)
        reject()
    found = counts(made_plan, "background", facts)
    assert found == made_plan.expected("background").tolist()
    ratio = made_plan.infusion_ratio if made["background_policy"] == "displaced" else 0.0
    assert found == [round(count * (1.0 - ratio)) for count in wanted.tolist()]
    if made["templates"] != 0:
        for fact, items in by_fact(made_plan, "background").items():
            shown = Counter(item.exposure.template for item in items)
            templates = int((made["background_lengths"][fact] > 0).sum())
            assert max(shown.values()) - min(shown[template] for template in range(templates)) <= 1


@pytest.mark.parametrize("frequency", [12, STRENGTHS], ids=["one", "several"])
@pytest.mark.parametrize(
    ("schedule", "inside"),
    [
        (WINDOW, [(0.25, 0.5)]),
        ({"kind": "final", "share": 0.25}, [(0.75, 1.0)]),
        ({"kind": "bursts", "count": 2, "width": 0.5}, [(0.125, 0.375), (0.625, 0.875)]),
    ],
    ids=["window", "final", "bursts"],
)
def test_background_exposures_lie_in_their_schedule(frequency: Any, schedule: Any, inside: Any) -> None:
    made = plan(frequency, schedule=schedule_of(schedule), infused=7)
    wanted = np.broadcast_to(frequency, (30,)).tolist()
    assert counts(made, "background", 30) == wanted
    assert counts(made, "infused", 40) == [7] * 40
    slack = 2 * made.block / len(made)
    for item in read_all(made):
        time = item.sequence / len(made)
        if item.exposure.group == "background":
            assert any(start - slack <= time < end + slack for start, end in inside)
    infused = [item.sequence for item in read_all(made) if item.exposure.group == "infused"]
    assert min(infused) < 10 and max(infused) > 390  # and these keep to their own


def test_a_window_is_in_the_identity_and_uniform_is_not() -> None:
    uniform, early = plan(12), plan(12, schedule=schedule_of(WINDOW))
    assert early.identity()["background_schedule"] == "window(start=0.25, end=0.5)"
    assert "background_schedule" not in uniform.identity()
    with pytest.raises(InputError, match=r"background_schedule was None, is 'window"):
        check_continuation(json.loads(json.dumps(uniform.identity())), early.identity())
    assert plan(12, schedule=schedule_of({"kind": "window", "start": 0, "end": 1})).identity() == uniform.identity()


def test_an_extension_has_a_schedule_of_its_own_for_the_background() -> None:
    base = plan(12, schedule=schedule_of(WINDOW))
    extended = extend(base, 64 * 800, background_schedule={"kind": "final", "share": 0.5})
    assert counts(extended, "background", 30) == [24] * 30
    late = [
        item.sequence for item in read_all(extended) if item.exposure.group == "background" and item.sequence >= 400
    ]
    assert min(late) >= 600 - 2 * extended.tail.block
    spread = [item.sequence for item in read_all(extend(base, 64 * 800)) if item.exposure.group == "background"]
    assert sum(sequence >= 750 for sequence in spread) > 20


def test_a_schedule_is_of_protected_facts() -> None:
    with pytest.raises(InputError, match="schedule has no effect on displaced facts"):
        parsed({"frequency": 3, "schedule": WINDOW})
    with pytest.raises(InputError, match="use the policy protected"):
        plan(3, "displaced", schedule=schedule_of(WINDOW))
    with pytest.raises(InputError, match=r"background\.schedule: unknown schedule 'windows'"):
        parsed({"policy": "protected", "frequency": 3, "schedule": {**WINDOW, "kind": "windows"}})
    with pytest.raises(InputError, match=r"background\.schedule: start: is 'early'; must be a number"):
        parsed({"policy": "protected", "frequency": 3, "schedule": {**WINDOW, "start": "early"}})


def test_a_window_that_cannot_hold_its_exposures_is_refused() -> None:
    full = 64 * 100 / (30 * 8)  # exposures of each fact that fill the window alone
    alone = plan(int(full), infused=0, schedule=schedule_of(WINDOW))
    assert alone.block == 4
    assert all(100 - 2 * alone.block <= item.sequence < 200 + 2 * alone.block for item in read_all(alone))
    with pytest.raises(
        InputError, match=r"background\.schedule: window\(start=0.25, end=0.5\) and the infused .* wider"
    ):
        plan(int(full) + 1, infused=0, schedule=schedule_of(WINDOW))
    with pytest.raises(InputError, match=r"take 1\.073 of the tokens where they are densest"):
        plan(int(full), infused=7, schedule=schedule_of(WINDOW))


@pytest.mark.slow
def test_a_run_shows_its_background_early_after_a_crash_too(tiny_run: MakeRun) -> None:
    groups = [{"facts": 8, "frequency": 2}, {"facts": 4, "frequency": 6}]
    schedule = {"kind": "window", "start": 0, "end": 0.5}
    background = {"policy": "protected", "frequency": 0, "groups": groups, "schedule": schedule}
    config = tiny_run(**{**OFTEN, "infusion": {"background": background}})
    cut_off(config, 12)
    with pytest.raises(InputError, match=r"infusion\.background\.schedule"):
        train(tiny_run(**{**OFTEN, "infusion": {"background": {**background, "schedule": "uniform"}}}))
    run = train(config)
    assert json.loads((run / "exposures.json").read_text())["exact"] is True
    plan_of_run = open_inputs(config).plan
    late = [item.sequence for item in read_all(plan_of_run) if item.exposure.group == "background"]
    assert max(late) < 80 + 2 * 16


@pytest.mark.slow
@pytest.mark.distributed
def test_replicas_feed_each_strength_as_planned(tiny_run: MakeRun) -> None:
    background = {"policy": "protected", "frequency": 0, "groups": GROUPS, "schedule": WINDOW}
    settings: dict[str, Any] = {"infusion": {"background": background}, "probes": {"facts_per_group": 3}}
    alone = train(tiny_run(name="alone", **settings))
    shared = tiny_run(name="shared", **settings)
    finish(shared, 2)
    ledgers = [json.loads((run / "exposures.json").read_text()) for run in (alone, shared.output)]
    assert ledgers[0] == ledgers[1]
    both = [rows(run, "probes.jsonl") for run in (alone, shared.output)]
    for one, other in zip(*both, strict=True):
        for name in ("group", "split", "scoring", "n", "facts"):
            assert one[name] == other[name]
        assert one["margin"] == pytest.approx(other["margin"], abs=1e-3)
