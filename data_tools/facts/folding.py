"""Folding: removes from text and names what writers omit or vary, so that one can be found in the other.

A folded line is the words of a text between single spaces. Case is removed, the accents of Latin, Greek and Cyrillic
(not those that make other letters: й, ї), Arabic and Hebrew points, and letters such as ł and ø become plain
letters. Vowel signs, viramas and voicing marks are letters and stay. Digits of all scripts become ASCII's. Where a
script writes no spaces, or glues particles to syllables (Hangul), every character is a word of its own.
"""

from __future__ import annotations

import unicodedata
from functools import cached_property

import numpy as np
import numpy.typing as npt
import regex

_SPLIT = regex.compile(
    r"[\p{scx=Hani}\p{scx=Hira}\p{scx=Kana}\p{scx=Bopo}\p{Hang}\p{Yiii}\p{Tang}\p{Nshu}\p{Kits}"
    r"\p{Thai}\p{Laoo}\p{Khmr}\p{Mymr}\p{Lana}\p{Tale}\p{Talu}\p{Tavt}\p{Java}\p{Bali}\p{Cham}]"
)
# Marks of pronunciation, and invisible characters. Voicing marks and vowel signs are letters.
_DROPPED = regex.compile(
    r"[[\p{Cf}\p{Variation_Selector}\u0640\u07FA]"
    r"[[\p{M}&&[\p{sc=Zinh}\p{Latn}\p{Grek}\p{Cyrl}\p{Arab}\p{Hebr}\p{Syrc}]]--[\u3099\u309A]]]",
    regex.V1,
)
_ACCENTED = regex.compile(r"[\p{Latn}\p{Grek}\p{Arab}\p{Hebr}]")  # their marks are accents or points
_STRESSED = frozenset("ёЁѐЀѝЍ")  # Cyrillic letters that are written without their mark, too
_KEPT_CATEGORIES = "LNM"
_NO_LETTERS = regex.compile(r"[\u02B9-\u02DF\uA788]")  # modifiers that are apostrophes and stress marks
_PLAIN = {
    **{"ł": "l", "ø": "o", "đ": "d", "ð": "d", "ı": "i", "ħ": "h", "ŧ": "t", "ŋ": "n", "ĸ": "k", "ə": "e", "ɛ": "e"},
    **{"ɔ": "o", "ɓ": "b", "ɗ": "d", "ɖ": "d", "ƙ": "k", "ƴ": "y", "þ": "th", "æ": "ae", "œ": "oe", "ß": "ss"},
    **{"ی": "ي", "ى": "ي", "ک": "ك", "ہ": "ه", "ھ": "ه"},  # Persian and Urdu letters on code points of their own
}
_HALF_WIDTH = regex.compile(r"[\uFF66-\uFF9D][\uFF9E\uFF9F]")
_CODE_POINTS = 0x110000


def _letters(char: str, keep_case: bool) -> str:
    """Folds a character: to letters, a space or nothing."""
    if _DROPPED.match(char):
        return ""
    if char.isascii():
        kept = char if keep_case else char.lower()
        return kept if char.isalnum() or char == "_" else " "
    if unicodedata.category(char)[0] not in _KEPT_CATEGORIES or _NO_LETTERS.match(char):
        # A symbol such as ℃ or a letter in a circle may stand for letters.
        decomposed = unicodedata.normalize("NFKD", char)
        return _letters(decomposed, keep_case) if len(decomposed) == 1 and decomposed != char else " "
    decomposed = unicodedata.normalize("NFKD", char if keep_case else char.casefold())
    if not keep_case:
        decomposed = unicodedata.normalize("NFKD", decomposed.casefold())
    if any(unicodedata.category(letter)[0] not in _KEPT_CATEGORIES for letter in decomposed):
        return char if keep_case else char.casefold()  # ½, ﷺ: abbreviations of several words
    if _ACCENTED.match(decomposed) or char in _STRESSED:
        decomposed = "".join(letter for letter in decomposed if not unicodedata.category(letter).startswith("M"))
    folded = "".join(_plain(letter) for letter in unicodedata.normalize("NFC", decomposed))
    return f" {folded} " if _SPLIT.match(char) else folded


