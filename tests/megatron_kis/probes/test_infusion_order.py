"""The first K infused facts: each relation has its share, blocks of options stay whole, smaller amounts are within."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_kis.common.errors import InputError
from megatron_kis.probes.infusion_order import infusion_order, questions_of_shown, shown_facts
from megatron_kis.probes.questions import Option, Question, QuestionSet

HEADER: dict[str, Any] = {"tokenizer_fingerprint": "t", "first_tokens": [0]}


def questions(sizes: dict[str, int], *, options: int | None) -> QuestionSet:
    """Two questions per fact; facts of a block of ``options`` have each other's objects, or all have all objects."""
    asked = []
    for group in ("background", "infused", "control"):
        for relation, size in sizes.items():
            facts = [f"{group}/{relation}/{number}" for number in range(size)]
            for number, fact in enumerate(facts):
                first = 0 if options is None else min(number - number % options, max(0, size - options))
                block = facts if options is None else facts[first : first + options]
                for split in ("train", "held_out"):
                    candidates = tuple(Option(f"of {other}", (1, number), (0, 1)) for other in block)
                    asked.append(Question(fact, group, relation, split, 0, block.index(fact), candidates))
    return QuestionSet(HEADER | {"distractors_per_question": None if options is None else options - 1}, asked)


@given(
    sizes=st.dictionaries(st.sampled_from("abcd"), st.integers(2, 13), min_size=1),
    options=st.none() | st.integers(2, 4),
)
def test_every_amount_has_its_share_of_each_relation(sizes: dict[str, int], options: int | None) -> None:
    order = infusion_order(questions(sizes, options=options))
    total = sum(sizes.values())
    assert sorted(order) == sorted(f"infused/{relation}/{n}" for relation, size in sizes.items() for n in range(size))
    slack = 1 if options is None else options  # a block is taken whole
    for count in range(total + 1):
        held = Counter(fact.split("/")[1] for fact in order[:count])
        for relation, size in sizes.items():
            assert abs(held[relation] - count * size / total) <= slack + 1


def test_facts_that_share_their_options_follow_each_other() -> None:
    order = infusion_order(questions({"a": 12, "b": 12}, options=4))
    for start in range(0, 24, 4):
        assert len({(fact.split("/")[1], int(fact.split("/")[2]) // 4) for fact in order[start : start + 4]}) == 1


def test_facts_that_are_not_asked_about_come_last() -> None:
    every = questions({"a": 4}, options=2)
    ids = [f"infused/a/{number}" for number in (7, 0, 1, 5, 2, 3)]  # 5 and 7 are in the data alone
    shown = {
        count: {fact for fact, is_shown in zip(ids, shown_facts(every, ids, count), strict=True) if is_shown}
        for count in range(1, 7)
    }
    assert shown[4] == {f"infused/a/{number}" for number in range(4)}
    assert shown[5] - shown[4] == {"infused/a/7"}
    assert all(shown[count] < shown[count + 1] for count in range(1, 6))
    with pytest.raises(InputError, match=r"infusion\.facts: is 7, the data have 6"):
        shown_facts(every, ids, 7)


def test_a_run_is_asked_what_it_shows_and_all_of_the_other_groups() -> None:
    every = questions({"a": 8, "b": 4}, options=2)
    some = questions_of_shown(every, 6)
    taken = set(infusion_order(every)[:6])
    assert [question for question in every.questions if question.group != "infused" or question.fact in taken] == list(
        some.questions
    )
    assert questions_of_shown(every, None) is every
    other = QuestionSet(HEADER, every.table.take(np.arange(len(every.table))[::-1]))
    assert {question.fact for question in questions_of_shown(other, 6, own=every).questions} == {
        question.fact for question in some.questions
    }
