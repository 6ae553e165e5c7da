"""Encodes texts word by word where a ``tokenizer.json`` allows it: each word once, in place of each text as a whole.

Files that were made from SentencePiece models cut no words before their model runs, and the library then searches each
text as a whole. If no piece continues after a word's end, the pieces of a text are the pieces of its words.
Statements that fill the same templates have few words: they are encoded in a third of the time. A text that is not made
of words with single spaces between them, or has an added token in it, is encoded as a whole.

A word of a unigram model can have two equally likely splits (``00 0`` and ``0 00``). Rounding then decides, and it
depends on what comes before the word. Texts with such a word are encoded as a whole, too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_kis.data_tools.storage.ranges import ranges, starts_of

_MARK = "▁"
_NORMALISER = (
    {"type": "Prepend", "prepend": _MARK},
    {"type": "Replace", "pattern": {"String": " "}, "content": _MARK},
)
_ACROSS = re.compile(f"[^{_MARK}]{_MARK}")
_MOST_WORDS = 1_000_000  # words to remember, of some 500 bytes each
_BEFORE = "a"  # a word that is put before each word when it is encoded
_TIE = 1e-6
"""Difference of two splits' log-likelihoods that rounding could change; the sums of long texts round to 1e-10."""

Row = tuple[list[int], list[tuple[int, int]]]
"""Token ids, and the characters that each covers."""


class Words:
    """The words that were encoded so far."""

    def __init__(self, tokenizer: Any, scores: dict[str, float] | None = None) -> None:
        """Begins without words; see ``words_of``.

        Args:
            tokenizer: the library's object.
            scores: log-likelihood of each piece of a unigram model; None for byte-pair encoding, which has no ties.
        """
        self._tokenizer = tokenizer
        self._scores = scores
        self._longest = max(map(len, scores)) if scores else 0
        self._unknown = min(scores.values()) - 10.0 if scores else 0.0  # as in the library
        self._tied: dict[str, bool] = {}
        added = [re.escape(token.content) for token in tokenizer.get_added_tokens_decoder().values()]
        self._others = re.compile("|".join([_MARK, "  ", "^ ", " $", "^$", *added]))
        self._numbers: dict[tuple[bool, str], int] = {}
        self._tokens: list[NDArray[np.int64]] = []
        self._spans: list[NDArray[np.int64]] = []

    def encode(self, texts: Sequence[str]) -> tuple[list[list[int]], NDArray[np.int64]]:
        """Returns the token ids of texts, and [tokens of all, 2] the characters that each covers."""
        if len(self._numbers) > _MOST_WORDS:
            self._numbers, self._tokens, self._spans, self._tied = {}, [], [], {}
        # The first word of a text is encoded by itself: so is a text that cannot be cut.
        rows = [self._cut(text) for text in texts]
        self._add({(at == 0, word) for row in rows for at, word in enumerate(row)} - self._numbers.keys())
        numbers, sizes = self._numbers, [len(row) for row in rows]
        named = np.array([numbers[at == 0, name] for row in rows for at, name in enumerate(row)], dtype=np.int64)
        there, word = np.unique(named, return_inverse=True)
        # A word after the first one has its space, one character before it.
        letters = np.array([len(name) + 1 for row in rows for name in row])
        first = starts_of(sizes)[:-1]
        before = np.cumsum(letters) - letters
        begins = before - np.repeat(before[first], sizes) - 1
        begins[first] = 0
        counts = np.array([len(self._tokens[number]) for number in there])
        places = ranges(starts_of(counts)[word], starts_of(counts[word]))
        tokens = np.concatenate([self._tokens[number] for number in there])[places].tolist()
        spans = (
            np.concatenate([self._spans[number] for number in there])[places] + np.repeat(begins, counts[word])[:, None]
        )
        bounds = starts_of(counts[word])[starts_of(sizes)].tolist()
        return [tokens[start:stop] for start, stop in pairwise(bounds)], spans

    def _cut(self, text: str) -> list[str]:
        """Returns the words of a text, or the text itself where its words may be encoded otherwise within it."""
        if self._others.search(text):
            return [text]
        words = text.split(" ")
        if self._scores is not None:
            for word in words:
                if word not in self._tied:
                    self._tied[word] = _is_tied(_MARK + word, self._scores, self._longest, self._unknown)
                if self._tied[word]:
                    return [text]
        return words

    def _add(self, new: set[tuple[bool, str]]) -> None:
        """Encodes words: the first of a text by itself, others after another word."""
        words = sorted(new)
        texts = [name if first else f"{_BEFORE} {name}" for first, name in words]
        ahead = len(self._tokenizer.encode(_BEFORE, add_special_tokens=False).ids)
        for key, encoding in zip(words, self._tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
            skipped, shift = (0, 0) if key[0] else (ahead, len(_BEFORE))
            self._numbers[key] = len(self._tokens)
            self._tokens.append(np.array(encoding.ids[skipped:], dtype=np.int64))
            self._spans.append(np.array(encoding.offsets[skipped:], dtype=np.int64).reshape(-1, 2) - shift)


def words_of(content: dict[str, Any], tokenizer: Any) -> Words | None:
    """Returns a store of words for a tokenizer; None where its texts may be cut otherwise than their words.

    Args:
        content: content of the ``tokenizer.json``.
        tokenizer: the library's object.
    """
    model = content.get("model") or {}
    steps = (content.get("normalizer") or {}).get("normalizers", [])
    plain = content.get("pre_tokenizer") is None and tuple(steps) == _NORMALISER
    if not plain or model.get("type") not in ("Unigram", "BPE") or not model.get("byte_fallback"):
        return None
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    if any(f"<0x{value:02X}>" not in vocabulary for value in range(256)) or any(map(_ACROSS.search, vocabulary)):
        return None
    return Words(tokenizer, dict(model["vocab"]) if model["type"] == "Unigram" else None)


def _is_tied(text: str, scores: dict[str, float], longest: int, unknown: float) -> bool:
    """Returns whether the two best splits of a text into pieces are equally likely, but for rounding.

    Args:
        text: the text.
        scores: log-likelihood of each piece.
        longest: letters of the longest piece.
        unknown: log-likelihood of a letter that is not a piece.
    """
    best, second = [0.0], [-np.inf]
    for end in range(1, len(text) + 1):
        top = (-np.inf, -np.inf)
        for start in range(max(0, end - longest), end):
            score = scores.get(text[start:end], unknown if end - start == 1 else -np.inf)
            first, other = best[start] + score, second[start] + score
            top = (first, max(top[0], other)) if first > top[0] else (top[0], max(top[1], first))
        best.append(top[0])
        second.append(top[1])
    return best[-1] - second[-1] < _TIE
