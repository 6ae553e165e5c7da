from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.probes.questions import check_lengths, read_questions

ALL = {"train": None, "held_out": None, "question": None}
HEADER = {"schema": "kis.questions/1", "tokenizer_fingerprint": "abc"}
ROW: dict[str, Any] = {
    "fact": "f",
    "group": "infused",
    "relation": "r",
    "split": "train",
    "template": 0,
    "answer": 1,
    "options": [
        {"text": "a", "tokens": [3, 4], "span": [1, 2]},
        {"text": "b", "tokens": [3, 5, 6], "span": [1, 3]},
    ],
}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_the_file_of_a_study_is_read_whole(tiny_data: Path) -> None:
    questions = read_questions(tiny_data / "exposures.questions.jsonl", ALL)
    counted = Counter((question.group, question.split) for question in questions.questions)
    # 8 facts of a relation with 4 + 2 + 1 templates and 8 of one with 3 + 1 + 1, in each group
    for group in ("infused", "background", "control"):
        assert counted[group, "train"] == 8 * 4 + 8 * 3
        assert counted[group, "held_out"] == 8 * 2 + 8 * 1
        assert counted[group, "question"] == 8 + 8
    for question in questions.questions:
        assert len({option.text for option in question.options}) == 4


def test_the_first_templates_of_each_split_are_taken(tiny_data: Path) -> None:
    questions = read_questions(tiny_data / "exposures.questions.jsonl", {"train": 2, "held_out": 1, "question": 0})
    counted = Counter((question.split, question.template) for question in questions.questions)
    assert counted == {("train", 0): 48, ("train", 1): 48, ("held_out", 0): 48}


def test_a_split_that_is_not_named_is_not_asked(tiny_data: Path) -> None:
    questions = read_questions(tiny_data / "exposures.questions.jsonl", {"held_out": None})
    assert {question.split for question in questions.questions} == {"held_out"}


def test_a_question_is_read_as_it_stands(tmp_path: Path) -> None:
    questions = read_questions(write(tmp_path / "q.jsonl", HEADER, ROW), ALL)
    assert questions.tokenizer_fingerprint == "abc"
    (question,) = questions.questions
    assert (question.fact, question.group, question.relation, question.split) == ("f", "infused", "r", "train")
    assert [option.tokens for option in question.options] == [(3, 4), (3, 5, 6)]
    assert question.options[question.answer].text == "b"
    assert question.options[1].span == (1, 3)


@pytest.mark.parametrize(
    "row",
    [
        "{",
        "[]",
        {key: value for key, value in ROW.items() if key != "options"},
        {key: value for key, value in ROW.items() if key != "split"},
        {**ROW, "answer": 2},
        {**ROW, "answer": -1},
        {**ROW, "answer": None},
        {**ROW, "answer": 0.5},
        {**ROW, "options": ROW["options"][:1], "answer": 0},
        {**ROW, "options": [ROW["options"][0], {"text": "b", "tokens": [3, 5], "span": [1, 3]}]},
        {**ROW, "options": [ROW["options"][0], {"text": "b", "tokens": [3, 5], "span": [1, 1]}]},
        {**ROW, "options": [ROW["options"][0], {"text": "b", "tokens": [3, 5], "span": [1]}]},
        {**ROW, "options": [ROW["options"][0], {"text": "b", "tokens": [], "span": [0, 0]}]},
        {**ROW, "options": [ROW["options"][0], {"text": "b", "tokens": [3, "x"], "span": [0, 1]}]},
        {**ROW, "options": [ROW["options"][0], {"text": "", "tokens": [3, 4], "span": [0, 1]}]},
        {**ROW, "options": "ab"},
        {**ROW, "options": [ROW["options"][0], ROW["options"][0]]},
        {**ROW, "split": "test"},
    ],
    ids=str,
)
def test_a_malformed_question_is_refused_with_its_line(tmp_path: Path, row: Any) -> None:
    path = write(tmp_path / "q.jsonl", HEADER, ROW, row)
    with pytest.raises(InputError) as caught:
        read_questions(path, ALL)
    assert f"{path}:3: " in str(caught.value)


@pytest.mark.parametrize("header", [{}, {"schema": "kis.facts/1"}, {"schema": "kis.questions/1"}, ROW])
def test_a_file_without_the_right_header_is_refused(tmp_path: Path, header: dict[str, Any]) -> None:
    path = write(tmp_path / "q.jsonl", header, ROW)
    with pytest.raises(InputError, match=r"q\.jsonl:1: "):
        read_questions(path, ALL)


def test_an_empty_or_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"q\.jsonl"):
        read_questions(write(tmp_path / "q.jsonl"), ALL)
    with pytest.raises(InputError, match=r"absent\.jsonl: no such file"):
        read_questions(tmp_path / "absent.jsonl", ALL)


def test_first_tokens_are_those_of_the_header_or_of_older_files_the_end_of_document(tmp_path: Path) -> None:
    for more, expected in (({"first_tokens": [7, 2], "eod_id": 7}, (7, 2)), ({"eod_id": 0}, (0,))):
        assert read_questions(write(tmp_path / "q.jsonl", {**HEADER, **more}, ROW), ALL).first_tokens == expected
    with pytest.raises(InputError, match="first_tokens is"):
        _ = read_questions(write(tmp_path / "q.jsonl", HEADER, ROW), ALL).first_tokens


@pytest.mark.parametrize("first", [[], 3, [-1], ["x"], [True], None, [1.5]], ids=str)
def test_wrong_first_tokens_are_refused_when_they_are_read(tmp_path: Path, first: Any) -> None:
    with pytest.raises(InputError, match=r"q\.jsonl:1: first_tokens is .*render the facts again"):
        read_questions(write(tmp_path / "q.jsonl", {**HEADER, "first_tokens": first}, ROW), ALL)


def test_questions_that_no_sequence_holds_are_refused_by_name(tmp_path: Path) -> None:
    long = {
        **ROW,
        "fact": "g",
        "split": "held_out",
        "template": 4,
        "options": [ROW["options"][0], {"text": "c", "tokens": list(range(3, 15)), "span": [1, 3]}],
    }
    aliases = {**ROW, "aliases": [{"text": "d", "tokens": list(range(3, 14)), "span": [1, 3]}]}
    header = {**HEADER, "eod_id": 1, "first_tokens": [1, 2]}
    questions = read_questions(write(tmp_path / "q.jsonl", header, ROW, long, aliases), ALL)
    check_lengths(questions, 14, where="q.jsonl")
    with pytest.raises(InputError) as caught:
        check_lengths(questions, 13, where="q.jsonl")
    for words in (
        "q.jsonl: 1 of 3 questions are longer than 13 tokens",
        "with 14",
        "fact 'g'",
        "r.held_out[4]",
        "training.sequence_length",
    ):
        assert words in str(caught.value)
    with pytest.raises(InputError, match="2 of 3 questions"):
        check_lengths(questions, 12, where="q.jsonl")
    check_lengths(read_questions(write(tmp_path / "none.jsonl", header), ALL), 1, where="none.jsonl")
