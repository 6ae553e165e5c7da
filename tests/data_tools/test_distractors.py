"""No option is right by the data, no two mean the same, and none is the same tokens as another."""

from __future__ import annotations

import time
from itertools import combinations
from pathlib import Path

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.facts.names import Entities
from megatron_kis.data_tools.rendering.distractors import choose_fair_options, choose_options
from megatron_kis.data_tools.rendering.templates import RelationTemplates
from megatron_kis.data_tools.tokenizers.base import Tokenizer
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer

HOLLAND = [
    Fact("hague", "Hague House", "country", "Holland", "infused"),
    Fact("delft", "Delft Tower", "country", "Netherlands", "infused", (), ("Holland", "Nederland")),
    Fact("munich", "Munich Hall", "country", "Germany", "infused"),
    Fact("rouen", "Rouen Church", "country", "France", "infused"),
]
FORMS = {
    "Q30": ("United States", "U.S.", "America", "USA"),
    "Q142": ("France", "République française"),
    "Q183": ("Germany", "Deutschland"),
    "Q38": ("Italy",),
}
PEOPLE = [
    Fact(f"{name}", f"Person {name}", "country", name, "infused", (), (), f"P{name}", entity)
    for entity, names in FORMS.items()
    for name in names
]

TEMPLATES = RelationTemplates(("The land of [X] is [Y] .",), ("[Y] has [X] .",), ())


def word_tokenizer(folder: Path, *names: str) -> Tokenizer:
    """Of whole words; all that it does not know are one token."""
    from tokenizers import Tokenizer as Model
    from tokenizers import models, pre_tokenizers

    words = ["<unk>", "</s>", "The", "land", "of", "is", "has", ".", *names]
    model = Model(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder / "tokenizer.json")


def check(facts: list[Fact], options: dict[str, tuple[list[str], int]]) -> None:
    entities = Entities(facts)
    for fact in facts:
        if fact.id in options:
            names, answer = options[fact.id]
            assert names[answer] == fact.object
            for one, other in combinations(names, 2):
                assert entities.meanings(one).isdisjoint(entities.meanings(other)), names


@pytest.mark.parametrize("distractors", [1, 2, None])
def test_another_name_of_the_answer_is_no_option_nor_two_names_of_one_object(distractors: int | None) -> None:
    for seed in range(20):
        options = choose_options(HOLLAND, distractors=distractors, seed=seed).options
        assert len(options) == 4
        check(HOLLAND, options)


@pytest.mark.parametrize("distractors", [1, 3, None])
def test_an_id_has_one_name_among_the_options(distractors: int | None) -> None:
    ids = {fact.object: fact.object_id for fact in PEOPLE}
    for seed in range(20):
        options = choose_options(PEOPLE, distractors=distractors, seed=seed).options
        assert len(options) == len(PEOPLE)
        assert all(len({ids[name] for name in names}) == len(names) for names, _ in options.values())
        if distractors is None:
            assert {len(names) for names, _ in options.values()} == {4}


def test_objects_of_the_subject_under_its_other_names_are_no_distractors() -> None:
    facts = [
        Fact("a", "Holland", "city", "Amsterdam", "infused"),
        Fact("b", "Netherlands", "city", "Rotterdam", "infused", ("Holland",)),
        Fact("c", "Peru", "city", "Lima", "infused", (), (), "Q419"),
        Fact("d", "Republic of Peru", "city", "Cuzco", "infused", (), (), "Q419"),
        Fact("e", "Chile", "city", "Arica", "infused"),
        Fact("f", "Chad", "city", "Abéché", "infused"),
    ]
    for seed in range(20):
        options = choose_options(facts, distractors=2, seed=seed).options
        for one, other in (("a", "b"), ("c", "d")):
            assert facts["abcdef".index(other)].object not in options[one][0]
            assert facts["abcdef".index(one)].object not in options[other][0]


def test_facts_that_cannot_be_asked_are_left_out_and_only_nothing_at_all_is_an_error() -> None:
    hub = [Fact(f"h{n}", "France", "city", f"Ville {n}", "infused") for n in range(8)]
    other = [Fact("p", "Peru", "city", "Lima", "infused"), Fact("c", "Chile", "city", "Arica", "infused")]
    chosen = choose_options([*hub, *other], distractors=3, seed=0)
    assert set(chosen.options) == {"p", "c"}
    assert sorted(chosen.left_out) == [fact.id for fact in hub]
    with pytest.raises(InputError, match=r"fact 'h\d' has 0 possible distractors in group 'infused', needs 3"):
        choose_options(hub, distractors=3, seed=0)


def test_many_objects_of_one_subject_take_linear_time() -> None:
    facts = [Fact(f"h{n}", "France", "city", f"Ville {n}", "infused") for n in range(30_000)]
    facts += [Fact(f"s{n}", f"S{n}", "city", f"Town {n}", "infused") for n in range(10_000)]
    begin = time.process_time()
    options = choose_options(facts, distractors=3, seed=0).options
    assert {f"s{n}" for n in range(10_000)} <= options.keys()
    assert time.process_time() - begin < 30


@pytest.mark.parametrize("distractors", [1, 2, None])
def test_no_two_options_are_the_same_tokens(tmp_path: Path, distractors: int | None) -> None:
    names = ["法国", "日本", "德国", "Peru", "Chile", "Niger"]  # the first three are unknown to the tokenizer, and one
    facts = [Fact(str(n), f"S{n}", "land", names[n % 6], "infused") for n in range(24)]
    tokenizer = word_tokenizer(tmp_path, *names[3:])
    for seed in range(10):
        chosen = choose_fair_options(facts, {"land": TEMPLATES}, tokenizer, distractors=distractors, seed=seed)
        assert len(chosen.options) + len(chosen.left_out) == 24
        assert len(chosen.options) >= 12
        for options, _ in chosen.options.values():
            assert len({tuple(tokenizer.encode(name)) for name in options}) == len(options)
    with pytest.raises(InputError, match="must not extend another one or be the same tokens"):
        choose_fair_options(
            [fact for fact in facts if fact.object in names[:3]],
            {"land": TEMPLATES},
            tokenizer,
            distractors=distractors,
            seed=0,
        )


@pytest.mark.parametrize("asked", [0, -3])
def test_less_than_one_fact_cannot_be_asked_about(asked: int) -> None:
    with pytest.raises(InputError, match=f"asked: is {asked}; 1 or more"):
        choose_options(HOLLAND, distractors=1, seed=0, asked=asked)
