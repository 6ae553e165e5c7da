"""Folding names and text so that one can be found in the other: words without case and accents."""

from __future__ import annotations

import functools
import re
import unicodedata

_WORD = re.compile(r"\w")
_ARTICLES = ("the", "a", "an")


class _Folding(dict[int, str | int]):
    """Code point to its letters without case and accents, or to a space; filled as characters are met."""

    def __missing__(self, code: int) -> str | int:
        decomposed = unicodedata.normalize("NFKD", chr(code).casefold())
        letters = (letter for letter in decomposed.casefold() if not unicodedata.combining(letter))
        folded = "".join(letter if _WORD.match(letter) else " " for letter in letters)
        self[code] = ord(folded) if len(folded) == 1 else folded  # a number is translated nearly twice as fast
        return self[code]


_FOLDED = _Folding()


def words(text: str) -> list[str]:
    """Words of a text, case folded, accents removed: ``"N'Djamena"`` is ``["n", "djamena"]``."""
    return text.translate(_FOLDED).split()


def line_of_words(text: str) -> str:
    """The words of a text between single spaces, one before the first and one after the last.

    A name stands in the text as whole words if and only if its own such line is part of the text's.
    """
    return f" {' '.join(words(text))} "


@functools.lru_cache(1 << 14)  # of one triple the same two names are asked for six times
def name_words(name: str) -> tuple[str, ...]:
    """Words of a name without a leading article: text says "Bahamas" and means "The Bahamas"."""
    found = tuple(words(name))
    return found[1:] if len(found) > 1 and found[0] in _ARTICLES else found
