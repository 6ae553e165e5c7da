"""Sentence ends in every script: cutting too rarely costs some text, cutting too often hides a stated fact."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path

import regex

# What ends a sentence: its mark, closing quotes or brackets, and what follows. In scripts with capitals that is space
# and something that can begin another; the marks of others need no space, for they end nothing else.
_CLOSING = r"[\p{Pe}\p{Pf}\"']*"
_END = regex.compile(
    rf"(?<mark>[.!?…‼⁇⁈⁉]){_CLOSING}\s+(?=[\p{{Ps}}\p{{Pi}}\"'¿¡]*[^\W_\p{{Ll}}])"
    rf"|[[\p{{STerm}}｡﹒︒]--[.!?‼⁇⁈⁉]]+[\p{{STerm}}]*{_CLOSING}\s*"
    r"|[\u0F0D-\u0F11](?:\s*[\u0F0D-\u0F11])*\s*"  # the shads of Tibetan, of which two may be separated by space
    r"|(?<=[\p{Thai}\p{Laoo}][^\n]{0,9})\n\s*"
    r"|\n\s*\n",
    regex.V1,
)
_RESOURCE = Path(__file__).parents[1] / "resources" / "abbreviations.txt"
_WORD = regex.compile(r"(?<![\w\p{M}])\p{L}[\p{L}\p{M}]*$")
_ORDINAL = regex.compile(r"(?<![\w.,])\d{1,2}$|(?<!\w)[IVXLC]+$")  # "14. März", "Ludwig XIV. starb"; no year, not 3.5
_SHORT = 6  # letters of a word whose full stop ends nothing before a digit: "Aug. 4", "approx. 50%"
_INSPECTED = 16  # characters inspected before a full stop


@cache
def _abbreviations() -> frozenset[str]:
    lines = _RESOURCE.read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Returns half-open ranges of a text's sentences with the space after each; together they are the text."""
    ends = (match.end() for match in _END.finditer(text) if not _abbreviates(text, match))
    return [(start, end) for start, end in pairwise([0, *ends, len(text)]) if start < end]


def _abbreviates(text: str, mark: regex.Match[str]) -> bool:
    """Returns whether a full stop belongs to the word or number before it, whatever follows."""
    if mark["mark"] != ".":
        return False
    before = text[max(0, mark.start() - _INSPECTED) : mark.start()]
    if _ORDINAL.search(before):
        return True
    match = _WORD.search(before)
    if match is None:
        return False
    word = match[0]
    if (word.isalpha() and len(word) <= 2) or not _abbreviations().isdisjoint([word, word.lower()]):
        return True
    return len(word) <= _SHORT and text[mark.end() : mark.end() + 1].isdecimal()
