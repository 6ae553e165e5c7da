"""Case of a name in text as evidence: whether ``turkey`` is the country, ``Who`` the band and ``or`` Oregon."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path

import regex

from megatron_kis.data_tools.facts.folding import words

ARTICLES = frozenset(["the", "a", "an"])
_FUNCTION_WORDS = Path(__file__).parents[1] / "resources" / "function_words.txt"
_EVERYDAY_WORDS = _FUNCTION_WORDS.with_name("everyday_words.txt")
_SHORT = 3  # names of so many letters match in their own case only
_CODE = 4  # the same for a name in capitals
_CAPITAL_WITHIN = regex.compile(r"[\p{Ll},;] \p{Lu}\p{Ll}")
# Characters between a sentence's end and the next one's first word: quotes, brackets, dashes, marks of lists.
_SENTENCE_START = regex.compile(
    r"(?:^|[\p{STerm}:…][\p{Pf}\p{Pe}\"']*\s|\n)[\s\p{Ps}\p{Pi}\p{Pd}\"'„*•#>¿¡]*$|[¿¡][\s\p{Ps}\p{Pi}\"']*$"
)
_BEFORE = 24  # characters inspected before a word
_AFTER = 200  # and from it on
_SEVERAL = regex.compile(r"[\p{L}\p{M}.]*\p{Lu}[\p{L}\p{M}.]*\p{Lu}")  # US, U.S., McX: no capital of a sentence's start
_SIGNED = regex.compile(r"\w+(?:[+#♯＋＃*\p{Sc}]|[-\u2212\u2013－](?!\w))")  # A+, O-, US$
_LOWER = regex.compile(r"\p{Ll}")
_SHOUTED = 3  # so many words in capitals are not a row of codes


@cache
def _function_words_by_language() -> tuple[frozenset[str], ...]:
    lines = _FUNCTION_WORDS.read_text(encoding="utf-8")
    paragraphs = [paragraph.partition("\n")[2] for paragraph in lines.split("# ")[2:]]
    return tuple(frozenset(words(paragraph)) for paragraph in paragraphs)


@cache
def function_words() -> frozenset[str]:
    """Returns the folded function words of languages that write capitals."""
    return frozenset().union(*_function_words_by_language())


@cache
def everyday_words() -> frozenset[str]:
    """Returns folded English words, and their plurals, that are names after an article: *the Band*."""
    lines = _EVERYDAY_WORDS.read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in words(line))


class Capitals:
    """Use of capitals in a text."""

    def __init__(self, text: str) -> None:
        """Keeps the text; it is inspected on demand."""
        self._text = text

    @cached_property
    def are_informative(self) -> bool:
        """Whether the text has capitals within sentences, as names have; words in capitals do not count."""
        return _CAPITAL_WITHIN.search(self._text) is not None

    def starts_sentence(self, at: int) -> bool:
        """Returns whether the word at a position is the first of a sentence."""
        before = self._text[max(0, at - _BEFORE) : at]
        match = _SENTENCE_START.search(before)
        return match is not None and (at <= _BEFORE or match.end() > match.start() > 0)

    def is_initial_function_word(self, at: int, word: str) -> bool:
        """Returns whether a word begins a sentence and is a function word of its language, as *Como* in Spanish."""
        if not self.starts_sentence(at) or self._is_marked(at):
            return False
        around = words(self._text[at : at + _AFTER])
        counts = [
            (sum(map(grammar.__contains__, around)), word in grammar) for grammar in _function_words_by_language()
        ]
        most = max(count for count, _ in counts)
        return any(count == most and known for count, known in counts)

    def _is_marked(self, at: int) -> bool:
        """Returns whether a word has a sign, or several capitals where not all words are in capitals."""
        if _SIGNED.match(self._text, at):
            return True
        around = self._text[at : at + _AFTER]
        return bool(_SEVERAL.match(around) and (_LOWER.search(around) or len(words(around)) < _SHOUTED))


class Spelling:
    """Spelling of a name, to be compared with that in a text."""

    def __init__(self, name: Sequence[str], *, article_left_out: bool) -> None:
        """Classifies the words of the name, which are folded except for case."""
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
        self.is_pronoun_i = cased == ["I"] == list(name)
        """Whether the name is *I*, which is always a capital: a search for iodine would match every first person."""

    def fits(self, text: Sequence[str], at: int, capitals: Capitals, *, strict: bool) -> bool:
        """Returns whether words of a text can be the name.

        Args:
            text: as many words as the name has, folded except for case.
            at: their position in the text.
            capitals: use of capitals in the text.
            strict: whether names that are not codes need their capitals, too.
        """
        if self._free:
            return True
        if strict and self._everyday and text[-1][:1].isupper() and capitals.starts_sentence(at):
            return False
        if self._exact:
            if self._name != tuple(text) and not self._is_raised(text, at, capitals):
                return False
            return not (
                strict and self._grammar and self._single and capitals.is_initial_function_word(at, text[-1].lower())
            )
        if not strict:
            return True
        lowered = any(
            one[:1].isupper() and not other[:1].isupper() and one.lower() not in function_words()
            for one, other in zip(self._name, text, strict=True)
        )
        return not lowered or self._several or not capitals.are_informative

    def _is_raised(self, text: Sequence[str], at: int, capitals: Capitals) -> bool:
        """Returns whether only the first letter differs, at a sentence's start or in *the* of *The Who*."""
        one, other = self._name[0], text[0]
        if self._name[1:] != tuple(text[1:]) or one.lower() != other.lower() or one[1:] != other[1:]:
            return False
        return capitals.starts_sentence(at) if one[:1].islower() else one.lower() in ARTICLES and len(text) > 1
