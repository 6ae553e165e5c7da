"""Questions for a tokenizer: the ids that a file has, or its statements cut again.

``kis data questions`` writes the ids of one tokenizer and, next to them, the subject and the sentence of each question.
From these the statements are made again for any other tokenizer; the options stay the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_json_lines
from megatron_kis.common.terms import SPLITS
from megatron_kis.data_tools.rendering.statements import tokenize_in_batches
from megatron_kis.data_tools.rendering.templates import Rendered, fill
from megatron_kis.data_tools.tokenizers.base import Tokenizer, made_with
from megatron_kis.data_tools.tokenizers.first_tokens import FirstTokens
from megatron_kis.probes.questions import QuestionSet, read_questions
from megatron_kis.probes.table import QuestionColumns

CUT_AGAIN = "tokenized again"
"""Key of the header of questions whose statements were cut again: the fingerprint of the file's own tokenizer."""


def questions_for(
    path: Path, tokenizer: Tokenizer, first: FirstTokens, *, templates: Mapping[Any, int | None] | None = None
) -> QuestionSet:
    """Reads a questions file for a tokenizer.

    Args:
        path: the file.
        tokenizer: the tokenizer of the model that is asked.
        first: what precedes each statement, if the file was made with another tokenizer; else the file says it.
        templates: see ``read_questions``; None for all.

    Raises:
        InputError: no such file, no questions, or questions of another tokenizer without their texts.
    """
    chosen = dict.fromkeys(SPLITS) if templates is None else templates
    found = read_questions(path, chosen)
    if not len(found.table):
        remedy = "make them with kis data questions" if templates is None else "choose other templates"
        raise InputError("has no questions", where=str(path), remedy=remedy)
    _refuse_repeated(found, path)
    if made_with(tokenizer, found.tokenizer_fingerprint, found.header.get("eod_id")):
        return found
    header = {
        **found.header,
        CUT_AGAIN: found.tokenizer_fingerprint,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "eod_id": tokenizer.eod_id,
        "first_tokens": first.tokens,
        "bos": first.rule,
    }
    columns = QuestionColumns()
    for row, tokens, spans in tokenize_in_batches(_drafts(path, chosen), tokenizer):
        place = (row["fact"], row["group"], row["relation"], row["split"], row["template"])
        columns.add(*place, row["answer"], len(row["options"]))
        for name, own, span in zip(_names(row), tokens, spans.tolist(), strict=True):
            columns.add_option(name, own, span)
    return QuestionSet(header, columns.table(), strengths=found.strengths)


def _refuse_repeated(questions: QuestionSet, path: Path) -> None:
    """Refuses a fact that is asked twice with one template, as in files that were joined: it would weigh twice.

    Raises:
        InputError: names the fact.
    """
    table = questions.table
    keys = np.stack([table.fact.codes, table.split.codes, table.template], axis=1)
    _, first, counts = np.unique(keys, axis=0, return_index=True, return_counts=True)
    if (counts > 1).any():
        at = int(first[counts > 1].min())
        problem = f"asks twice about fact {table.fact[at]!r} with template {table.template[at]} of {table.split[at]}"
        raise InputError(problem, where=str(path), remedy="keep one of the questions")


def _drafts(path: Path, templates: Mapping[Any, int | None]) -> Iterator[tuple[dict[str, Any], list[Rendered]]]:
    """Yields the rows of a file, which was read before, with the statements of their options and aliases."""
    rows = read_json_lines(path)
    next(rows)
    for number, row in rows:
        limit = templates.get(row["split"], 0)
        if limit is not None and row["template"] >= limit:
            continue
        subject, sentence = row.get("subject"), row.get("sentence")
        if not isinstance(subject, str) or not isinstance(sentence, str) or "[Y]" not in sentence:
            remedy = "make them with kis data questions, and the tokenizer of the model"
            problem = "a question for another tokenizer, without subject and sentence"
            raise InputError(problem, where=f"{path}:{number}", remedy=remedy)
        yield row, [fill(sentence, subject, name) for name in _names(row)]


def _names(row: dict[str, Any]) -> list[str]:
    """Returns the options of a question, and its aliases."""
    return [option["text"] for option in (*row["options"], *row.get("aliases", ()))]
