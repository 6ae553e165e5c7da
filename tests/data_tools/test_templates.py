import importlib.resources

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.rendering.templates import SPLITS, fill, load_templates, plain, wording, wrong_articles

GOOD = 'r:\n  train: ["[X] is [Y]."]\n  held_out: ["[Y] has [X]."]\n  question: []\n'


def load(tmp_path, text, **options):
    path = tmp_path / "templates.yaml"
    path.write_text(text, encoding="utf-8")
    return load_templates(path, **options)


def test_filling_gives_the_sentence_and_where_the_object_stands():
    for template in ("[X] is in [Y].", "In [Y] lies [X].", "[Y] has [X], they say."):
        rendered = fill(template, "Mount [Y]", "a [X] land")
        start, end = rendered.answer
        assert rendered.text[start:end] == "a [X] land"
        assert rendered.text == template.replace("[X]", "\0").replace("[Y]", "a [X] land").replace("\0", "Mount [Y]")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (GOOD.replace("[Y] has [X]", "[Y] has it"), "r.held_out[0]: template without [X], the subject"),
        (GOOD.replace("[X] is [Y]", "[X] is"), "r.train[0]: template without [Y], the object"),
        (GOOD.replace("[X] is [Y]", "[X] is [Y] [Y]"), "r.train[0]: template with more than one [Y]"),
        (GOOD.replace("[Y] has [X]", "[x] IS [y]").replace("x", "X").replace("y", "Y"), "same wording as"),
        (GOOD.replace("question: []", "questions: []"), "r: unknown split 'questions'; did you mean 'question'"),
        (GOOD.replace('["[X] is [Y]."]', "[]"), "r: no train templates"),
        (GOOD.replace('["[X] is [Y]."]', "[3]"), "r.train[0]: 3 is not a string"),
        ("r: [", "templates.yaml:1: not valid YAML"),
        ("- r", "not a mapping of relations"),
        ("r: text", "r: not a mapping of splits"),
    ],
)
def test_a_wrong_template_is_named_by_relation_split_and_index(tmp_path, text, problem):
    with pytest.raises(InputError) as error:
        load(tmp_path, text)
    assert problem in str(error.value)
    assert "templates.yaml" in str(error.value)


def test_a_relation_of_the_facts_without_templates_is_refused(tmp_path):
    with pytest.raises(InputError, match="no templates for relation 'rr'; did you mean 'r'"):
        load(tmp_path, GOOD, relations=["r", "rr"])


def test_the_templates_that_come_with_us_are_many_and_put_the_object_in_different_places():
    path = importlib.resources.files("megatron_kis.data_tools") / "resources" / "templates.yaml"
    templates = load_templates(path)
    assert {"airport_region", "iata_city", "country_capital", "country_currency"} <= set(templates)
    for relation in templates.values():
        assert len(relation.train) >= 12
        assert 4 <= len(relation.held_out) <= 6
        assert len(relation.question) == 2
        for split in ("train", "held_out"):
            ends = [template.rstrip(".").endswith("[Y]") for template in relation.split(split)]
            assert 0.2 <= sum(ends) / len(ends) <= 0.8
        assert any(template.startswith("[Y]") for template in relation.train)
    assert SPLITS == ("train", "held_out", "question")


def test_an_open_article_becomes_a_or_an_by_the_name_that_follows_it():
    for answer, sentence in (("Apple", "An Apple is a Pear's."), ("Banana", "A Banana is a Pear's.")):
        rendered = fill("A(n) [Y] is a(n) [X]'s.", "Pear", answer)
        assert rendered.text == sentence
        assert rendered.text[slice(*rendered.answer)] == answer
    assert plain("A(n) [Y] is a(n) [X]'s.") == "A [Y] is a [X]'s."


def test_names_that_a_written_article_does_not_fit_are_found():
    facts = [("Peru", "apple"), ("Oslo", "pear"), ("Lima", "hour")]
    assert wrong_articles("[X] has a [Y].", facts) == ["apple", "hour"]
    assert wrong_articles("An [X] has the [Y].", facts) == ["Lima", "Peru"]
    assert wrong_articles("A(n) [X] has a(n) [Y].", facts) == []
    assert wrong_articles("Alpha [X] has [Y].", facts) == []


def test_a_held_out_template_may_not_be_a_train_one_with_another_article(tmp_path):
    text = 'r:\n  train: ["[X] is a [Y]."]\n  held_out: ["[X] is a(n) [Y]!"]\n'
    with pytest.raises(InputError, match=r"r\.held_out\[0\]: same wording as .*r\.train\[0\]"):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("[X] टोगो [Y]", "[X] टोंगा [Y]"),
        ("[X]はパリで[Y]", "[X]はバリで[Y]"),
        ("[X] กา [Y]", "[X] กี [Y]"),
        ("[X] uses C: [Y].", "[X] uses C++: [Y]."),
        ("[X] uses C: [Y].", "[X] uses C#: [Y]."),
        ("[X] costs $[Y].", "[X] costs €[Y]."),
        ("[X] is below -5: [Y].", "[X] is below 5: [Y]."),
        ("[X] has [Y].", "[X] has [Y]%."),
    ],
)
def test_templates_that_differ_by_a_vowel_sign_or_a_symbol_are_two(tmp_path, one, other):
    assert wording(one) != wording(other)
    entry = load(tmp_path, f"r:\n  train: ['{one}', '{other}']\n")["r"]
    assert entry.train == (one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("[X] is in [Y].", "[X]  is in «[Y]»!"),
        ("[X], a(n) [Y].", "[X] - A [Y]"),
        ("[X]の首都は[Y]。", "[X]の首都は[Y]"),
        ("[X] e\u0301tait [Y]", "[X] ÉTAIT [Y]"),
    ],
)
def test_punctuation_spaces_and_case_make_no_other_wording(one, other):
    assert wording(one) == wording(other)


def test_relations_may_be_named_in_any_script(tmp_path):
    assert list(load(tmp_path, GOOD.replace("r:", "ਰਾਜਧਾਨੀ:", 1))) == ["ਰਾਜਧਾਨੀ"]


@pytest.mark.parametrize("relation", ["no", "on", "yes", "1", "1.50", "null", "2020-01-01", "true", "0x10"])
def test_relations_are_read_as_they_are_written(tmp_path, relation):
    path = tmp_path / "t.yaml"
    path.write_text(f'{relation}:\n  train: ["[X] is in [Y]."]\n')
    assert list(load_templates(path, relations=[relation])) == [relation]
