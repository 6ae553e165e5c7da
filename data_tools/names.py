"""What a name is: the one place that decides whether two names, or two entities, are one.

Two names are one where nothing differs but white space, case and compatibility forms (Unicode's D146, compatibility
caseless matching). Accents, vowel signs, voicing marks, signs before digits and symbols are the name: Togo and Tonga in
Devanagari, Paris and Bali in Katakana, ``A+`` and ``A-``, ``C`` and ``C++`` are different names. Finding a name in
text, where writers are less exact, is the work of ``data_tools.mentions``.
"""

from __future__ import annotations

import functools
import unicodedata

_INVISIBLE = dict.fromkeys(
    [0xAD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), 0x2060, *range(0x2066, 0x206A), 0xFEFF]
)
"""Marks of line breaks and of the direction of writing, which nobody sees. Joiners are seen, and stay."""
_TELLING = "LNS"  # categories of which a name must have something: letters, numbers, symbols


@functools.lru_cache(1 << 14)  # of one triple the same two names are asked for several times
def name_key(name: str) -> str:
    """The name as it is compared: equal for two spellings of one name, different for two names."""
    folded = unicodedata.normalize("NFD", name.translate(_INVISIBLE))
    for _ in range(2):  # the second changes what the first brought to light, such as a capital in a ligature
        folded = unicodedata.normalize("NFKD", folded.casefold())
    return " ".join(unicodedata.normalize("NFC", folded).split())


def entity_key(name: str, identifier: str) -> str:
    """What tells an entity from others: its id where the source has one, else its name."""
    return f"#{identifier}" if identifier else f"={name_key(name)}"


def says_something(name: str) -> bool:
    """Whether a name has a letter, number or symbol: marks of punctuation alone are no name."""
    return any(unicodedata.category(letter)[0] in _TELLING for letter in name)
