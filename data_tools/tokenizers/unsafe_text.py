"""Finds the texts that only the tokenizer's own library is sure to encode as it should.

Encoders of one model differ where a text holds the spelling of a token that is taken out of it before the rest is cut:
added tokens of a ``tokenizer.json`` with their flags, user-defined and control pieces of SentencePiece, special tokens
of tiktoken. They differ in characters, too, that one library's Unicode tables know as letters and another's not yet, or
that one library orders and composes in NFC and another not yet (:func:`normalisation_probes`).
All are rare in text, and found many times as fast as a text is encoded.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Iterable
from functools import cache

import numpy as np
import numpy.typing as npt

from megatron_kis.data_tools.tokenizers.base import Tokenizer

_FEW = 4  # spellings that are faster to look for one by one
_BETWEEN = "\x01"  # in no spelling of a token
_LAST_ORDER = 240  # of combining marks
_TABLED = 0x40000  # above are private planes and, up to U+E0000, no characters


def is_blank(spelling: str) -> bool:
    """Returns whether a token is spelled with white space alone; SentencePiece's mark of a space counts as one."""
    return not spelling.replace("▁", " ").strip()


class UnsafeTextFinder:
    """Finds the texts that are left to the tokenizer's own library."""

    def __init__(self, tokenizer: Tokenizer, *, blanks: bool, also: Collection[str] = ()) -> None:
        """Prepares the search for the spellings of a tokenizer.

        Args:
            tokenizer: the tokenizer.
            blanks: search also for those of white space, which most texts hold in some models.
            also: further spellings.
        """

        def wanted(spellings: Iterable[str]) -> set[str]:
            return {spelling for spelling in spellings if spelling and (blanks or not is_blank(spelling))}

        normal = wanted(tokenizer.normal_spellings)
        self._raw = _test(wanted([*tokenizer.spellings, *also]))
        self._normal = _test(normal)
        self._normalise = tokenizer.normalise if normal else None
        self._characters = _new_characters()

    def add(self, characters: Collection[str]) -> None:
        """Adds characters to search for."""
        if characters:
            self._characters = self._characters.copy()
            self._characters[[ord(character) for character in characters]] = True

    def found(self, texts: list[str]) -> list[int]:
        """Returns the positions of unsafe texts among ``texts``, in order."""
        found = {*_places(texts, self._raw), *_places(texts, self._has_character)}
        if self._normalise is not None:
            found.update(_places([self._normalise(text) for text in texts], self._normal))
        return sorted(found)

    def _has_character(self, text: str) -> bool:
        """Returns whether a text has one of the characters."""
        if text.isascii():
            return False
        return bool(self._characters[np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)].any())


@cache
def normalisation_probes() -> dict[str, str]:
    """Returns texts that NFC changes only by tables that know a character, and the characters each text is about.

    A mark is put where it must change its place. A character that has a decomposition is taken as it is, and in parts.
    """
    found = {"\uac00\u11a7": "\u11a7"}  # no final consonant, though next to those
    for character in map(chr, np.flatnonzero(~_new_characters()[:_TABLED])):
        if order := unicodedata.combining(character):
            found["a\u0345" + character + "\u0334"] = character  # orders 240, its own and 1
            if order == _LAST_ORDER:
                found["a" + character + "\u0334"] = character
        if unicodedata.decomposition(character)[:1] not in ("", "<"):
            found[character] = character
            parts = unicodedata.normalize("NFD", character)
            if len(parts) > 1:
                found.setdefault(parts, "".join(part for part in parts if not part.isascii()))
    return found


def _places(texts: list[str], test: Callable[[str], bool]) -> list[int]:
    """Returns the positions of the texts that pass a test; all are tested as one first, as nearly always none does."""
    return [place for place, text in enumerate(texts) if test(text)] if test(_BETWEEN.join(texts)) else []


def _test(spellings: Collection[str]) -> Callable[[str], bool]:
    """Returns a function that tests whether a text holds one of the spellings."""
    if len(spellings) <= _FEW:
        return lambda text: any(spelling in text for spelling in spellings)
    import ahocorasick_rs

    automaton = ahocorasick_rs.BytesAhoCorasick([spelling.encode() for spelling in sorted(spellings)])
    return lambda text: bool(automaton.find_matches_as_indexes(text.encode()))


@cache
def _new_characters() -> npt.NDArray[np.bool_]:
    """Returns [characters] whether each is missing in Python's own Unicode tables."""
    table = np.zeros(0x110000, dtype=bool)
    table[:_TABLED] = [unicodedata.category(chr(character)) == "Cn" for character in range(_TABLED)]
    table[_TABLED:0xE0000] = True
    return table