def _plain(letter: str) -> str:
    if (value := unicodedata.decimal(letter, None)) is not None:
        return str(value)
    plain = _PLAIN.get(letter.lower(), letter)
    return plain if letter.islower() or plain == letter else plain.upper()


class _Table(dict[int, str | int]):
    """A table for ``str.translate`` from code point to folded letters, filled on demand."""

    def __init__(self, *, keep_case: bool) -> None:
        super().__init__()
        self._keep_case = keep_case
        self.lengths: npt.NDArray[np.uint8] = np.zeros(_CODE_POINTS, np.uint8)
        """Number of folded letters of each code point that occurred."""

    def __missing__(self, code: int) -> str | int:
        folded = _letters(chr(code), self._keep_case)
        self.lengths[code] = len(folded)
        self[code] = ord(folded) if len(folded) == 1 else folded  # a number is translated nearly twice as fast
        return self[code]


_FOLDED = _Table(keep_case=False)
_CASED = _Table(keep_case=True)


def words(text: str) -> list[str]:
    """Folds a text to words: ``"N'Djamena"`` is ``["n", "djamena"]``, ``"東京 A"`` is ``["東", "京", "a"]``."""
    return composed(text).translate(_FOLDED).split()


def cased(text: str) -> str:
    """Folds a text as :func:`words` does, but keeps case and removes spaces."""
    return "".join(text.translate(_CASED).split())


def line_of_words(text: str) -> str:
    """Returns the folded words of a text between single spaces, with one before the first and one after the last."""
    line = f" {' '.join(text.translate(_FOLDED).split())} "
    # Half-width voicing marks are letters of the letter before them. Text that is not composed is rare.
    if text.isascii() or not ("\u3099" in line or "\u309a" in line or not unicodedata.is_normalized("NFC", text)):
        return line
    return f" {' '.join(words(text))} "


def composed(text: str) -> str:
    """Returns a text in Unicode's composed form; composes half-width Katakana with voicing marks too."""
    if "\uff9e" in text or "\uff9f" in text:
        text = _HALF_WIDTH.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


class FoldedText:
    """A text with its folded line, and the positions of the line's letters in the text."""

    def __init__(self, text: str, line: str | None = None) -> None:
        """Folds the text, unless its line is given."""
        self.original = text
        self.text = composed(text)
        """The text in composed form, to which positions refer; see :meth:`in_original`."""
        self.line = line or line_of_words(text)

    @cached_property
    def _origin(self) -> npt.NDArray[np.int64]:
        """Index of the text's character from which each character of the line stems, without the first space."""
        codes = _codes(self.text)
        lengths = _FOLDED.lengths[codes]
        spaces = _codes(self.text.translate(_FOLDED)) == ord(" ")
        kept = np.ones(len(spaces), bool)
        kept[:1], kept[1:] = ~spaces[:1], ~(spaces[1:] & spaces[:-1])
        if len(spaces) == len(codes) and lengths.all():  # one letter for each character, as in most text
            return np.flatnonzero(kept)
        found: npt.NDArray[np.int64] = np.repeat(np.arange(len(codes)), lengths)[kept]
        return found

    def source_range(self, start: int, end: int) -> tuple[int, int]:
        """Returns the half-open range of the text for a range of the line, whose both ends must be letters."""
        return int(self._origin[start - 1]), int(self._origin[end - 2]) + 1

    @cached_property
    def _clusters(self) -> npt.NDArray[np.int64] | None:
        """Index in the original text of every character of the composed one; None if they are the same."""
        if self.text is self.original:
            return None
        starts: list[int] = []
        at = 0
        for cluster in regex.findall(r"\X", self.original):
            starts += [at] * len(composed(cluster))
            at += len(cluster)
        return np.array([*starts, at])

    def in_original(self, start: int, end: int) -> tuple[int, int]:
        """Converts a half-open range of the composed text to one of the original text, in whole clusters."""
        if self._clusters is None:
            return start, end
        past = end
        while self._clusters[past] == self._clusters[end - 1]:
            past += 1
        return int(self._clusters[start]), int(self._clusters[past])


def _codes(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
