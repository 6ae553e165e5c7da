"""What a name is: which spellings are one name, and which names are two."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.names import entity_key, name_key, says_something


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
    assert says_something(name) is found
