"""A run that asks at most so many facts of each group: the first ones, and what it says of them is the same."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from megatron_kis.config.run import RunConfig
from megatron_kis.probes.infusion_order import infusion_order
from megatron_kis.probes.questions import Question, read_questions
from megatron_kis.probes.scoring import RULES
from megatron_kis.training.artifacts import open_run
from megatron_kis.training.inputs import open_inputs
from megatron_kis.training.trainer import train
from tests.run_files import rows

MakeRun = Callable[..., RunConfig]
GROUPS = [{"facts": 8, "frequency": 2}, {"facts": 6, "frequency": 6}]


def asked(config: RunConfig, group: str) -> set[str]:
    return {question.fact for question in open_inputs(config).questions.questions if question.group == group}


def test_the_first_facts_of_each_group_are_asked(tiny_run: MakeRun) -> None:
    config = tiny_run(probes={"facts_per_group": 5})
    every = read_questions(config.data.questions, config.probes.templates)
    for group in ("infused", "background", "control"):
        assert asked(config, group) == set(infusion_order(every, group)[:5])


def test_of_facts_shown_the_first_ones_and_of_each_strength(tiny_run: MakeRun) -> None:
    background = {"policy": "protected", "frequency": 0, "groups": GROUPS}
    config = tiny_run(infusion={"facts": 8, "background": background}, probes={"facts_per_group": 3})
    every = read_questions(config.data.questions, config.probes.templates)
    assert asked(config, "infused") == set(infusion_order(every)[:3])
    order = infusion_order(every, "background")
    assert asked(config, "background") == {*order[:3], *order[8:11]}
    few = config.replace(infusion=config.infusion.replace(facts=2))
    assert asked(few, "infused") == set(infusion_order(every)[:2])


def test_a_cap_above_every_group_asks_all(tiny_run: MakeRun) -> None:
    capped, plain = (open_inputs(tiny_run(**more)).questions for more in ({"probes": {"facts_per_group": 99}}, {}))
    assert list(capped.questions) == list(plain.questions)


@pytest.mark.slow
def test_a_run_with_a_cap_asks_fewer_questions_and_finds_the_same_of_them(tiny_run: MakeRun) -> None:
    whole = train(tiny_run(name="whole"))
    capped = train(tiny_run(name="capped", probes={"facts_per_group": 6}))
    assert json.loads((capped / "run.json").read_text())["config"]["probes"]["facts_per_group"] == 6
    settings = [json.loads((run / "outcomes" / "probe.json").read_text()) for run in (whole, capped)]
    assert settings[1]["asked"] * 16 == settings[0]["asked"] * 6
    questions = open_run(whole).questions(tiny_run().probes.templates).questions
    kept = {key(question) for question in open_run(capped).questions(tiny_run().probes.templates).questions}
    outcomes = np.load(whole / "outcomes" / "step-20.npz")
    for row in rows(capped, "probes.jsonl"):
        mine = [
            number
            for number, question in enumerate(questions)
            if key(question) in kept and (question.group, question.split) == (row["group"], row["split"])
        ]
        rule = RULES.index(row["scoring"])
        mine = [number for number in mine if not np.isnan(outcomes["margins"][number, rule])]  # pmi needs a prompt
        assert (row["facts"], row["n"]) == (6, len(mine))
        assert row["correct"] == outcomes["correct"][mine, rule].sum()
        assert row["margin"] == pytest.approx(outcomes["margins"][mine, rule].mean(dtype=np.float64), abs=1e-4)


def key(question: Question) -> tuple[str, str, int]:
    return question.fact, question.split, question.template
