"""Rules by script for where a name may begin and end within a run of letters.

In scripts with spaces a name is whole words. In others, and where particles are attached to a name, it is part of a run
of letters; these rules say what may precede and follow it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import regex

from megatron_kis.common.files import read_text
from megatron_kis.common.parsing import parse_yaml

_ENDINGS = Path(__file__).parents[1] / "resources" / "endings.yaml"
_BEFORE = {
    "Arab": regex.compile(r"[وف]?(?:[بكل]?(?:ال)?|لل)|س"),
    "Hebr": regex.compile(r"ו?(?:מש|כש|לכש|ש|ה)?[בלכמ]?ה?"),
    "Ethi": regex.compile(r"(?:እና|ስለ|እንደ|ወደ|እነ|የነ|እስከ|[በለከየወ])?"),
}
"""Particles that are attached to the front of a name."""
_ARABIC_ARTICLE = "ال"
_BEFORE_ARTICLE = regex.compile(r"[وف]?(?:[بك]?ال|لل|لال)")  # the last where it is no article: لألمانيا
SPLIT_SCRIPTS = ("Hani", "Hira", "Kana", "Hang", "Thai", "Laoo", "Khmr", "Mymr")
"""Scripts in which a name is a part of a run of letters; every letter is a word of the folded line."""
_WITH_ENDINGS = ("Deva", "Beng", "Gujr", "Guru", "Orya", "Taml", "Telu", "Knda", "Mlym", "Sinh", "Geor", "Armn", "Tibt")
GLUING_SCRIPTS = frozenset([*SPLIT_SCRIPTS, *_BEFORE, *_WITH_ENDINGS])
"""Scripts in which a name may be part of a longer run of letters."""
_SCRIPT = regex.compile("|".join(rf"(?P<{name}>\p{{{name}}})" for name in sorted(GLUING_SCRIPTS)) + "|(?P<Kana_>ー)")
_SHORTEST = 3  # fewest letters of a name that may have something attached to it

# Korean attaches to a name, in this order: a unit of administration, a title, the plural; a case, which another may
# follow; a word of emphasis; at last the topic or the copula. Of the latter 이 is left out after vowels.
_CASES = (
    "에서부터|에서|에게서|에게|에|한테서|한테|께서|께|으로부터|로부터|으로서|로서|으로써|로써|으로|로|부터|까지|보다|처럼"
    "|같이|만큼|마다|대로|하고|이랑|랑|와|과|의|더러|보고"
)
_EMPHASIS = (
    "만|조차|마저|밖에|까지|부터|뿐|은커녕|는커녕|이나마|나마|이나|나|이야말로|야말로|이라도|라도|이든지|든지|이든|든"
)
_COPULA = (
    "(?:이었|였)(?:다|다고|다는|다가|다면|고|으며|으나|으니|으면|으므로|지만|는데|는지|던|을|음|기|습니다|습니다만|습니까|어요|어|지|죠|거든)"
    "|이?(?:다|다만|며|면서|고|고요|자|지만|지|지요|죠|면|라|라서|라면|라며|라는|라고|라도|란|므로|니|니까|기|기도|던|거나|야|에요|어서|어야|네|네요"
    "|나|라던|로서)|예요|입니다|입니다만|입니까|인|인데|인가|인지|일|임|임을|임이|인데요|이신|이십니다|이시다"
)
_HANGUL_AFTER = regex.compile(
    r"(?:특별시|광역시|특별자치시|특별자치도|시|도|군|구|현|주|성|섬)?(?:씨|님)?(?:들)?"
    rf"(?:{_CASES})?(?:{_CASES})?(?:{_EMPHASIS})?(?:{_CASES})?"
    rf"(?:은|는|이|가|을|를|도|요|(?:{_COPULA})(?:는|도|만|요)?)?(?!\p{{Hang}})"
)
_NO_LETTER_BEFORE = ("Kana", "Hang")
_CONTINUES = regex.compile(r"[\p{M}\u0E30\u0E33\u0E45\u0EB0\u0EB3\u0EBD]")  # vowels of Thai and Lao that are no marks
_CODA = regex.compile(r"\p{Mymr}[\u103A\u1039]")  # a final consonant, or the first of a stack
_OPENS = regex.compile(r"[\u0E40-\u0E44\u0E31\u0EC0-\u0EC4\u0EB1\u17D2\u1039]")  # vowels and signs that await a letter


@dataclass(frozen=True, slots=True)
class Glue:
    """Letters that may be attached to one end of a name: ``stem`` is always there, ``around`` matches the rest."""

    stem: str
    around: regex.Pattern[str]


@lru_cache(1 << 14)
def script_of(letter: str) -> str:
    """Returns the ISO 15924 code of a letter's script if that script has rules here, else the empty string."""
    match = _SCRIPT.match(letter)
    return (match.lastgroup or "")[:4] if match else ""


