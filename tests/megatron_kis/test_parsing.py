from __future__ import annotations

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.common.parsing import parse_json, parse_yaml


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        ("a: 1\nb: 2\na: 3\n", 1, 3),
        ("x:\n  y: {k: 1,\n      k: 2}\n", 2, 3),
        ("- {a: 1}\n- b: 1\n  c: 2\n  'b': 3\n", 2, 4),
        ("base: &b {k: 1}\nother:\n  <<: *b\n  m: 1\n  m: 2\n", 4, 5),
        ("1: a\n1: b\n", 1, 2),
    ],
)
def test_a_key_of_yaml_that_stands_twice_is_refused_with_both_lines(text, first, second):
    with pytest.raises(InputError) as caught:
        parse_yaml(text, where="f.yaml")
    assert str(caught.value).startswith(f"f.yaml:{second}: ")
    assert f"line {first}" in str(caught.value)


def test_merges_anchors_and_equal_keys_of_several_mappings_are_right():
    text = "base: &b {k: 1}\none:\n  <<: *b\n  k: 2\ntwo: *b\nthree: [*b, {k: 3}]\n"
    assert parse_yaml(text, where="f.yaml")["one"] == {"k": 2}


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        ('{"a": 1,\n "b": {"a": 2},\n "a": 3}', 1, 3),
        ('[{"a": "}{"},\n{"c": ["a", {"c": 1}],\n"d": 1,\n"c": 2}]', 2, 4),
        ('{"\\u0061": 1, "a": 2}', 1, 1),
    ],
)
def test_a_key_of_json_that_stands_twice_is_refused_with_both_lines(text, first, second):
    with pytest.raises(InputError) as caught:
        parse_json(text, where="f.json")
    assert str(caught.value).startswith(f"f.json:{second}: ")
    assert f"line {first}" in str(caught.value)


def test_one_line_of_a_file_names_its_line():
    with pytest.raises(InputError, match=r"^f.jsonl:7: the key 'id' is given twice; keep one"):
        parse_json(b'{"id": 1, "id": 2}', where="f.jsonl:7")


@pytest.mark.parametrize("text", ["{", "[1,]", '{"a" 1}', "[" * 100_000])
def test_what_is_no_json_is_refused_with_its_place(text):
    with pytest.raises(InputError, match=r"f.json.*not valid JSON"):
        parse_json(text, where="f.json")


@pytest.mark.parametrize("text", ["a: [", "a: b: c", "\tx: 1", "a: !!python/object:os.system {}"])
def test_what_is_no_yaml_is_refused_with_its_line(text):
    with pytest.raises(InputError, match=r"f.yaml:1: not valid YAML"):
        parse_yaml(text, where="f.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n\tb: 1", r"f.yaml:2: .*; use spaces instead of tabs$"),
        ("a: 1\nb:\t2", r"f.yaml:2: .*; use spaces instead of tabs$"),
        ("a: 1\n---\nb: 2", r"f.yaml:2: not valid YAML \(expected a single document in the stream, but found another"),
    ],
)
def test_common_slips_in_yaml_are_explained(text, message):
    with pytest.raises(InputError, match=message):
        parse_yaml(text, where="f.yaml")


@pytest.mark.parametrize("text", ["a: 2026-02-30", "2026-13-01: a", '!!int "abc"', "[" * 3000])
def test_values_that_yaml_cannot_read_are_wrong_input(text):
    with pytest.raises(InputError, match=r"f.yaml.*not valid YAML"):
        parse_yaml(text, where="f.yaml")


def test_a_number_of_thousands_of_digits_is_wrong_input():
    with pytest.raises(InputError, match=r"f.json: not valid JSON \(a number of more than \d+ digits\)$"):
        parse_json('{"a": ' + "1" * 5000 + "}", where="f.json")


def test_words_that_yaml_1_1_takes_for_true_and_false_are_words():
    assert parse_yaml("relations: [no, on, yes, y, Off]\nflag: [true, False]", where="f") == {
        "relations": ["no", "on", "yes", "y", "Off"],
        "flag": [True, False],
    }


def test_keys_that_are_names_are_read_as_they_are_written():
    text = "no: 1\n1.50: 2\nnull: 3\n2020-01-01: 4\n0x10: {1: 5}\n"
    found = parse_yaml(text, where="f", names=True)
    assert found == {"no": 1, "1.50": 2, "null": 3, "2020-01-01": 4, "0x10": {1: 5}}
    with pytest.raises(InputError, match=r"f:2: the key '1' is given twice \(line 1"):
        parse_yaml("1: a\n'1': b", where="f", names=True)
