"""What case says of a name in text: whether ``turkey`` is the country, ``Who`` the band and ``or`` Oregon."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path

import regex

from megatron_kis.data_tools.facts.folding import words

ARTICLES = frozenset(["the", "a", "an"])
_RESOURCE = Path(__file__).parents[1] / "resources" / "function_words.txt"
_EVERYDAY = _RESOURCE.with_name("everyday_words.txt")
_SHORT = 3  # letters of a name that must stand as it is written
_CODE = 4  # letters of one in capitals
_CAPITAL_WITHIN = regex.compile(r"[\p{Ll},;] \p{Lu}\p{Ll}")
# What may stand between a sentence's end and the next one's first word: quotes, brackets, dashes, marks of lists.
_START = regex.compile(
    r"(?:^|[\p{STerm}:…][\p{Pf}\p{Pe}\"']*\s|\n)[\s\p{Ps}\p{Pi}\p{Pd}\"'„*•#>¿¡]*$|[¿¡][\s\p{Ps}\p{Pi}\"']*$"
)
_BEFORE, _BEHIND = 24, 200  # characters that are looked at
_SEVERAL = regex.compile(r"[\p{L}\p{M}.]*\p{Lu}[\p{L}\p{M}.]*\p{Lu}")  # US, U.S., McX: no capital of a sentence's start
_SIGNED = regex.compile(r"\w+(?:[+#♯＋＃*\p{Sc}]|[-\u2212\u2013－](?!\w))")  # A+, O-, US$
_LOWER = regex.compile(r"\p{Ll}")
_SHOUTED = 3  # words in capitals that are no row of codes


@cache
def _grammars() -> tuple[frozenset[str], ...]:
    lines = _RESOURCE.read_text(encoding="utf-8")
    paragraphs = [paragraph.partition("\n")[2] for paragraph in lines.split("# ")[2:]]
    return tuple(frozenset(words(paragraph)) for paragraph in paragraphs)


@cache
def function_words() -> frozenset[str]:
    """Folded words of the grammars of languages that write capitals."""
    return frozenset().union(*_grammars())


@cache
def everyday_words() -> frozenset[str]:
    """Folded English words, and their plurals, that are names with an article before them: *the Band*."""
    lines = _EVERYDAY.read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in words(line))


class Capitals:
    """How a text uses capitals."""

    def __init__(self, text: str) -> None:
        """Looks at nothing yet."""
        self._text = text

    @cached_property
    def mark_names(self) -> bool:
        """Whether there is a capital within a sentence, as names have; words all in capitals say nothing."""
        return _CAPITAL_WITHIN.search(self._text) is not None

    def say_nothing(self, at: int) -> bool:
        """Whether the word at a place is the first of a sentence."""
        before = self._text[max(0, at - _BEFORE) : at]
        match = _START.search(before)
        return match is not None and (at <= _BEFORE or match.end() > match.start() > 0)

    def begin_grammar(self, at: int, word: str) -> bool:
        """Whether the first word of a sentence is one of the grammar of its language: *Como* is in Spanish."""
        if not self.say_nothing(at) or self._is_marked(at):
            return False
        around = words(self._text[at : at + _BEHIND])
        counts = [(sum(map(grammar.__contains__, around)), word in grammar) for grammar in _grammars()]
        most = max(count for count, _ in counts)
        return any(count == most and known for count, known in counts)

    def _is_marked(self, at: int) -> bool:
        """Whether a word has a sign, or several capitals where not all words are in capitals."""
        if _SIGNED.match(self._text, at):
            return True
        around = self._text[at : at + _BEHIND]
        return bool(_SEVERAL.match(around) and (_LOWER.search(around) or len(words(around)) < _SHOUTED))


class Spelling:
    """The words of a name in its own case, and whether text may write them so."""

    def __init__(self, name: Sequence[str], *, article_left_out: bool) -> None:
        """Weighs the words, which are folded but for their case."""
        self._name = tuple(name)
        cased = [word for word in name if word.upper() != word.lower()]
        content = [word for word in cased if word.lower() not in function_words()]
        size = sum(map(len, cased))
        self._single = cased[0] if len(cased) == 1 else ""
        self._everyday = article_left_out and self._single.lower() in everyday_words()
        self._grammar = bool(cased) and not content
        self._several = len(content) > 1
        self._exact = self._grammar or 0 < size <= _SHORT or (size <= _CODE and self._single.isupper())
        self._free = not self._exact and all(word == word.lower() for word in cased)
        self.says_nothing = cased == ["I"] == list(name)
        """The one word that is always a capital: who looks for iodine would find everybody."""

    def fits(self, text: Sequence[str], at: int, capitals: Capitals, *, strict: bool) -> bool:
        """Whether words of a text can be the name.

        Args:
            text: as many words as the name has, folded but for their case.
            at: where they stand.
            capitals: of the text.
            strict: whether names that are no codes need their capitals, too.
        """
        if self._free:
            return True
        if strict and self._everyday and text[-1][:1].isupper() and capitals.say_nothing(at):
            return False
        if self._exact:
            if self._name != tuple(text) and not self._is_raised(text, at, capitals):
                return False
            return not (strict and self._grammar and self._single and capitals.begin_grammar(at, text[-1].lower()))
        if not strict:
            return True
        lowered = any(
            one[:1].isupper() and not other[:1].isupper() and one.lower() not in function_words()
            for one, other in zip(self._name, text, strict=True)
        )
        return not lowered or self._several or not capitals.mark_names

    def _is_raised(self, text: Sequence[str], at: int, capitals: Capitals) -> bool:
        """Whether only the first letter differs: a lower-case name at a sentence's start, or *the* of *The Who*."""
        one, other = self._name[0], text[0]
        if self._name[1:] != tuple(text[1:]) or one.lower() != other.lower() or one[1:] != other[1:]:
            return False
        return capitals.say_nothing(at) if one[:1].islower() else one.lower() in ARTICLES and len(text) > 1
