"""The indefinite article before a name: *an* where its first sound is a vowel."""

from __future__ import annotations

import re
import unicodedata

_LETTERS_READ_WITH_VOWEL = frozenset("AEFHILMNORSX")  # an F, an X; but a U
_ACRONYM = re.compile(r"[A-Z]{1,3}|[B-DF-HJ-NP-TV-XZ]+")  # read letter by letter: short, or without a vowel
_NUMBER_WITH_VOWEL = re.compile(r"8|1[18](?!\d)|1[18]\d\d(?!\d)")  # eight, eleven, eighteen (hundred)
_SILENT_H = re.compile(r"hour|honest|honou?r|heir", re.IGNORECASE)
_YOU = re.compile(
    r"eu|ewe|uni(?![nm])|u[bcfghkqrst][aeiou]|ukr|on(?:e|ce)\b", re.IGNORECASE
)  # European, unit, Utah, one
_FIRST_WORD = re.compile(r"[^\W_]+")


def indefinite_article(name: str) -> str:
    """Returns ``a`` or ``an``, by spelling: right for the great majority of English names, not for all (``a Ulan``)."""
    decomposed = unicodedata.normalize("NFD", name)
    match = _FIRST_WORD.search("".join(letter for letter in decomposed if not unicodedata.combining(letter)))
    if match is None:
        return "a"
    word = match[0]
    if word[0].isdigit():
        return "an" if _NUMBER_WITH_VOWEL.match(word) else "a"
    if _ACRONYM.fullmatch(word):
        return "an" if word[0] in _LETTERS_READ_WITH_VOWEL else "a"
    if _SILENT_H.match(word):
        return "an"
    return "an" if word[0] in "aeiouAEIOU" and not _YOU.match(word) else "a"
