"""Options that extend one another are never chosen together."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.rendering.confusable import ConfusableOptions
from megatron_kis.data_tools.rendering.distractors import choose_fair_options, choose_options
from megatron_kis.data_tools.rendering.questions import iter_questions
from megatron_kis.data_tools.rendering.render import render
from megatron_kis.data_tools.rendering.templates import RelationTemplates
from megatron_kis.data_tools.tokenizers.base import Tokenizer
from tests.frames import write_framed_tokenizer

ENDS = RelationTemplates(("[X] lies in [Y].",), ("The land of [X] is [Y].",), ("Question: Where is [X]? Answer: [Y]",))
WITHIN = RelationTemplates(("[X] lies in [Y], they say.",), ("In [Y] lies [X].",), ())
LANDS = ["Guinea", "Guinea-Bissau", "Niger", "Niger Delta", "Dominica", "Dominica Republic", "Congo", "Congo Republic"]


def cell(objects, count, group="infused", relation="land"):
    return [Fact(f"{group}{n}", f"S{group}{n}", relation, objects[n % len(objects)], group) for n in range(count)]


def extends(one, other):
    return one != other and (one.startswith(other) or other.startswith(one))


@pytest.mark.parametrize("distractors", [1, 3, None])
def test_no_option_extends_the_answer_or_is_extended_by_it(tokenizer: Tokenizer, distractors: int | None) -> None:
    facts = cell(LANDS, 72) + cell(LANDS, 71, "control")
    chosen = choose_fair_options(facts, {"land": ENDS}, tokenizer, distractors=distractors, seed=1)
    assert chosen.left_out == []
    for fact in facts:
        options, answer = chosen.options[fact.id]
        assert options[answer] == fact.object
        assert len(set(options)) == (7 if distractors is None else 1 + distractors)
        assert not any(extends(fact.object, option) for option in options)
    plain = choose_options(facts, distractors=distractors, seed=1).options
    assert any(extends(fact.object, option) for fact in facts for option in plain[fact.id][0])


def test_blocks_are_rearranged_so_that_a_preference_still_scores_chance(tokenizer: Tokenizer) -> None:
    for seed in range(5):
        facts = cell(LANDS, 72)
        chosen = choose_fair_options(facts, {"land": ENDS}, tokenizer, distractors=3, seed=seed).options
        for preference in (str, len, lambda name: name[::-1], lambda name: hashlib.sha256(name.encode()).digest()):
            # a preference of one name over another, ties broken by the name
            right = sum(
                max(options, key=lambda name: (preference(name), name)) == options[answer]
                for options, answer in chosen.values()
            )
            assert right == 18


def test_statements_decide_what_extends_what(tmp_path: Path) -> None:
    from megatron_kis.data_tools.tokenizers.registry import load_tokenizer

    # Guinea-Bissau begins with the tokens of Guinea; Chadian has a token of its own, and Chad's end is not in it
    texts = ["lies in Guinea-Bissau, they say. In Guinea lies", "in Chadian, in Chadians", "is Chad, Chad, Chad"] * 50
    tokenizer = load_tokenizer(write_framed_tokenizer(tmp_path, texts, vocabulary=340))
    names = ["Guinea", "Guinea-Bissau", "Chad", "Chadian", "St", "St. Louis", "Togo"]
    facts = [Fact(name, f"S{name}", "land", name, "infused") for name in names]
    by_name = {fact.object: fact for fact in facts}

    def confusable(templates: RelationTemplates) -> set[tuple[str, str]]:
        rival = ConfusableOptions(facts, lambda fact: templates, tokenizer)
        found = {(one, other) for one in names for other in names if rival(by_name[one], other)}
        assert found == {(other, one) for one, other in found}
        return {pair for pair in found if pair[0] < pair[1]}

    assert tokenizer.encode(" Chadian")[:-1] != tokenizer.encode(" Chad")
    within, ends = confusable(WITHIN), confusable(ENDS)
    assert ("Guinea", "Guinea-Bissau") in within  # scored by the object's tokens, the longer one cannot win
    assert ("Chad", "Chadian") in ends - within
    assert ("St", "St. Louis") in ends  # "lies in St." begins "lies in St. Louis."
    assert not any("Togo" in pair for pair in ends)
    assert ("Chad", "Guinea") not in ends


def test_objects_that_are_the_same_tokens_are_rivals(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Model
    from tokenizers import models, pre_tokenizers

    from megatron_kis.data_tools.tokenizers.registry import load_tokenizer

    words = ["<unk>", "</s>", "The", "land", "of", "is", "A", "B", "Question", "Answer", "Where", "lies", "in"]
    model = Model(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    facts = cell(["法国", "日本", "德国", "英国"], 8)
    with pytest.raises(InputError, match=r"no fact of relation 'land' in group 'infused' can be asked about"):
        choose_fair_options(facts, {"land": ENDS}, tokenizer, distractors=1, seed=0)


def test_facts_without_enough_fair_options_are_left_out_and_counted(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = cell(["Guinea", "Guinea-Bissau", "Peru", "Chile"], 8)
    summary = render(facts, {"land": ENDS}, tokenizer, tmp_path / "e", distractors=3)
    header, *rows = [json.loads(line) for line in summary.questions_path.read_text().splitlines()]
    assert (summary.left_out, header["facts_left_out"], header["options_that_extend_the_answer"]) == (4, 4, "none")
    assert {row["fact"] for row in rows} == {fact.id for fact in facts if "Guinea" not in fact.object}
    assert summary.exposures == 8  # what is not asked is shown all the same
    (tmp_path / "t.yaml").write_text(json.dumps({"land": {"train": ENDS.train, "question": ENDS.question}}))
    from megatron_kis.data_tools.facts.fact import write_facts

    write_facts(tmp_path / "f.jsonl", facts)
    (tmp_path / "t.model").write_bytes(tokenizer.model)
    command = [
        "data",
        "render",
        "--facts",
        str(tmp_path / "f.jsonl"),
        "--templates",
        str(tmp_path / "t.yaml"),
        "--tokenizer",
        str(tmp_path / "t.model"),
        "--output",
        str(tmp_path / "x"),
    ]
    assert main(command) == 0
    assert "8 questions; no question for 4 facts" in capsys.readouterr().out


def test_other_facts_are_asked_in_place_of_those_left_out(tokenizer: Tokenizer) -> None:
    facts = cell(["Guinea", "Guinea-Bissau", "Peru", "Chile"], 40)
    chosen = choose_fair_options(facts, {"land": ENDS}, tokenizer, distractors=3, seed=0, asked=10)
    assert len(chosen.options) == 10
    for distractors in (2, None):
        assert choose_fair_options(facts, {"land": ENDS}, tokenizer, distractors=distractors, seed=0).left_out == []


def test_a_group_of_which_nothing_could_be_asked_is_refused_and_its_files_are_kept(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    facts = cell(["Guinea", "Guinea-Bissau"], 8)
    render(cell(["Peru", "Chile"], 8), {"land": ENDS}, tokenizer, tmp_path / "e", distractors=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="an option must not extend another one"):
        render(facts, {"land": ENDS}, tokenizer, tmp_path / "e", distractors=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(InputError, match=r"has 0 possible distractors .* with other objects"):
        choose_fair_options(cell(["Peru"], 4), {"land": ENDS}, tokenizer, distractors=1, seed=0)


def test_paraphrases_count_as_statements_of_their_fact(tokenizer: Tokenizer) -> None:
    facts = [
        Fact("a", "A", "r", "Niger", "infused"),
        Fact("b", "B", "r", "Nigeria", "infused"),
        Fact("c", "C", "r", "Peru", "infused"),
    ]
    own = {"a": RelationTemplates(("A lies in [Y]",), (), ())}
    rival = ConfusableOptions(facts, lambda fact: own.get(fact.id, WITHIN), tokenizer)
    assert rival(facts[0], "Nigeria")
    assert not rival(facts[0], "Peru")


def test_files_without_such_options_are_as_they_were(facts, templates, tokenizer: Tokenizer) -> None:
    shared = [Fact(f"f{n}", f"S{n}", "r", f"town {n % 40:02}", ("infused", "control")[n % 2]) for n in range(402)]
    known = {  # of the options that were chosen before confusable ones were looked for
        ("fixture", 3, None): "72f4622222bf55ba",
        ("fixture", None, None): "fbcb3a4be2d01ddf",
        ("fixture", 2, 30): "4cd30a82c5db71b1",
        ("shared", 3, None): "eaabca8483e8a595",
        ("shared", None, None): "048cd762c8edc6d8",
        ("shared", 2, 30): "2b8d9c579d7da7c0",
    }
    for (name, distractors, asked), expected in known.items():
        own = {"fixture": facts, "shared": shared}[name]
        of_all = {**templates, "r": ENDS}
        chosen = choose_fair_options(own, of_all, tokenizer, distractors=distractors, seed=1, asked=asked)
        assert chosen.left_out == []
        assert hashlib.sha256(json.dumps(chosen.options).encode()).hexdigest()[:16] == expected
    rows = list(iter_questions(facts, templates, tokenizer, distractors=3, seed=0))
    plain = choose_options(facts, distractors=3, seed=0)
    assert rows == list(iter_questions(facts, templates, tokenizer, distractors=3, seed=0, chosen=plain))


def test_a_relation_with_a_rival_leaves_the_options_of_others_alone(tokenizer: Tokenizer) -> None:
    towns = cell([f"town {n:02}" for n in range(40)], 40, relation="town")
    alone = choose_fair_options(towns, {"town": ENDS}, tokenizer, distractors=3, seed=0).options
    lands = [replace(fact, id=f"land{fact.id}") for fact in cell(LANDS, 72)]
    both = choose_fair_options([*towns, *lands], {"town": ENDS, "land": ENDS}, tokenizer, distractors=3, seed=0).options
    assert {fact.id: both[fact.id] for fact in towns} == alone


def test_many_objects_that_begin_one_another_are_found_in_little_time(tokenizer: Tokenizer) -> None:
    names = ["a" * (1 + n % 50) + f" {n:05}" for n in range(3000)]
    facts = [Fact(f"f{n}", f"S{n}", "r", name, "infused") for n, name in enumerate(names)]
    chosen = choose_fair_options(facts, {"r": ENDS}, tokenizer, distractors=3, seed=0)
    assert len(chosen.options) == 3000
    counts = Counter(len(set(options)) for options, _ in chosen.options.values())
    assert counts == {4: 3000}
