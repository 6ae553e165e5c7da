"""Finds many names in text: one Aho-Corasick automaton reads it once, then only relevant candidates are tested."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

import regex

from megatron_kis.data_tools.facts.folding import composed, line_of_words, words
from megatron_kis.data_tools.mentions.capitals import function_words
from megatron_kis.data_tools.mentions.mentions import (
    Mention,
    Name,
    SearchedText,
    Span,
    is_symbol_at,
    is_symbol_name,
    parsed_name,
    pattern_of,
)
from megatron_kis.data_tools.mentions.scripts import GLUING_SCRIPTS, SPLIT_SCRIPTS, can_be_name_at, is_glued, script_of

if TYPE_CHECKING:
    from ahocorasick_rs import AhoCorasick

# Most names are words without initials, numbers of their own, symbols or an article: they need no parsing.
_PLAIN = regex.compile(
    r"(?![Tt]he |[Aa]n? )(?:(?:\p{Lu}?[\p{Ll}\p{M}][\p{L}\p{M}\d]*|\p{Lu}\.)[ ,.'’-]+(?!\p{Lu}\.))*"
    r"\p{Lu}?\p{Ll}[\p{L}\p{M}\d]*",
)
_EASY = 5  # letters
_SIGNS = frozenset("+#♯＋＃")  # a sign after a name makes it another name
_UNCASED = regex.compile(r"[\p{Lo}\p{M}ー ]+")
# Units that may follow a name without making it another one: a city, a province, a country.
_UNITS = frozenset("市都府县縣県省州区區郡州島岛国國시도군구")


_END = itemgetter(2)


class Candidates(NamedTuple):
    """Names that a text may mention."""

    text_index: int
    """Index of the text among several."""
    text: str
    line: str
    """Folded line of the text."""
    numbers: set[int]
    """Numbers of the names."""
    matches: list[tuple[int, int, int]]
    """(Pattern, start, end) of every match in the line."""
    offset: int
    """Start of the line, on the scale of those starts and ends."""


class NameFinder:
    """Searches many names at once; forms that differ in case, accents or separators only share a number."""

    def __init__(self) -> None:
        """Creates an empty finder; :meth:`add` names, then :meth:`build`."""
        self._numbers: dict[str, int] = {}
        self._forms: dict[int, tuple[str, ...]] = {}
        self._patterns: dict[str, int] = {}
        self._owners: list[tuple[int, ...]] = []
        self._first_owner: list[int] = []
        self._more: dict[int, set[int]] = {}  # first owner of a pattern to all others
        self._signs: dict[str, int] = {}
        self._glued: set[int] = set()
        self._easy_glued: set[int] = set()  # the same, in scripts without spaces
        self._easy: set[int] = set()  # names that are one wherever they are written as they are given
        self._automaton: AhoCorasick | None = None
        self._sign_automaton: AhoCorasick | None = None

    def add(self, written: str) -> int | None:
        """Adds a name and returns its number; None if it has no letter, digit or symbol to find it by."""
        plain = _PLAIN.fullmatch(written) is not None
        found = words(written) if plain or _UNCASED.fullmatch(written) else []
        if found:
            key, patterns = " ".join(found), [pattern_of(found)]
            glued = bool({script_of(found[0][0]), script_of(found[-1][-1])} & GLUING_SCRIPTS)
        else:
            name = Name(written)
            if not name.searchable:
                return self._add_sign(composed(written).strip())
            key, patterns, glued = name.key, name.patterns, name.may_be_glued
        number = self._numbers.setdefault(key, len(self._numbers))
        forms = self._forms.get(number, ())
        if written in forms:
            return number
        self._forms[number] = (*forms, written)
        if glued:
            self._glued.add(number)
            if found and script_of(found[0][0]) in SPLIT_SCRIPTS and script_of(found[-1][-1]) in SPLIT_SCRIPTS:
                self._easy_glued.add(number)
        elif plain and len(written) >= _EASY and (len(found) > 1 or found[0] not in function_words()):
            self._easy.add(number)
        for pattern in patterns:
            index = self._patterns.setdefault(pattern, len(self._patterns))
            if index == len(self._owners):
                self._owners.append((number,))
            elif number not in self._owners[index]:
                self._owners[index] += (number,)
        return number

    def _add_sign(self, sign: str) -> int | None:
        if not is_symbol_name(sign):
            return None
        number = self._numbers.setdefault(sign, len(self._numbers))
        self._signs[sign] = number
        return number

    def build(self) -> None:
        """Builds the automaton; no name can be added afterwards."""
        from ahocorasick_rs import AhoCorasick, Implementation

        if self._patterns:
            self._automaton = AhoCorasick(list(self._patterns), implementation=Implementation.ContiguousNFA)
        if self._signs:
            self._sign_automaton = AhoCorasick(list(self._signs), implementation=Implementation.ContiguousNFA)
        self._pattern_list = list(self._patterns)
        for first, *others in self._owners:
            self._first_owner.append(first)
            if others:
                self._more.setdefault(first, set()).update(others)
        self._sign_list = list(self._signs)

    def candidates(self, texts: Sequence[str]) -> Iterator[Candidates]:
        """Yields the names that each text may mention, a superset of those that it does, if there are two or more."""
        lines = list(map(line_of_words, texts))
        # Lines begin and end with a space and patterns have no double ones: no match spans two documents.
        found = self._automaton.find_matches_as_indexes("".join(lines), overlapping=True) if self._automaton else []
        owners = [self._first_owner[match[0]] for match in found]
        more = self._more
        past = offset = 0
        for index, line in enumerate(lines):
            first = past
            past = bisect_right(found, offset + len(line), first, key=_END)  # matches come in the order of their ends
            numbers = set(owners[first:past])
            if more and not more.keys().isdisjoint(numbers):
                numbers.update(*(more[number] for number in numbers & more.keys()))
            if self._sign_automaton:
                numbers.update(number for number, _ in self._sign_mentions(composed(texts[index])))
            if len(numbers) > 1:
                yield Candidates(index, texts[index], line, numbers, found[first:past], offset)
            offset += len(line)

    def mentions(self, candidates: Candidates, wanted: set[int], *, every: bool = True) -> dict[int, list[Span]]:
        """Finds the mentions of some names in a text, by number.

        Args:
            candidates: the text, and the names that it may mention.
            wanted: numbers of the names.
            every: whether to find all mentions; otherwise one per name, in the text's composed form.
        """
        text = SearchedText(candidates.text, candidates.line)
        in_original = text.in_original if every else lambda start, end: (start, end)
        found: dict[int, list[Span]] = defaultdict(list)
        offset = candidates.offset
        glued = not self._glued.isdisjoint(wanted)
        places: list[tuple[int, int, int, bool]] = []
        searchable = wanted | self._glued if glued else wanted
        for pattern, start, end in candidates.matches:
            if searchable.isdisjoint(self._owners[pattern]):
                continue
            for number in searchable.intersection(self._owners[pattern]):
                is_glued = number in self._glued
                if not is_glued and not every and number in found:
                    continue
                mention = self._match(text, number, pattern, start - offset, end - offset)
                if mention and is_glued:
                    places.append((mention.start, -mention.end, number, mention.glued))
                elif mention:
                    found[number].append(in_original(mention.start, mention.end))
        for number, start, end in _uncovered(text.text, sorted(places)):
            if number in wanted:
                found[number].append(in_original(start, end))
        if self._sign_automaton:
            for number, (start, end) in self._sign_mentions(text.text):
                if number in wanted:
                    found[number].append(in_original(start, end))
        return found

    def _match(self, text: SearchedText, number: int, pattern: int, start: int, end: int) -> Mention | None:
        if number in self._easy:
            first, last = text.source_range(start + 1, end - 1)
            if text.text[first:last] in self._forms[number] and text.text[last : last + 1] not in _SIGNS:
                return Mention(first, last, glued=False)
        elif number in self._easy_glued:
            first, last = text.source_range(start + 1, end - 1)
            if text.text[first:last] in self._forms[number]:
                stands = can_be_name_at(text.text, first, last)
                return Mention(first, last, glued=is_glued(text.text, last)) if stands else None
        for form in self._forms[number]:
            name = parsed_name(form)
            for variant, own in enumerate(name.patterns):
                if own == self._pattern_list[pattern] and (mention := name.match_at(text, start, end, variant)):
                    return mention
        return None

    def _sign_mentions(self, text: str) -> Iterator[tuple[int, Span]]:
        """Yields names that are symbols only; one such as + must not be part of a word or a longer sign."""
        assert self._sign_automaton
        for index, start, end in self._sign_automaton.find_matches_as_indexes(text, overlapping=True):
            if is_symbol_at(text, start, end):
                yield self._signs[self._sign_list[index]], (start, end)


def _uncovered(text: str, places: Sequence[tuple[int, int, int, bool]]) -> Iterator[tuple[int, int, int]]:
    """Yields (number, start, end) of mentions that are not part of a longer name's.

    Only a mention attached to other letters can be part of one: a name of whole words within another counts by itself.
    So does one to which the longer name only adds a unit: 北京 in 北京市.

    Args:
        text: the text.
        places: sorted (start, negative end, number, is glued).
    """
    cover = (0, 0)
    for start, negative_end, number, glued in places:
        end = -negative_end
        covered = glued and cover[1] >= end and (start, end) != cover
        if covered and not (cover[0] == start and cover[1] == end + 1 and text[end] in _UNITS):
            continue
        if end > cover[1]:
            cover = (start, end)
        yield number, start, end
