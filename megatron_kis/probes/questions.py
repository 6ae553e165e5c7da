"""Questions: reading the file that ``kis data render`` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from pathlib import Path
from typing import Any

import numpy as np

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_json_lines
from megatron_kis.common.parsing import damage
from megatron_kis.common.schemas import mismatch
from megatron_kis.common.terms import SPLITS
from megatron_kis.probes.table import Option, Question, QuestionColumns, QuestionTable

__all__ = ["Option", "Question", "QuestionSet", "check_lengths", "read_questions"]

QUESTIONS_SCHEMA = "kis.questions/1"


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a probe, and how they were made."""

    header: dict[str, Any]
    """Resolved choices: distractors, seed, first tokens, tokenizer fingerprint."""

    questions: Sequence[Question]
    """The questions, always kept in columns."""

    strengths: Mapping[str, int] = field(default_factory=dict)
    """Exposures of each background fact, where a run shows some more often than others; else empty."""

    orders: dict[str, list[str]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Facts of each group in the order in which they are taken, once it was asked for (``infusion_order``)."""

    def __post_init__(self) -> None:
        """Converts the questions to columns."""
        object.__setattr__(self, "questions", QuestionTable.of(self.questions))

    @property
    def table(self) -> QuestionTable:
        """The questions in columns."""
        assert isinstance(self.questions, QuestionTable)
        return self.questions

    @property
    def tokenizer_fingerprint(self) -> str:
        """Fingerprint of the tokenizer whose ids these are."""
        return str(self.header["tokenizer_fingerprint"])

    @property
    def first_tokens(self) -> tuple[int, ...]:
        """Tokens before each statement, which are not scored.

        They are what the tokenizer puts before a document, or the end-of-document token in older files.

        Raises:
            InputError: the header names none.
        """
        return _first_tokens(self.header, "the questions' header")


def _first_tokens(header: Mapping[str, Any], where: str) -> tuple[int, ...]:
    first = header.get("first_tokens", [header.get("eod_id")])
    if not isinstance(first, list) or not first or not all(type(token) is int and token >= 0 for token in first):
        raise InputError(f"first_tokens is {first!r}", where=where, remedy="render the facts again")
    return tuple(first)


_OF_A_RUN = (
    "use longer sequences (training.sequence_length), shorten the templates, ask with fewer of them"
    " (probes.templates), or choose facts with shorter names"
)


def check_lengths(questions: QuestionSet, longest: int, *, where: str, remedy: str = _OF_A_RUN) -> None:
    """Refuses questions that are longer than what the model takes.

    Args:
        questions: the questions.
        longest: number of tokens of a training sequence, or positions of the model.
        where: their file, for the message.
        remedy: what to do, for the message.

    Raises:
        InputError: a statement takes more tokens than that, the first ones included.
    """
    table, before = questions.table, len(questions.first_tokens)
    lengths = table.tokens.lengths + before
    if lengths.max(initial=0) <= longest:
        return
    owner = np.repeat(np.arange(len(table)), np.diff(table.starts))
    too_long = np.unique(owner[lengths > longest])
    number = int(owner[lengths.argmax()])
    raise InputError(
        f"{len(too_long)} of {len(table)} questions are longer than {longest} tokens, the longest with"
        f" {int(lengths.max())} (fact {table.fact[number]!r},"
        f" {table.relation[number]}.{table.split[number]}[{int(table.template[number])}])",
        where=where,
        remedy=remedy,
    )


def read_questions(path: Path, templates: Mapping[Any, int | None]) -> QuestionSet:
    """Reads a questions file.

    Args:
        path: the file.
        templates: number of a relation's templates to use, by split (None: all); other splits are left out.

    Raises:
        InputError: missing, of another schema, or a malformed line (with its number).
    """
    rows = read_json_lines(path)
    _, header = next(rows, (0, {}))
    if header.get("schema") != QUESTIONS_SCHEMA:
        found = header.get("schema")
        problem = "not a file of questions" if found is None else mismatch(found, QUESTIONS_SCHEMA)
        raise InputError(problem, where=f"{path}:1", remedy="make it with kis data render or kis data questions")
    if "first_tokens" in header:
        _first_tokens(header, f"{path}:1")
    if "tokenizer_fingerprint" not in header:
        raise InputError("has no 'tokenizer_fingerprint'", where=f"{path}:1", remedy="render the facts again")
    columns = QuestionColumns()
    for number, row in rows:
        try:
            if row["split"] not in SPLITS:
                raise ValueError(f"split is {row['split']!r}, none of {', '.join(SPLITS)}")
            limit = templates.get(row["split"], 0)
            if limit is None or row["template"] < limit:
                _add(columns, row)
        except (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError) as error:
            raise InputError(f"not a question ({damage(error)})", where=f"{path}:{number}") from None
    return QuestionSet(header=header, questions=columns.table())


def _add(columns: QuestionColumns, row: dict[str, Any]) -> None:
    options, aliases = row["options"], row.get("aliases", ())
    answer = index(row["answer"])
    if not 0 <= answer < len(options) or len(options) < 2:
        raise ValueError("the answer is not among at least two options")
    if len({option["text"] for option in options}) < len(options):
        raise ValueError("an option is given twice")
    columns.add(row["fact"], row["group"], row["relation"], row["split"], row["template"], answer, len(options))
    for at, option in enumerate((*options, *aliases)):
        text, tokens = option["text"], option["tokens"]
        start, stop = option["span"]
        if not 0 <= index(start) < index(stop) <= len(tokens):
            raise ValueError("a span lies outside its statement")
        if not text and at < len(options):
            raise ValueError("an option has no text")
        columns.add_option(text, tokens, (start, stop))
