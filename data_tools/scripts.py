"""Where a name may begin and end within a run of letters, script by script.

In scripts with spaces a name is whole words. In others, and where little words are glued to a name, it is part of a run
of letters; what may stand before and after it there is decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import regex

from megatron_kis.files import read_text
from megatron_kis.parsing import parse_yaml

_ENDINGS = Path(__file__).parent / "resources" / "endings.yaml"
_BEFORE = {
    "Arab": regex.compile(r"[وف]?(?:[بكل]?(?:ال)?|لل)|س"),
    "Hebr": regex.compile(r"ו?(?:מש|כש|לכש|ש|ה)?[בלכמ]?ה?"),
    "Ethi": regex.compile(r"(?:እና|ስለ|እንደ|ወደ|እነ|የነ|እስከ|[በለከየወ])?"),
}
"""Little words that are glued to the front of a name."""
_ARABIC_ARTICLE = "ال"
_BEFORE_ARTICLE = regex.compile(r"[وف]?(?:[بك]?ال|لل)")
SPLIT_SCRIPTS = ("Hani", "Hira", "Kana", "Hang", "Thai", "Laoo", "Khmr", "Mymr")
"""Scripts in which a name is a part of a run of letters; every letter is a word of the folded line."""
_WITH_ENDINGS = ("Deva", "Beng", "Gujr", "Guru", "Orya", "Taml", "Telu", "Knda", "Mlym", "Sinh", "Geor", "Armn", "Tibt")
GLUING_SCRIPTS = frozenset([*SPLIT_SCRIPTS, *_BEFORE, *_WITH_ENDINGS])
"""Scripts in which a name may be part of a longer run of letters."""
_SCRIPT = regex.compile("|".join(rf"(?P<{name}>\p{{{name}}})" for name in sorted(GLUING_SCRIPTS)) + "|(?P<Kana_>ー)")
_SHORTEST = 3  # letters of a name that may have something glued to it; a shorter one stands alone

# Particles, forms of the copula and units of administration, one after the other.
_HANGUL_AFTER = regex.compile(
    r"(?:특별시|광역시|시|도|군|구|현|주|성|섬)?(?:들)?"
    r"(?:에서|에게|에|으로|로|까지|부터|만|보다|처럼|이라고|라고|이라는|라는|이란|란|이나|나)?"
    r"(?:은|는|이|가|을|를|의|와|과|도|이며|며|이고|고|인|이다|다|입니다|이었다|였다|이었으며|였으며|임|이자|자|이지만|지만|일|이라|라"
    r"|이에요|예요|이었습니다|였습니다|이야|야|하고|이랑|랑)?(?!\p{Hang})"
)
_NO_LETTER_BEFORE = ("Kana", "Hang")
_CONTINUES = regex.compile(r"[\p{M}\u0E30\u0E33\u0E45\u0EB0\u0EB3\u0EBD]")  # vowels of Thai and Lao that are no marks
_CODA = regex.compile(r"\p{Mymr}[\u103A\u1039]")  # a final consonant, or the first of a stack
_OPENS = regex.compile(r"[\u0E40-\u0E44\u0E31\u0EC0-\u0EC4\u0EB1\u17D2\u1039]")  # vowels and signs that await a letter


@dataclass(frozen=True, slots=True)
class Glue:
    """What may be glued to one end of a name: ``stem`` is what always stands there, ``around`` matches the rest."""

    stem: str
    around: regex.Pattern[str]


@lru_cache(1 << 14)
def script_of(letter: str) -> str:
    """ISO 15924 code of a letter's script where that script has rules of its own here, else the empty string."""
    match = _SCRIPT.match(letter)
    return (match.lastgroup or "")[:4] if match else ""


def glue_before(name: Sequence[str]) -> Glue | None:
    """What may stand before a name's first folded word within its run of letters; None where nothing may."""
    word = name[0]
    script = script_of(word[0])
    if script not in _BEFORE or sum(map(len, name)) < (2 if script == "Ethi" else _SHORTEST):
        return None
    if word.startswith(_ARABIC_ARTICLE) and len(word) >= _SHORTEST + len(_ARABIC_ARTICLE):
        return Glue(word.removeprefix(_ARABIC_ARTICLE), _BEFORE_ARTICLE)
    return Glue(word, _BEFORE[script])


@cache
def _endings() -> dict[str, dict[str, object]]:
    content = parse_yaml(read_text(_ENDINGS), where=str(_ENDINGS))
    assert isinstance(content, dict)
    return content


def glue_after(name: Sequence[str]) -> Glue | None:
    """What may stand after a name's last folded word within its run of letters; None where nothing may."""
    word = name[-1]
    script = script_of(word[-1])
    table = _endings().get(script)
    if table is None or sum(map(len, name)) < 2:
        return None
    stems = table.get("stems", {})
    assert isinstance(stems, dict)
    changed = tuple(end for end in stems if word.endswith(end) and len(word) - len(end) >= 2)
    cut = len(word) - max(map(len, changed), default=0)
    return Glue(word[:cut], _around(script, word[cut:], changed))


@cache
def _around(script: str, own: str, changed: tuple[str, ...]) -> regex.Pattern[str]:
    """What follows the stem of a word: its own end, and its endings instead of or after that."""
    endings, stems = _endings()[script]["endings"], _endings()[script].get("stems", {})
    assert isinstance(stems, dict)
    ways = [f"{own}(?:{_listed(str(endings))})?"]
    ways += [
        f"{own.removesuffix(end)}(?:{_listed(str(endings if stems[end] == '=' else stems[end]))})" for end in changed
    ]
    return regex.compile("|".join(ways))


def _listed(endings: str) -> str:
    return "|".join(sorted(endings.split(), key=len, reverse=True))


def stands_between(text: str, start: int, end: int) -> bool:
    """Whether a name of a script without spaces may begin and end at these places of a text in composed form."""
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
    """Whether a name of such a script that ends at a place is a part of a longer run; Korean writes spaces."""
    return script_of(text[end - 1]) != "Hang" or script_of(text[end : end + 1] or " ") == "Hang"
