"""Names of subjects that reveal the object, so that no memory is needed to answer."""

from __future__ import annotations

import difflib
import itertools
import unicodedata

from megatron_kis.data_tools.mentions.mentions import name_words
from megatron_kis.data_tools.mentions.scripts import SPLIT_SCRIPTS, script_of

_SHARED_WORD_LETTERS = 4  # "of", "San" and "the" are shared by unrelated names
_STEM_LETTERS = {"": 5, "Hani": 3, "Kana": 4, "Arab": 4, "Hebr": 4}  # Tunis, Tunisia; fewer where a letter carries more
_ALIKE = {"": 0.7, "Hani": 0.65}  # difflib ratio: Tashkent and Toshkent 0.88, Algeria and Algiers 0.71
_CODE_LETTERS = 4  # codes of airports, currencies, countries


def contains_name(name: str, part: str) -> bool:
    """Returns whether a name contains another as whole words: Kansas City Airport, Kansas."""
    return _has_words(name_words(name), name_words(part))


def reveals_object(subject: str, answer: str) -> bool:
    """Returns whether the subject's name hints at the object, so that no memory is needed to prefer it.

    One contains the other (Kansas City Airport, Kansas), they share a word, a stem (Tunisia, Tunis) or words that look
    alike (Algeria, Algiers), or the subject is a code with the object's first letter (CHA, Chattanooga).
    """
    left, right = name_words(subject), name_words(answer)
    if not left or not right:  # names of symbols only reveal nothing
        return False
    if _has_words(left, right) or _has_words(right, left):
        return True
    left, right = _joined_runs(left), _joined_runs(right)
    if not left or not right:
        return False
    if {word for word in left if len(word) >= _SHARED_WORD_LETTERS} & set(right):
        return True
    if subject.isupper() and len(subject) <= _CODE_LETTERS and left[0][0] == right[0][0]:
        return True
    return any(_alike(one, other) for one in left for other in right)


def _joined_runs(words: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the words of a name, with single letters of a script without spaces joined again.

    Hangul is decomposed into its letters, of which a syllable has two or three.
    """
    groups = itertools.groupby(words, key=lambda word: script_of(word[0]) if len(word) == 1 else word)
    runs: list[str] = []
    for script, group in groups:
        if script not in SPLIT_SCRIPTS:
            runs.extend(group)
        else:
            runs.append(unicodedata.normalize("NFD", "".join(group)) if script == "Hang" else "".join(group))
    return tuple(runs)


def _alike(one: str, other: str) -> bool:
    script = script_of(one[0])
    fewest, alike = _STEM_LETTERS.get(script, _STEM_LETTERS[""]), _ALIKE.get(script, _ALIKE[""])
    if min(len(one), len(other)) < fewest or one[0] != other[0]:
        return False
    if one.startswith(other) or other.startswith(one):
        return True
    if 2 * min(len(one), len(other)) < alike * (len(one) + len(other)):  # the ratio cannot be more
        return False
    return difflib.SequenceMatcher(None, one, other, autojunk=False).ratio() >= alike


def _has_words(whole: tuple[str, ...], part: tuple[str, ...]) -> bool:
    return (
        bool(part)
        and part[0] in whole
        and any(whole[at : at + len(part)] == part for at in range(len(whole) - len(part) + 1))
    )
