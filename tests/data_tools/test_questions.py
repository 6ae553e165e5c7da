from collections import Counter, defaultdict
from dataclasses import replace
from hashlib import sha256

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.rendering.distractors import choose_options
from megatron_kis.data_tools.rendering.questions import iter_questions
from megatron_kis.data_tools.rendering.statements import tokenize_option
from megatron_kis.data_tools.rendering.templates import fill


def cell(count, group="infused", relation="r", first=0):
    return [
        Fact(f"{group}{index}", f"S{group}{index}", relation, f"{group} town {index}", group)
        for index in range(first, first + count)
    ]


def test_distractors_are_objects_of_the_same_relation_and_group():
    facts = cell(8) + cell(8, "control") + cell(8, "background")
    objects = {group: {fact.object for fact in facts if fact.group == group} for group in ("infused", "control")}
    chosen = choose_options(facts, distractors=3, seed=0).options
    for fact in facts:
        options, answer = chosen[fact.id]
        assert options[answer] == fact.object
        assert len(set(options)) == 4
        if fact.group in objects:
            assert set(options) <= objects[fact.group]


def test_a_model_that_prefers_names_whatever_the_subject_scores_exactly_chance():
    facts = cell(40)
    chosen = choose_options(facts, distractors=3, seed=3).options
    for preference in (str, lambda name: name[::-1], lambda name: sha256(name.encode()).digest()):
        right = sum(max(options, key=preference) == options[answer] for options, answer in chosen.values())
        assert right == 10


def test_facts_left_over_from_the_blocks_are_asked_too():
    chosen = choose_options(cell(6), distractors=3, seed=0).options
    assert len(chosen) == 6
    assert all(len(set(options)) == 4 for options, _ in chosen.values())


def test_other_right_objects_and_aliases_are_never_distractors():
    facts = [
        *cell(8),
        Fact("two", "Sinfused0", "r", "second right town", "infused"),
        Fact("alias", "T", "r", "Köln", "infused", (), ("infused town 1", "infused town 2")),
    ]
    for seed in range(20):
        chosen = choose_options(facts, distractors=3, seed=seed).options
        assert "second right town" not in chosen["infused0"][0]
        assert "infused town 0" not in chosen["two"][0]
        assert not {"infused town 1", "infused town 2"} & set(chosen["alias"][0])


def test_the_draw_is_the_seeds_and_the_answers_place_is_random():
    facts = cell(40)
    one = choose_options(facts, distractors=3, seed=0).options
    assert one == choose_options(facts, distractors=3, seed=0).options
    assert one != choose_options(facts, distractors=3, seed=1).options
    assert set(Counter(answer for _, answer in one.values())) == {0, 1, 2, 3}


def test_too_few_objects_for_the_distractors_are_an_input_error():
    with pytest.raises(InputError, match=r"has 2 possible distractors in group 'infused', needs 3"):
        choose_options(cell(3), distractors=3, seed=0)


def test_every_span_decodes_to_its_option_with_the_space_before_it(facts, templates, tokenizer):
    rows = list(iter_questions(facts, templates, tokenizer, distractors=3, seed=0))
    assert len(rows) == 12 * (3 + 2 + 1)
    for row in rows:
        fact = next(fact for fact in facts if fact.id == row["fact"])
        template = templates[row["relation"]].split(row["split"])[row["template"]]
        assert row["options"][row["answer"]]["text"] == fact.object
        for option in row["options"]:
            start, end = option["span"]
            statement = fill(template, fact.subject, option["text"])
            assert tokenizer.decode(option["tokens"]) == statement.text
            assert tokenizer.decode(option["tokens"][start:end]) == option["text"]
            assert tokenizer.piece(option["tokens"][start]).startswith("▁")
            assert tokenizer.eod_id not in option["tokens"]
            if statement.answer[0] == 0:
                assert start == 0


