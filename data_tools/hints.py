"""Whether a subject's name gives its object away, so that no memory is needed to answer."""

from __future__ import annotations

import difflib

from data_tools.mentions import name_words

_TELLING_LETTERS = 4  # "of", "San" and "the" are shared by names that say nothing about each other
_STEM_LETTERS = 5  # Tunis, Tunisia
_ALIKE = 0.7  # difflib ratio: Tashkent and Toshkent 0.88, Algeria and Algiers 0.71
_CODE_LETTERS = 4  # codes of airports, currencies, countries


def holds_name(name: str, part: str) -> bool:
    """Whether a name holds another as whole words: Kansas City Airport, Kansas."""
    return _contains(name_words(name), name_words(part))


def gives_away(subject: str, answer: str) -> bool:
    """Whether the subject's name hints at the object, so that no memory is needed to prefer it.

    One holds the other (Kansas City Airport, Kansas), they share a word, a stem (Tunisia, Tunis) or words that look
    alike (Algeria, Algiers), or the subject is a code with the object's first letter (CHA, Chattanooga).
    """
    left, right = name_words(subject), name_words(answer)
    if not left or not right:  # names of symbols alone hint at nothing
        return False
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