def _has_article(word: str) -> bool:
    return word.startswith(_ARABIC_ARTICLE) and len(word) >= _SHORTEST + len(_ARABIC_ARTICLE)


def glue_before(name: Sequence[str]) -> Glue | None:
    """Returns what may precede a name's first folded word within its run of letters; None if nothing may."""
    word = name[0]
    script = script_of(word[0])
    if script not in _BEFORE or sum(map(len, name)) < (2 if script == "Ethi" else _SHORTEST):
        return None
    if _has_article(word):
        return Glue(word.removeprefix(_ARABIC_ARTICLE), _BEFORE_ARTICLE)
    return Glue(word, _BEFORE[script])


@cache
def _endings() -> dict[str, dict[str, object]]:
    content = parse_yaml(read_text(_ENDINGS), where=str(_ENDINGS))
    assert isinstance(content, dict)
    return content


def glue_after(name: Sequence[str]) -> Glue | None:
    """Returns what may follow a name's last folded word within its run of letters; None if nothing may."""
    word = name[-1]
    script = script_of(word[-1])
    table = _endings().get(script)
    if table is None or sum(map(len, name)) < 2:
        return None
    stems = table.get("stems", {})
    assert isinstance(stems, dict)
    changed = tuple(end for end in stems if word.endswith(end) and len(word) - len(end) >= 2)
    if not (changed or table["endings"]) or (len(name) == 1 and _has_article(word)):
        return None
    cut = len(word) - max(map(len, changed), default=0)
    return Glue(word[:cut], _ending_pattern(script, word[cut:], changed))


@cache
def _ending_pattern(script: str, own: str, changed: tuple[str, ...]) -> regex.Pattern[str]:
    """Compiles what follows the stem of a word: its own end, and endings instead of that or after it."""
    endings, stems = _endings()[script]["endings"], _endings()[script].get("stems", {})
    assert isinstance(stems, dict)
    ways = [f"{own}(?:{_alternatives(str(endings))})?"]
    for end in changed:
        instead = [f"{letter}{ending}" for ending, letter in _replacing_endings(str(stems[end]), str(endings))]
        ways.append(f"{own.removesuffix(end)}(?:{_alternatives(' '.join(instead))})")
    return regex.compile("|".join(ways))


def _replacing_endings(listed: str, endings: str) -> Iterator[tuple[str, str]]:
    """Yields each ending that replaces a stem's own end, and the letters before it."""
    for one in listed.split():
        if one.endswith("="):
            yield from ((ending, one[:-1]) for ending in endings.split())
        else:
            yield one, ""


def _alternatives(endings: str) -> str:
    return "|".join(sorted(endings.split(), key=len, reverse=True))


def can_be_name_at(text: str, start: int, end: int) -> bool:
    """Returns whether a name of a script without spaces may begin and end at these positions of a composed text."""
    first, last = script_of(text[start]), script_of(text[end - 1])
    before, after = text[start - 1] if start else " ", text[end] if end < len(text) else " "
    if _CONTINUES.match(after) or _CODA.match(text, end) or _OPENS.match(before):
        return False
    alone = (first == last == "Hani" and end - start == 1) or (first == last == "Hira" and end - start < _SHORTEST)
    if alone and first in {script_of(before), script_of(after)}:
        return False
    if (first in _NO_LETTER_BEFORE and first == script_of(before)) or last == "Kana" == script_of(after):
        return False
    return last != "Hang" or _HANGUL_AFTER.match(text, end) is not None


def is_glued(text: str, end: int) -> bool:
    """Returns whether a name of such a script is part of a longer run of letters; Korean writes spaces."""
    return script_of(text[end - 1]) != "Hang" or script_of(text[end : end + 1] or " ") == "Hang"
