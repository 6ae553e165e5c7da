"""Tokenizes statements and finds the token range of the object in each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.rendering.templates import Rendered, fill
from megatron_kis.data_tools.tokenizers.base import Tokenizer

_Key = TypeVar("_Key")

_BATCH = 4096  # statements tokenized in one call: one call per question takes four times as long


def tokenize_in_batches(
    groups: Iterable[tuple[_Key, list[Rendered]]], tokenizer: Tokenizer
) -> Iterator[tuple[_Key, list[list[int]], NDArray[np.int64]]]:
    """Applies :func:`tokenize_statements` to groups of statements, many groups in one call.

    Args:
        groups: a key for each group, and its statements.
        tokenizer: the tokenizer.

    Yields:
        The key, the token ids of the group's statements, and [statements, 2] the token ranges of their answers.
    """
    waiting: list[tuple[_Key, int]] = []
    statements: list[Rendered] = []

    def finished() -> Iterator[tuple[_Key, list[list[int]], NDArray[np.int64]]]:
        tokens, spans = tokenize_statements(statements, tokenizer)
        start = 0
        for key, count in waiting:
            yield key, tokens[start : start + count], spans[start : start + count]
            start += count
        waiting.clear()
        statements.clear()

    for key, group in groups:
        waiting.append((key, len(group)))
        statements += group
        if len(statements) >= _BATCH:
            yield from finished()
    if waiting:
        yield from finished()


def tokenize_option(template: str, subject: str, option: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns text, token ids and answer span of a template with an option filled in."""
    tokens, spans = tokenize_statements([fill(template, subject, option)], tokenizer)
    return {"text": option, "tokens": tokens[0], "span": spans[0].tolist()}


def tokenize_statements(
    statements: Sequence[Rendered], tokenizer: Tokenizer
) -> tuple[list[list[int]], NDArray[np.int64]]:
    """Returns the token ids of statements, each tokenized as a whole, and [statements, 2] the ranges of their answers.

    A token belongs to the answer if it covers one of its characters; the piece of its first word covers the space
    before it as well. A space that has a token of its own belongs to the answer too, also the one that the tokenizer
    puts before a statement, whose range is empty.

    Raises:
        InputError: the tokenizer loses an answer.
    """
    tokens, spans = tokenizer.encode_batch_with_spans([statement.text for statement in statements])
    counts = np.array([len(own) for own in tokens], dtype=np.int64)
    begins = np.cumsum(counts) - counts
    answers = np.array([statement.answer for statement in statements], dtype=np.int64).reshape(-1, 2)
    first, last = spans.T
    of_token = np.repeat(np.arange(len(statements)), counts)
    inside = np.flatnonzero((first < answers[of_token, 1]) & (last > answers[of_token, 0]))
    bounds = np.searchsorted(of_token[inside], np.arange(len(statements) + 1))
    for number in np.flatnonzero(np.diff(bounds) == 0).tolist():
        lost = statements[number].text[slice(*statements[number].answer)]
        problem = f"has no token for {lost!r} in {statements[number].text!r}"
        raise InputError(problem, where="tokenizer", remedy="use one that keeps all characters, as byte-level BPE")
    starts, stops = inside[bounds[:-1]], inside[bounds[1:] - 1] + 1
    space = np.array([s.answer[0] == 0 or s.text[s.answer[0] - 1] == " " for s in statements], dtype=bool)
    own = space & (starts > begins) & (first[starts] == answers[:, 0]) & (last[starts - 1] == answers[:, 0])
    own &= first[starts - 1] == np.maximum(answers[:, 0] - 1, 0)
    return tokens, np.stack([starts - own - begins, stops - begins], axis=1)
