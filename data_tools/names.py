"""Comparing names as a reader would: words without case and accents."""

from __future__ import annotations

import difflib
import functools
import re
import unicodedata

_WORD = re.compile(r"\w")
_ARTICLES = ("the", "a", "an")
_TELLING_LETTERS = 4  # "of", "San" and "the" are shared by names that say nothing about each other
_STEM_LETTERS = 5  # Tunis, Tunisia
_ALIKE = 0.7  # difflib ratio: Tashkent and Toshkent 0.88, Algeria and Algiers 0.71
_CODE_LETTERS = 4  # codes of airports, currencies, countries


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


def holds_name(name: str, part: str) -> bool:
    """Whether a name holds another as whole words: Kansas City Airport, Kansas."""
    return _contains(name_words(name), name_words(part))


def gives_away(subject: str, answer: str) -> bool:
    """Whether the subject's name hints at the object, so that no memory is needed to prefer it.

    One holds the other (Kansas City Airport, Kansas), they share a word, a stem (Tunisia, Tunis) or words that look
    alike (Algeria, Algiers), or the subject is a code with the object's first letter (CHA, Chattanooga).
    """
    left, right = name_words(subject), name_words(answer)
    if _contains(left, right) or _contains(right, left):
        return True
    if {word for word in left if len(word) >= _TELLING_LETTERS} & set(right):
        return True
    if subject.isupper() and len(subject) <= _CODE_LETTERS and left[0][0] == right[0][0]:
        return True
    return any(_alike(one, other) for one in left for other in right)


def _alike(one: str, other: str) -> bool:
    if min(len(one), len(other)) < _STEM_LETTERS or one[0] != other[0]:
        return False
    if one.startswith(other) or other.startswith(one):
        return True
    if 2 * min(len(one), len(other)) < _ALIKE * (len(one) + len(other)):  # the ratio cannot be more
        return False
    return difflib.SequenceMatcher(None, one, other, autojunk=False).ratio() >= _ALIKE


def _contains(whole: tuple[str, ...], part: tuple[str, ...]) -> bool:
    return (
        bool(part)
        and part[0] in whole
        and any(whole[at : at + len(part)] == part for at in range(len(whole) - len(part) + 1))
    )
