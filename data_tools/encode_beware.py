"""Which texts only the tokenizer's own library encodes for certain.

Encoders of one model differ where a text holds the spelling of a token that is taken out of it before the rest is cut:
added tokens of a ``tokenizer.json`` with their flags, user-defined and control pieces of SentencePiece, special tokens
of tiktoken. They differ in characters, too, that one library's Unicode tables know as letters and another's not yet.
Both are rare in text, and found many times as fast as a text is encoded.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection
from functools import cache

import numpy as np
import numpy.typing as npt

from data_tools.tokenizer import Tokenizer

_FEW = 4  # spellings that are faster to look for one by one
_TABLED = 0x40000  # above are private planes and, up to U+E0000, no characters


def is_blank(spelling: str) -> bool:
    """Whether a token is spelled with white space alone, as SentencePiece's mark of a space, too, may mean."""
    return not spelling.replace("▁", " ").strip()


class Beware:
    """Finds the texts that are left to the tokenizer's own library."""

    def __init__(self, tokenizer: Tokenizer, *, blanks: bool) -> None:
        """Looks for the spellings of a tokenizer.

        Args:
            tokenizer: the tokenizer.
            blanks: also for those of white space, which most texts hold in some models.
        """
        wanted = [
            {spelling for spelling in spellings if spelling and (blanks or not is_blank(spelling))}
            for spellings in (tokenizer.spellings, tokenizer.normal_spellings)
        ]
        self._raw, self._normal = map(_searcher, wanted)
        self._normalise = tokenizer.normalise if wanted[1] else None

    def found(self, texts: list[str]) -> list[int]:
        """Places of such texts among ``texts``, in order."""
        found = set(self._raw(texts))
        if self._normalise is not None:
            found.update(self._normal([self._normalise(text) for text in texts]))
        found.update(_with_new_characters(texts))
        return sorted(found)


def _searcher(spellings: Collection[str]) -> Callable[[list[str]], list[int]]:
    """A function that gives the places of the texts that hold one of the spellings."""
    if len(spellings) <= _FEW:
        return lambda texts: [place for place, text in enumerate(texts) if any(one in text for one in spellings)]
    import ahocorasick_rs

    automaton = ahocorasick_rs.BytesAhoCorasick([spelling.encode() for spelling in sorted(spellings)])

    def search(texts: list[str]) -> list[int]:
        # Bytes, and together: no matches are counted in characters, and nearly always there are none.
        if not automaton.find_matches_as_indexes("\x00".join(texts).encode()):
            return []
        return [place for place, text in enumerate(texts) if automaton.find_matches_as_indexes(text.encode())]

    return search


def _with_new_characters(texts: list[str]) -> list[int]:
    """Places of texts with characters that Python's own Unicode tables do not know."""
    places = [place for place, text in enumerate(texts) if not text.isascii()]
    if not places or not _any_new("".join([texts[place] for place in places])):
        return []
    return [place for place in places if _any_new(texts[place])]


def _any_new(text: str) -> bool:
    return bool(_new_characters()[np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)].any())


@cache
def _new_characters() -> npt.NDArray[np.bool_]:
    """[characters] whether each has no place in Python's Unicode tables."""
    table = np.zeros(0x110000, dtype=bool)
    table[:_TABLED] = [unicodedata.category(chr(character)) == "Cn" for character in range(_TABLED)]
    table[_TABLED:0xE0000] = True
    return table
