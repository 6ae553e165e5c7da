"""The bits of the facts that a run shows: log2 of the objects of each one's relation."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from megatron_kis.config.run import RunConfig
from megatron_kis.data_tools.facts.fact import load_facts
from megatron_kis.probes.answer_space import bits_of_facts, distinct_objects
from megatron_kis.probes.questions import Option, Question, QuestionSet
from megatron_kis.training.inputs import open_inputs

MakeRun = Callable[..., RunConfig]


def asked(fact: str, relation: str, right: str, *, group: str = "infused", split: str = "train") -> Question:
    options = (Option("elsewhere", (5, 6), (1, 2)), Option(right, (5, 7), (1, 2)))
    return Question(fact, group, relation, split, 0, 1, options)


QUESTIONS = [
    asked("a", "city", "Rom"),
    asked("a", "city", "Rom", split="held_out"),
    asked("b", "city", "ROM"),  # the same name
    asked("c", "city", "Ulm"),
    asked("d", "city", "Köln", group="control"),  # of any group
    asked("e", "city", "Bern", group="background"),
    asked("f", "land", "Peru"),
    asked("g", "land", "Chile"),
]


def test_objects_are_counted_once_whoever_asks_for_them() -> None:
    assert distinct_objects(QuestionSet({}, QUESTIONS)) == {"city": 4, "land": 2}
    assert distinct_objects(QuestionSet({"asked_facts_per_group": None}, QUESTIONS)) == {"city": 4, "land": 2}
    assert distinct_objects(QuestionSet({"asked_facts_per_group": 3}, QUESTIONS)) is None


def test_bits_are_the_logarithm_of_the_objects_for_each_fact() -> None:
    objects = {"city": 8, "land": 3, "one": 1}
    assert bits_of_facts({"city": 10}, objects) == 30
    assert bits_of_facts({"city": 1, "land": 2, "one": 5}, objects) == pytest.approx(3 + 2 * math.log2(3))
    assert bits_of_facts({}, objects) == 0
    assert bits_of_facts({"river": 1}, objects) is None
    assert bits_of_facts({"river": 0}, objects) == 0
    assert bits_of_facts({"city": 1}, None) is None


def test_a_run_has_the_bits_of_what_it_shows(tiny_run: MakeRun) -> None:
    config = tiny_run(infusion={"facts": 8})
    inputs = open_inputs(config)
    facts = load_facts(config.data.questions.parent / "facts.jsonl")
    objects: dict[str, set[str]] = {}
    for fact in facts:
        objects.setdefault(fact.relation, set()).add(fact.object)
    shown = {inputs.store.ids("infused")[row] for row, count in enumerate(inputs.plan.expected("infused")) if count}
    expected = sum(math.log2(len(objects[fact.relation])) for fact in facts if fact.id in shown)
    assert len(shown) == 8
    assert inputs.infused_bits() == pytest.approx(expected)
    every = open_inputs(tiny_run(name="every", infusion={"facts": None})).infused_bits()
    assert every == pytest.approx(
        sum(math.log2(len(objects[fact.relation])) for fact in facts if fact.group == "infused")
    )
    assert open_inputs(tiny_run(name="none", infusion={"frequency": 0})).infused_bits() == 0
