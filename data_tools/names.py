"""Comparing names as a reader would: words without case and accents."""

from __future__ import annotations

import difflib
import re
import unicodedata

_WORD = re.compile(r"\w+")
_ARTICLES = ("the", "a", "an")
_TELLING_LETTERS = 4  # "of", "San" and "the" are shared by names that say nothing about each other
_STEM_LETTERS = 5  # Tunis, Tunisia
_ALIKE = 0.7  # difflib ratio: Tashkent and Toshkent 0.88, Algeria and Algiers 0.71
_CODE_LETTERS = 4  # codes of airports, currencies, countries


def words(text: str) -> list[str]:
    """Words of a text, case folded, accents removed: ``"N'Djamena"`` is ``["n", "djamena"]``."""
    if text.isascii():
        return _WORD.findall(text.lower())
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return _WORD.findall("".join(letter for letter in decomposed if not unicodedata.combining(letter)))


def name_words(name: str) -> tuple[str, ...]:
    """Words of a name without a leading article: text says "Bahamas" and means "The Bahamas"."""
    found = tuple(words(name))
    return found[1:] if len(found) > 1 and found[0] in _ARTICLES else found


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
    return difflib.SequenceMatcher(None, one, other, autojunk=False).ratio() >= _ALIKE


def _contains(whole: tuple[str, ...], part: tuple[str, ...]) -> bool:
    return bool(part) and any(whole[at : at + len(part)] == part for at in range(len(whole) - len(part) + 1))
