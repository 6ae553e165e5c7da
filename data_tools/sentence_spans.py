"""Where sentences end, in every script: to cut too little costs some text, to cut too much hides a leak."""

from __future__ import annotations

from itertools import pairwise

import regex

# What ends a sentence: its mark, closing quotes or brackets, and what follows. In scripts with capitals that is space
# and something that can begin another; the marks of others need no space, for they end nothing else.
_CLOSING = r"[\p{Pe}\p{Pf}\"']*"
_END = regex.compile(
    rf"(?<mark>[.!?…‼⁇⁈⁉]){_CLOSING}\s+(?=[\p{{Ps}}\p{{Pi}}\"'¿¡]*[^\W_\p{{Ll}}])"
    rf"|[[\p{{STerm}}｡﹒︒]--[.!?‼⁇⁈⁉]]+[\p{{STerm}}]*{_CLOSING}\s*"
    r"|(?<=[\p{Thai}\p{Laoo}][^\n]{0,9})\n\s*"
    r"|\n\s*\n",
    regex.V1,
)
# Words whose full stop ends none, beside all of one or two letters ("J. Brahms", "St. Louis").
_TITLES = frozenset(["Mrs", "Gen", "Col", "Rev", "Gov", "Sen", "Rep", "Hon", "Prof", "Capt", "Inc", "Ltd", "Corp"])
_LONGEST_TITLE = max(map(len, _TITLES))


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Half-open character ranges of a text's sentences, space after them included: together they are the text."""
    ends = (match.end() for match in _END.finditer(text) if not _abbreviates(text, match))
    return [(start, end) for start, end in pairwise([0, *ends, len(text)]) if start < end]


def _abbreviates(text: str, mark: regex.Match[str]) -> bool:
    if mark["mark"] != ".":
        return False
    word = regex.split(r"\W", text[max(0, mark.start() - _LONGEST_TITLE - 1) : mark.start()])[-1]
    return word.isalpha() and (len(word) <= 2 or word in _TITLES)
