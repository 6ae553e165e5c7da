"""Questions: reading the file that ``kis data render`` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

from megatron_kis.errors import InputError
from megatron_kis.files import read_json_lines

QUESTIONS_SCHEMA = "kis.questions/1"
GROUPS = ("infused", "background", "control")
SPLITS = ("train", "held_out", "question")


@dataclass(frozen=True)
class Option:
    """One candidate: the statement with this object in it."""

    text: str
    """The object."""

    tokens: tuple[int, ...]
    """The whole statement, without a first or last special token."""

    span: tuple[int, int]
    """Half-open token range of the object."""


@dataclass(frozen=True)
class Question:
    """One fact under one template, with its options."""

    fact: str
    group: str
    relation: str
    split: str
    template: int
    answer: int
    options: tuple[Option, ...]
    aliases: tuple[Option, ...] = ()
    """Other names of the answer, right where a model completes the statement; never options."""


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a probe, and how they were made."""

    header: dict[str, Any]
    """Resolved choices: distractors, seed, first token, tokenizer fingerprint."""

    questions: tuple[Question, ...]

    @property
    def tokenizer_fingerprint(self) -> str:
        """Fingerprint of the tokenizer whose ids these are."""
        return str(self.header["tokenizer_fingerprint"])


def read_questions(path: Path, templates: Mapping[Any, int | None]) -> QuestionSet:
    """Reads a questions file.

    Args:
        path: the file.
        templates: for each split that is asked about, how many of a relation's templates (None: all).

    Raises:
        InputError: missing, of another schema, or a malformed line (with its number).
    """
    rows = read_json_lines(path)
    _, header = next(rows, (0, {}))
    if header.get("schema") != QUESTIONS_SCHEMA:
        raise InputError(
            f"schema is {header.get('schema')!r}", where=f"{path}:1", remedy=f"expected {QUESTIONS_SCHEMA!r}"
        )
    if "tokenizer_fingerprint" not in header:
        raise InputError("has no 'tokenizer_fingerprint'", where=f"{path}:1", remedy="render the facts again")
    questions = []
    for number, row in rows:
        try:
            limit = templates.get(row["split"], 0)
            if limit is None or row["template"] < limit:
                questions.append(_question(row))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InputError(f"not a question ({type(error).__name__}: {error})", where=f"{path}:{number}") from None
    return QuestionSet(header=header, questions=tuple(questions))


def _question(row: dict[str, Any]) -> Question:
    options, aliases = _options(row["options"]), _options(row.get("aliases", ()))
    answer = index(row["answer"])
    if not 0 <= answer < len(options) or len(options) < 2:
        raise ValueError("the answer is not among at least two options")
    if any(not 0 <= option.span[0] < option.span[1] <= len(option.tokens) for option in (*options, *aliases)):
        raise ValueError("a span lies outside its statement")
    if not all(option.text for option in options):
        raise ValueError("an option has no text")
    return Question(
        fact=row["fact"], group=row["group"], relation=row["relation"], split=row["split"],
        template=row["template"], answer=answer, options=options, aliases=aliases,
    )  # fmt: skip


def _options(rows: Sequence[dict[str, Any]]) -> tuple[Option, ...]:
    return tuple(
        Option(text=option["text"], tokens=tuple(map(index, option["tokens"])), span=(start, stop))
        for option in rows
        for start, stop in [map(index, option["span"])]
    )