def test_names_made_of_bytes_and_of_a_lone_space_keep_their_whole_span(tokenizer):
    for name in ("北京", "Ђурђево", "🙂 town"):
        for template in ("[X] is in [Y].", "In [Y] lies [X].", "[Y] has [X]."):
            option = tokenize_option(template, "Rysy", name, tokenizer)
            start, end = option["span"]
            assert tokenizer.decode(option["tokens"][start:end]) == name
            before = tokenizer.decode(option["tokens"][:start])
            assert before == template.replace("[X]", "Rysy").partition("[Y]")[0].rstrip(" ")


def test_all_templates_of_a_fact_share_their_options(facts, templates, tokenizer):
    options = defaultdict(set)
    for row in iter_questions(facts, templates, tokenizer, distractors=3, seed=0):
        options[row["fact"]].add((row["answer"], tuple(option["text"] for option in row["options"])))
    assert all(len(seen) == 1 for seen in options.values())


def test_the_whole_answer_space_is_every_object_that_is_not_right():
    facts = cell(5) + cell(4, "control")
    facts[1] = replace(facts[1], object=facts[0].object)  # two facts share an object: it is one option
    facts[3] = replace(facts[3], subject=facts[2].subject, object_aliases=(facts[4].object,))
    chosen = choose_options(facts, distractors=None, seed=0).options
    towns = [f"infused town {number}" for number in (0, 2, 3)]  # town 4 is another name of town 3
    assert chosen["infused0"] == chosen["infused1"] == (towns, 0)
    assert chosen["infused4"] == ([*towns[:2], "infused town 4"], 2)
    assert chosen["infused2"] == ([towns[0], towns[1]], 1)  # its subject has two right objects, and one's other name
    assert chosen["infused3"] == ([towns[0], towns[2]], 1)
    assert len(chosen["control2"][0]) == 4
    assert len(choose_options(facts, distractors=None, seed=0, asked=2).options) == 4


def test_a_fact_without_a_wrong_object_has_no_answer_space():
    facts = [replace(fact, object="here") for fact in cell(3)]
    with pytest.raises(InputError, match="no wrong object"):
        choose_options(facts, distractors=None, seed=0)


def test_objects_that_many_facts_share_still_make_blocks():
    facts = [Fact(f"f{n}", f"S{n}", "r", f"town {min(n % 40, 10)}", "infused") for n in range(400)]  # 300 of "town 10"
    chosen = choose_options(facts, distractors=3, seed=0).options
    assert len(chosen) == 400
    for fact in facts:
        options, answer = chosen[fact.id]
        assert options[answer] == fact.object
        assert len(set(options)) == 4


def test_a_part_of_the_facts_is_asked_in_whole_blocks_spread_over_the_relations():
    facts = cell(200) + cell(100, relation="s", first=200) + cell(60, "control")
    chosen = choose_options(facts, distractors=3, seed=0, asked=30).options
    counts = Counter((fact.group, fact.relation) for fact in facts if fact.id in chosen)
    assert counts == {("infused", "r"): 20, ("infused", "s"): 12, ("control", "r"): 32}
    for preference in (str, lambda name: name[::-1]):
        right = sum(max(options, key=preference) == options[answer] for options, answer in chosen.values())
        assert right == len(chosen) / 4
    assert choose_options(facts, distractors=3, seed=1, asked=30).options.keys() != chosen.keys()


def test_other_names_of_an_object_are_written_beside_the_options(facts, templates, tokenizer):
    named = [replace(facts[0], object_aliases=("Sweden", "France")), *facts[1:]]
    plain = list(iter_questions(facts, templates, tokenizer, distractors=3, seed=0))
    for row, before in zip(iter_questions(named, templates, tokenizer, distractors=3, seed=0), plain, strict=True):
        assert "aliases" not in before
        if row["fact"] == facts[0].id:
            template = templates[row["relation"]].split(row["split"])[row["template"]]
            expected = [fill(template, facts[0].subject, name).text for name in ("Sweden", "France")]
            assert [tokenizer.decode(alias["tokens"]) for alias in row["aliases"]] == expected
            assert not {"Sweden", "France"} & {option["text"] for option in row["options"]}
        else:
            assert row == before
