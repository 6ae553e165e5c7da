"""What a name is: which spellings are one name, and which names are two."""

import time
import unicodedata
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_kis.data_tools.facts.fields import has_content
from megatron_kis.data_tools.facts.importers import Candidate
from megatron_kis.data_tools.facts.names import Entities, entity_key, name_key, named_entities, representative_names


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("New  York", "new york"),
        ("STRASSE", "straße"),
        ("Sa\u0303o Tome\u0301", "São Tomé"),
        ("ﬁsh", "FISH"),
        ("ＮＥＣ", "nec"),
        ("ﾊﾟﾘ", "パリ"),
        ("한국", unicodedata.normalize("NFD", "한국")),
        ("e\u00adlec\u200btro\u200e", "electro"),
        ("H₂O", "h2o"),
        ("10⁶", "10^6"),
        ("Σίσυφος", "ΣΊΣΥΦΟΣ"),
        (" a\u00a0b\t", "A B"),
    ],
)
def test_space_case_and_compatibility_forms_make_no_other_name(one, other):
    assert name_key(one) == name_key(other)
    assert entity_key(one, "") == entity_key(other, "")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("टोगो", "टोंगा"),
        ("लोमे", "लीमा"),
        ("パリ", "バリ"),
        ("ハリ", "パリ"),
        ("กา", "กี"),
        ("A+", "A-"),
        ("-5", "5"),
        ("C", "C++"),
        ("C", "C#"),
        ("Łódź", "Lodz"),
        ("Peru", "Perú"),
        ("The Who", "Who"),
        ("ਰਾਜਧਾਨੀ", "ਰਜਧਨ"),
        ("כֹּהֵן", "כהן"),
        ("€", "$"),
        ("a b", "ab"),
        ("10⁶", "106"),
        ("x²", "x2"),
        ("N'Djamena", "N’Djamena"),
    ],
)
def test_everything_else_does(one, other):
    assert name_key(one) != name_key(other)


@given(st.text(max_size=12))
def test_a_key_is_its_own_key(name):
    assert name_key(name_key(name)) == name_key(name)


def test_an_id_decides_where_there_is_one():
    assert entity_key("Paris", "Q90") == entity_key("Paname", "Q90") != entity_key("Paris", "Q830149")
    assert entity_key("#Q90", "") != entity_key("", "Q90")


@pytest.mark.parametrize(("name", "found"), [("", False), (" ?! ", False), ("+", True), ("€", True), ("ก", True)])
def test_punctuation_alone_says_nothing(name, found):
    assert has_content(name) is found


def fact(subject, answer, **more):
    return Candidate(subject, "r", answer, "t", **more)


def meet(entities, one, other):
    return not entities.meanings(one).isdisjoint(entities.meanings(other))


def test_names_that_a_source_gives_to_one_entity_may_mean_the_same():
    entities = Entities(
        [
            fact("Hague House", "Holland"),
            fact("Delft Tower", "Netherlands", object_aliases=("Nederland",)),
            fact("the Netherlands", "Europe", subject_aliases=("Holland", "Nederland", "Netherlands")),
            fact("A", "U.S.", object_id="Q30"),
            fact("B", "America", object_id="Q30", object_aliases=("USA",)),
            fact("C", "usa"),
            fact("D", "Georgia (state)", object_id="Q1428", object_aliases=("Georgia", "GA")),
            fact("E", "Sakartvelo", object_id="Q230", object_aliases=("Georgia",)),
            fact("F", "Gabon", object_id="Q1000", object_aliases=("GA",)),
        ]
    )
    for one, other in combinations(("Holland", "Netherlands", "Nederland"), 2):
        assert meet(entities, one, other)  # by an alias, or as names of a third entity
    assert meet(entities, "U.S.", "America")
    assert meet(entities, "U.S.", "USA")  # the other name of an entity that is called so by another fact
    assert not meet(entities, "Georgia (state)", "Sakartvelo")  # two ids share an alias
    assert not meet(entities, "Georgia (state)", "Gabon")
    assert not meet(entities, "Holland", "U.S.")


def test_a_name_shown_may_mean_all_that_bear_it_and_nothing_joins_these():
    state = fact("A", "Georgia (state)", object_id="Q1428", object_aliases=("Georgia",))
    country = fact("B", "Sakartvelo", object_id="Q230", object_aliases=("Georgia",))
    entities = Entities([state, country, fact("C", "Georgia")])
    assert meet(entities, "Georgia", "Georgia (state)")
    assert meet(entities, "Georgia", "Sakartvelo")
    assert not meet(entities, "Georgia (state)", "Sakartvelo")
    names = {name: entities.meanings(name) for name in ("Georgia", "Georgia (state)", "Sakartvelo")}
    stands = representative_names(names)
    assert {stands["Georgia (state)"], stands["Sakartvelo"]} == {"Georgia (state)", "Sakartvelo"}
    assert stands["Georgia"] in ("Georgia (state)", "Sakartvelo")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("N'Djamena", "N’Djamena"),
        ("Hawaiʻi", "Hawai'i"),
        ("-5", "\u22125"),
        ("Guinea-Bissau", "Guinea\u2010Bissau"),
        ("❤", "❤\ufe0f"),
        ("A-", "A\u2013"),
    ],
)
def test_names_that_differ_in_the_form_of_a_sign_may_mean_the_same(one, other):
    entities = Entities([Candidate("S", "r", one, "f:1"), Candidate("T", "r", other, "f:2")])
    assert not entities.meanings(one).isdisjoint(entities.meanings(other))
    alias = Entities([Candidate("S", "r", "X", "f:1", object_aliases=(other,)), Candidate("T", "r", one, "f:2")])
    assert not alias.meanings("X").isdisjoint(alias.meanings(one))
    assert Entities([]).meanings(one).isdisjoint(Entities([]).meanings(f"{one}+"))


def test_entities_without_ids_that_share_an_alias_may_be_one_but_are_not_surely():
    one, other = fact("A", "Britain", object_aliases=("UK",)), fact("B", "Great Britain", object_aliases=("UK",))
    entities = Entities([one, other])
    assert meet(entities, "Britain", "Great Britain")
    assert not entities.same(named_entities(one)[1], named_entities(other)[1])


def test_many_entities_that_share_a_name_take_linear_time():
    count = 50_000
    rows = [fact(f"S{n}", "John Smith", object_id=f"Q{n}", object_aliases=("JS",)) for n in range(count)]
    rows += [fact(f"T{n}", f"Place {n}", object_aliases=("the place",)) for n in range(count)]
    begin = time.process_time()
    entities = Entities(rows)
    assert all(meet(entities, row.object, "John Smith") for row in rows[:count])
    assert sum(len(entities.meanings(row.object)) for row in rows[count:]) == 2 * count
    assert time.process_time() - begin < 10
