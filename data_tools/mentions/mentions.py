"""Mentions of a name in text: positions that may be one, and the tests that decide.

A name is searched by its patterns in the folded text (``folding.py``). A position that has one is then tested: by the
letters attached to it (``scripts.py``), by case (``capitals.py``), by signs and separators of numbers
(``numerals.py``), and by symbols, which belong to names: ``C`` is not in ``C++``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import regex

from megatron_kis.data_tools.facts.folding import FoldedText, cased, composed, words
from megatron_kis.data_tools.mentions import numerals
from megatron_kis.data_tools.mentions.capitals import Capitals, Spelling, function_words
from megatron_kis.data_tools.mentions.scripts import (
    SPLIT_SCRIPTS,
    Glue,
    can_be_name_at,
    glue_after,
    glue_before,
    is_glued,
    script_of,
)

Span = tuple[int, int]
"""Half-open range of characters."""

_ARTICLE = regex.compile(r"\s*(the|an?)\s+(?=[^\W_])", regex.IGNORECASE)
_NOTE = regex.compile(r"(.*\w.*?)\s*(?:\([^()]*\)|（[^（）]*）)")  # "Mercury (planet)" is called Mercury
_INITIALS = regex.compile(r"(?<![\w.])(?:\p{Lu}\.\s?){2,}(?:\p{Lu}(?!\w))?|(?<!\w)\p{Lu}{2,5}(?!\w)")
_MOST_VARIANTS = 8
_SIGNS = str.maketrans("＋＃♯\u2212\u2013－", "+##---")
_MARKS = str.maketrans("％٪＄￥￡＋＃♯\u2212\u2010\u2011\u2013－‘’ʻʼ＇\u00a0\u202f", "%%$¥£+##-----'''''  ")
_AFTER = regex.compile(r"[+#♯＋＃*]+|[-\u2212\u2013－](?!\w)")
_BEFORE = regex.compile(r"(?:[#@°\p{Sc}]|(?<!\.)\.)$")
_BEFORE_NUMBER = regex.compile(r"([[\p{Sm}\p{Sc}\p{So}#@§]--[\u2212]])\s?[.٫]?$", regex.V1)
_UNIT = regex.compile(r"\s?([%‰\p{Sc}]|°(?!\w))")  # after a number
_MONEY = regex.compile(r"\p{Sc}")
_SYMBOL = regex.compile(r"[\p{S}#]")
_MATHS = regex.compile(r"[\p{Sm}#^`]")
_PART_OF_SIGN = regex.compile(r"[\p{M}\u200D\p{Emoji_Modifier}]")
_SYMBOLS = regex.compile(r"[+#♯=<>±×÷√∞＋＃%\p{Sc}]")
_BREAK = regex.compile(r"[;:!?…]|\n\s*\n")  # no name continues over it, unless it is written so
_JOINT = regex.compile(r"[·・‧•=＝]|\n")  # between parts of names in scripts without spaces
_SHORT = 2  # letters of a name whose minus is seldom a hyphen: A-, AB-


@lru_cache(1 << 14)
def name_words(name: str) -> tuple[str, ...]:
    """Returns the folded words of a name without a leading article: text says "Bahamas" and means "The Bahamas"."""
    return tuple(words(_without_article(name)))


def _without_article(name: str) -> str:
    """Removes an article that text may leave out; *The Who* keeps its own."""
    match = _ARTICLE.match(name)
    if match is None or words(name[match.end() :])[0] in function_words():
        return name
    return name[match.end() :]


def pattern_of(name: Sequence[str]) -> str:
    """Returns the string that a folded line contains wherever it may mention a name of these folded words."""
    found = " ".join(name)
    before, after = glue_before(name), glue_after(name)
    if before:
        found = before.stem + found[len(name[0]) :]
    if after:
        found = found[: len(found) - len(name[-1])] + after.stem
    return f"{'' if before else ' '}{found}{'' if after else ' '}"


class SearchedText(FoldedText):
    """A text in which names are searched."""

    @cached_property
    def capitals(self) -> Capitals:
        """Use of capitals in the text."""
        return Capitals(self.text)


@dataclass(frozen=True, slots=True)
class _Part:
    """A word of a name, initials that may be one word, or a number."""

    variants: tuple[tuple[str, ...], ...]
    """Alternatives for it in text, as folded words."""
    cased: str
    gap: str
    """Characters between it and the part before."""
    number: frozenset[str] = frozenset()
    initials: bool = False


@dataclass(frozen=True, slots=True)
class Mention:
    """A position in text that mentions a name."""

    start: int
    """Start in the text in composed form."""
    end: int
    glued: bool
    """Whether the name is part of a longer run of letters."""


class Name:
    """One written form of a name."""

    def __init__(self, written: str) -> None:
        """Splits the form into parts."""
        note = _NOTE.fullmatch(written)
        self._written = composed(written).strip()
        full = composed(note[1] if note else written).strip()
        bare = FoldedText(_without_article(full))
        self._article = full[: len(full) - len(bare.text)].strip()
        self._parts = list(_parts(bare))
        self._spelling = Spelling([part.cased for part in self._parts], article_left_out=bool(self._article))
        self._after = self._before = self._unit = ""
        self._glue_before: Glue | None = None
        self._glue_after: Glue | None = None
        self._variants: list[tuple[tuple[str, ...], ...]] = []
        self._split = False
        self.searchable = bool(self._parts) and not self._spelling.is_pronoun_i
        """Whether the name can be found in text: it has letters or digits, and is not the English I."""
        if not self._parts:
            return
        first, last = bare.source_range(1, 2)[0], bare.source_range(len(bare.line) - 2, len(bare.line) - 1)[1]
        if match := _AFTER.match(bare.text, last):
            self._after = match[0].translate(_SIGNS)
        self._lead = bare.text[:first]
        self._first = _BEFORE_NUMBER if self._parts[0].number else _BEFORE
        if match := self._first.search(self._lead.translate(_MARKS)):
            self._before = match[match.lastindex or 0]
        if self._parts[-1].number and (match := _UNIT.match(bare.text[last : last + 3].translate(_MARKS))):
            self._unit = match[1]
        folded = [word for part in self._parts for word in part.variants[0]]
        self._glue_before, self._glue_after = glue_before(folded), glue_after(folded)
        self._split = bool({script_of(bare.text[first]), script_of(bare.text[last - 1])} & set(SPLIT_SCRIPTS))
        self._variants = list(
            itertools.islice(itertools.product(*(part.variants for part in self._parts)), _MOST_VARIANTS)
        )

    @property
    def key(self) -> str:
        """Key that forms of one name share if they differ in case, accents or separators only."""
        parts = [
            f"{''.join(_SYMBOLS.findall(part.gap))} {min(part.number) if part.number else ' '.join(part.variants[0])}"
            for part in self._parts
        ]
        return f"{self._before}{''.join(parts).strip()}{self._after}{self._unit}"

    @cached_property
    def patterns(self) -> list[str]:
        """Strings of which a folded line contains one wherever it may mention the name; indexed by :meth:`match_at`."""
        return [pattern_of([word for part in variant for word in part]) for variant in self._variants]

    @property
    def may_be_glued(self) -> bool:
        """Whether a mention may be part of a longer run of letters."""
        return self._split or self._glue_before is not None or self._glue_after is not None

    def match_at(
        self, text: SearchedText, start: int, end: int, variant: int, *, strict: bool = True
    ) -> Mention | None:
        """Returns the mention, if a position with a pattern is one.

        Args:
            text: the text.
            start: start of the pattern in the text's folded line.
            end: its end.
            variant: index of the pattern.
            strict: whether names that are not codes need their capitals.
        """
        line = text.line
        start, end = start + (line[start] == " "), end - (line[end - 1] == " ")
        glued = False
        if self._glue_before:
            run = line[line.rfind(" ", 0, start) + 1 : start]
            own = self._parts[0].variants[0][0].removesuffix(self._glue_before.stem)
            if not (run == own or self._glue_before.around.fullmatch(run)):
                return None
            start -= len(own) if run.endswith(own) else 0
            glued = run != own
        if self._glue_after:
            run = line[end : line.find(" ", end)]
            own = self._parts[-1].variants[0][-1].removeprefix(self._glue_after.stem)
            if not self._glue_after.around.fullmatch(run):
                return None
            end += len(own) if run.startswith(own) else 0
            glued = glued or run != own
        places = [text.source_range(match.start(), match.end()) for match in _WORD.finditer(line, start, end)]
        first, last = places[0][0], places[-1][1]
        if self._split:
            if not can_be_name_at(text.text, first, last):
                return None
            glued = is_glued(text.text, last)
        spelled = self._spelled(text.text, places, self._variants[variant])
        if spelled is None or not self._has_its_symbols(text.text, first, last):
            return None
        if not self._spelling.fits(spelled, first, text.capitals, strict=strict):
            return None
        return self._whole(text.text, first, last, glued)

    def _spelled(self, text: str, places: Sequence[Span], variant: Sequence[Sequence[str]]) -> list[str] | None:
        """Returns the words of a position in their own case; None if numbers or characters between words do not fit."""
        found: list[str] = []
        at = 0
        for number, (part, variants) in enumerate(zip(self._parts, variant, strict=True)):
            (start, end), inner = places[at], places[at : at + len(variants)]
            end = inner[-1][1]
            if at and not self._joins(text[places[at - 1][1] : start], part.gap):
                return None
            if part.number:
                last = number + 1 == len(self._parts) or not _same(text, end, self._parts[number + 1].gap)
                if not numerals.is_number_at(text, start, end, part.number, first=not at, last=last):
                    return None
            if part.initials and not all(
                "." in (gap := text[one[1] : other[0]]) or (len(self._parts) > 1 and gap.isspace())
                for one, other in itertools.pairwise(inner)
            ):
                return None
            found.append(cased(text[start:end]))
            at += len(variants)
        return found

    def _joins(self, gap: str, own: str) -> bool:
        """Returns whether a text's characters between two words are compatible with the name's own."""
        if gap == own:
            return True
        if sorted(_SYMBOLS.findall(gap)) != sorted(_SYMBOLS.findall(own)):
            return False
        if self._split and not own:
            return not gap or _JOINT.fullmatch(gap) is not None
        return bool(gap or self._split) and not (_BREAK.search(gap) and gap.strip() != own.strip())

    def _has_its_symbols(self, text: str, start: int, end: int) -> bool:
        match = _AFTER.match(text, end)
        after = match[0].translate(_SIGNS) if match else ""
        money = _MONEY.search(self._before + self._unit)
        found = self._first.search(text[max(0, start - 3) : start].translate(_MARKS))
        before = found[found.lastindex or 0] if found else ""
        found = _UNIT.match(text[end : end + 3].translate(_MARKS))
        unit = found[1] if found else ""
        if money and self._parts[0].number and len(self._parts) == 1:  # 5 € is €5
            if money[0] not in (before, unit):
                return False
        elif (self._before and before != self._before) or (self._unit and unit != self._unit):
            return False
        if self._after:
            return after == self._after
        size = sum(len(part.cased) for part in self._parts)
        if size == 1 and self._parts[0].cased.upper() != self._parts[0].cased.lower():  # of letters such as C
            before = text[max(0, start - 2) : start]
            following = text[end : end + 3]
            if (
                (not self._before and regex.search(r"[°º]\s?$", before))
                or regex.fullmatch(r"\w[-'’&]", before)
                or regex.match(r"[-&]\w|['’](?!s(?!\w))\w", following)
            ):
                return False
        return not ("+" in after or "#" in after or (after == "-" and size <= _SHORT))

    def _whole(self, text: str, start: int, end: int, glued: bool) -> Mention:
        """Extends a mention to its article and to the whole written form."""
        head = start - len(self._article) - 1
        has_article = self._article and head >= 0 and text[head : start - 1].casefold() == self._article.casefold()
        if has_article and not (head and text[head - 1].isalnum()):
            start = head
        elif self._lead and _same(text, max(0, start - len(self._lead)), self._lead):
            start -= len(self._lead)
        if _same(text, start, self._written):
            end = max(end, start + len(self._written))
        return Mention(start, end, glued)


_WORD = regex.compile(r"[^ ]+")


def _same(text: str, start: int, written: str) -> bool:
    """Returns whether a text has these characters at a position, for any kind of minus or apostrophe."""
    return text[start : start + len(written)].translate(_MARKS) == written.translate(_MARKS)


def _parts(bare: FoldedText) -> Iterator[_Part]:
    places = [bare.source_range(match.start(), match.end()) for match in _WORD.finditer(bare.line)]
    found = bare.line.split()
    ends = {end for _, end in places}
    numbers = {match.start(): match.end() for match in numerals.NUMBER.finditer(bare.text) if match.end() in ends}
    initials = {match.start(): match.end() for match in _INITIALS.finditer(bare.text)}
    at = past = 0
    while at < len(places):
        start = places[at][0]
        gap = bare.text[past:start]
        count = 1
        number: frozenset[str] = frozenset()
        variants: list[tuple[str, ...]] = []
        if start in numbers and (number := numerals.number_at(bare.text, start, numbers[start])):
            count = sum(start <= one < numbers[start] for one, _ in places)
            own = tuple(found[at : at + count])
            variants = [
                own,
                *sorted({variant for reading in number for variant in numerals.spellings(reading)} - {own}),
            ]
        elif start in initials and script_of(bare.text[start]) not in SPLIT_SCRIPTS:
            count = sum(start <= one < initials[start] for one, _ in places)
            letters = "".join(found[at : at + count])
            variants = sorted([(letters,), tuple(letters)], key=len, reverse=count > 1)
        past = places[at + count - 1][1]
        written = cased(bare.text[start:past])
        yield _Part(tuple(variants) or ((found[at],),), written, gap, number, len(variants) == 2 and not number)
        at += count


@lru_cache(1 << 16)
def parsed_name(written: str) -> Name:
    """Returns the parsed name of a written form."""
    return Name(written)


def is_symbol_name(name: str) -> bool:
    """Returns whether a name without letters and digits has a symbol, by which it can be found."""
    return not name_words(name) and _SYMBOL.search(name) is not None


def is_symbol_at(text: str, start: int, end: int) -> bool:
    """Returns whether symbols at a position are a name: € and 👍 always are, + is not if it is part of another one."""
    before, after = text[start - 1 : start], text[end : end + 1]
    if _PART_OF_SIGN.match(after) or before == "\u200d":
        return False
    return not (
        _MATHS.search(text, start, end) and any(char.isalpha() or _SYMBOL.match(char) for char in before + after)
    )


def mentions(text: SearchedText, names: Iterable[str], *, strict: bool = True) -> list[Span]:
    """Finds all mentions of any of several forms; returns ranges of the text as it was given, in order."""
    found: set[Span] = set()
    for written in names:
        name = parsed_name(written)
        if is_symbol_name(written):
            signs = regex.finditer(regex.escape(written.strip()), text.text)
            found.update(text.in_original(*sign.span()) for sign in signs if is_symbol_at(text.text, *sign.span()))
        for variant, pattern in enumerate(name.patterns):
            at = text.line.find(pattern)
            while at >= 0:
                if mention := name.match_at(text, at, at + len(pattern), variant, strict=strict):
                    found.add(text.in_original(mention.start, mention.end))
                at = text.line.find(pattern, at + 1)
    return sorted(found)
