"""Finds general text that states a studied fact, and takes it out.

A text states a fact where it names subject and object, by name or alias, as whole words. Case and accents do not
matter, save for codes: Oregon's alias OR is not the word "or". ``document`` asks this of whole documents; ``sentence``
of single sentences, which spares more text but not a fact that is told over two sentences.

All names go into one Aho-Corasick automaton, so that the text is searched once for all of them.
"""

from __future__ import annotations

import gzip
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import IO, Any

from data_tools.facts import Fact
from data_tools.mentions import line_of_words, name_words
from data_tools.text import Document
from megatron_kis.errors import InputError
from megatron_kis.files import atomic_path, atomic_write

LEVELS = ("document", "sentence")
"""Where subject and object must stand together."""

_Span = tuple[int, int]
_CODE = re.compile(r"[A-Z]{1,4}")  # names that are words, too, once their case is gone: OR, US, SIN
_BATCH = 1 << 18  # characters that are searched together
_SHOWN = 10  # facts that a summary names

# What may end a sentence: its mark, closing quotes or brackets, space, and something that can begin another.
_SENTENCE_END = re.compile(r"""([.!?…。!?])["'\u201d\u2019»)\]]*\s+(?=["'\u201c\u2018«(\[]*[^\W_a-z])|\n\s*\n""")
# Words whose full stop ends none, beside all of one or two letters ("J. Brahms", "St. Louis"): to cut too little costs
# a few words of text, to cut too much would overlook a leak.
_TITLES = frozenset(["Mrs", "Gen", "Col", "Rev", "Gov", "Sen", "Rep", "Hon", "Prof", "Capt", "Inc", "Ltd", "Corp"])
_LONGEST_TITLE = max(map(len, _TITLES))


@dataclass(slots=True)
class LeakCount:
    """What was found in a text."""

    documents: int = 0
    """Documents that state at least one studied fact."""
    sentences: int = 0
    """Sentences that do, where sentences are asked for."""
    facts: Counter[str] = field(default_factory=Counter)
    """Documents that state a fact, by fact id."""
    characters: int = 0
    """Characters of the text that states facts: of its documents, or of its sentences."""
    over_sentences: set[str] = field(default_factory=set)
    """Facts whose subject and object stand in different sentences of a document, where sentences are asked for."""
    all_documents: int = 0
    """Documents that were read."""
    all_characters: int = 0
    """Their characters."""

    def add(self, identifiers: Iterable[str]) -> None:
        """Counts one document that states these facts."""
        self.documents += 1
        self.facts.update(identifiers)

    def summary(self, facts: int, level: str) -> list[str]:
        """What was found, in lines to read; ``facts`` is the number of studied facts."""
        parts = f"{self.sentences} sentences in {self.documents}" if level == "sentence" else f"{self.documents}"
        share = self.characters / max(1, self.all_characters)
        lines = [
            f"{parts} of {self.all_documents} documents state {len(self.facts)} of {facts} facts:"
            f" {self.characters} of {self.all_characters} characters ({share:.2%})"
        ]
        if level == "sentence":
            lines.append(f"{len(self.over_sentences)} facts are told over several sentences of a document as well")
        return lines + [f"{count:8d}  {fact}" for fact, count in self.facts.most_common(_SHOWN)]


@dataclass(frozen=True, slots=True)
class Leak:
    """A document or sentence that states facts."""

    span: _Span
    """Half-open character range in the document."""
    facts: tuple[str, ...]
    """Ids, sorted."""


class LeakFinder:
    """An automaton of the studied facts' names."""

    def __init__(self, facts: Iterable[Fact]) -> None:
        """Builds the automaton; facts of all groups count."""
        from ahocorasick_rs import AhoCorasick, Implementation

        names: dict[str, int] = {}
        not_codes: set[int] = set()
        codes: dict[int, str] = {}

        def numbers(*forms: str) -> set[int]:
            found = set()
            for form in forms:
                if words := name_words(form):
                    number = names.setdefault(f" {' '.join(words)} ", len(names))
                    found.add(number)
                    if _CODE.fullmatch(form):
                        codes[number] = form
                    else:
                        not_codes.add(number)
            return found

        self._ids: list[str] = []
        self._objects: list[frozenset[int]] = []
        self._subjects: dict[int, list[int]] = defaultdict(list)
        for row, fact in enumerate(facts):
            self._ids.append(fact.id)
            self._objects.append(frozenset(numbers(fact.object, *fact.object_aliases)))
            for subject in numbers(fact.subject, *fact.subject_aliases):
                self._subjects[subject].append(row)
        self._codes = {
            number: re.compile(rf"(?<!\w){code}(?!\w)") for number, code in codes.items() if number not in not_codes
        }
        self._automaton = AhoCorasick(list(names), implementation=Implementation.ContiguousNFA) if names else None

    def find(self, text: str) -> list[str]:
        """Ids of the facts that a document states, sorted."""
        return self.find_all([text])[0]

    def find_all(self, texts: Sequence[str]) -> list[list[str]]:
        """Ids of the facts that each of several documents states, as :meth:`find` of each, in one search."""
        if self._automaton is None:
            return [[] for _ in texts]
        lines = list(map(line_of_words, texts))
        ends = list(accumulate(map(len, lines)))
        found: list[set[int]] = [set() for _ in texts]
        document = 0
        # Names hold single spaces and lines begin and end with one: no name is found across two documents.
        for name, _, end in self._automaton.find_matches_as_indexes("".join(lines), overlapping=True):
            while ends[document] < end:  # matches come in the order of their ends
                document += 1
            found[document].add(name)
        return [self._stated(text, names) if len(names) > 1 else [] for text, names in zip(texts, found, strict=True)]

    def _stated(self, text: str, found: set[int]) -> list[str]:
        if not self._codes.keys().isdisjoint(found):
            found = {name for name in found if name not in self._codes or self._codes[name].search(text)}
        pairs = ((name, row) for name in found for row in self._subjects.get(name, ()))
        # One name that subject and object share says nothing by itself.
        return sorted({self._ids[row] for name, row in pairs if not found.isdisjoint(self._objects[row] - {name})})

    def find_sentences(self, text: str) -> list[Leak]:
        """The sentences that state facts, in their order."""
        spans = sentence_spans(text)
        stated = zip(spans, self.find_all([text[slice(*span)] for span in spans]), strict=True)
        return [Leak(span, tuple(facts)) for span, facts in stated if facts]


def sentence_spans(text: str) -> list[_Span]:
    """Half-open character ranges of a text's sentences, space behind them included: together they are the text."""
    ends = (match.end() for match in _SENTENCE_END.finditer(text) if not _abbreviates(text, match))
    return [(start, end) for start, end in pairwise([0, *ends, len(text)]) if start < end]


def _abbreviates(text: str, mark: re.Match[str]) -> bool:
    if mark[1] != ".":
        return False
    word = re.split(r"\W", text[max(0, mark.start() - _LONGEST_TITLE - 1) : mark.start()])[-1]
    return word.isalpha() and (len(word) <= 2 or word in _TITLES)


def without(text: str, leaks: Iterable[Leak]) -> str:
    """A text without the parts that state facts; empty where nothing visible is left."""
    kept, at = [], 0
    for leak in leaks:
        kept.append(text[at : leak.span[0]])
        at = leak.span[1]
    return "".join([*kept, text[at:]]).strip()


def iter_document_leaks(
    documents: Iterable[Document], facts: Iterable[Fact], count: LeakCount, *, level: str = "document"
) -> Iterator[tuple[Document, list[Leak]]]:
    """Yields every document with its leaks, and counts into ``count``.

    Raises:
        InputError: an unknown level.
    """
    if level not in LEVELS:
        raise InputError(f"unknown level {level!r}", where="level", remedy=f"valid: {', '.join(LEVELS)}")
    finder = LeakFinder(facts)
    for document, stated in _stated_by_each(documents, finder):
        leaks = [Leak((0, len(document.text)), tuple(stated))] if stated else []
        if stated and level == "sentence":
            leaks = finder.find_sentences(document.text)
            count.over_sentences.update(set(stated).difference(*(leak.facts for leak in leaks)))
        count.all_documents += 1
        count.all_characters += len(document.text)
        if leaks:
            count.add({identifier for leak in leaks for identifier in leak.facts})
            count.sentences += len(leaks) if level == "sentence" else 0
            count.characters += sum(end - start for start, end in (leak.span for leak in leaks))
        yield document, leaks


def _stated_by_each(documents: Iterable[Document], finder: LeakFinder) -> Iterator[tuple[Document, list[str]]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH:
            yield from zip(batch, finder.find_all([one.text for one in batch]), strict=True)
            batch, characters = [], 0
    yield from zip(batch, finder.find_all([one.text for one in batch]), strict=True)


def filter_leaks(
    documents: Iterable[Document],
    facts: Iterable[Fact],
    count: LeakCount,
    *,
    level: str = "document",
    listing: Path | None = None,
    clean: Path | None = None,
    text_key: str = "text",
) -> None:
    """Lists leaks and writes the text without them, in one pass.

    Args:
        documents: general text.
        facts: studied facts of all groups.
        count: where to count.
        level: ``document`` or ``sentence``: what states a fact, and what is left out.
        listing: JSON lines to write, see :func:`leak_row`.
        clean: JSON lines to write, ``{text_key: text}`` of each document that has something left; ``.gz`` compresses.
        text_key: key of the text in them.

    Raises:
        InputError: a name that cannot be written, or an unknown level.
    """
    if clean is not None and not clean.name.removesuffix(".gz").endswith(".jsonl"):
        raise InputError("is no name for JSON lines", where=str(clean), remedy="expected .jsonl or .jsonl.gz")
    with ExitStack() as stack:
        rows = stack.enter_context(atomic_write(listing)) if listing else None
        texts = stack.enter_context(_text_writer(clean)) if clean else None
        for document, leaks in iter_document_leaks(documents, facts, count, level=level):
            if rows and leaks:
                rows.write(json.dumps(leak_row(document, leaks, level), ensure_ascii=False) + "\n")
            if texts:
                kept = without(document.text, leaks) if leaks else document.text
                if kept:
                    texts.write(json.dumps({text_key: kept}, ensure_ascii=False) + "\n")


@contextmanager
def _text_writer(path: Path) -> Iterator[IO[str]]:
    with atomic_path(path) as partial, open(partial, "wb") as raw:
        # Without a time stamp the same text gives the same bytes.
        packed = gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) if path.suffix == ".gz" else raw
        with packed, io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as file:
            yield file


def iter_leaks(
    documents: Iterable[Document], facts: Iterable[Fact], count: LeakCount, *, level: str = "document"
) -> Iterator[dict[str, Any]]:
    """Yields a row of each document that states a fact, and counts into ``count``; see :func:`leak_row`."""
    for document, leaks in iter_document_leaks(documents, facts, count, level=level):
        if leaks:
            yield leak_row(document, leaks, level)


def leak_row(document: Document, leaks: Iterable[Leak], level: str) -> dict[str, Any]:
    """``{"source", "line", "facts"}``, and for sentences ``"sentences"``: ``{"start", "end", "facts"}`` of each."""
    found = list(leaks)
    facts = sorted({identifier for leak in found for identifier in leak.facts})
    row: dict[str, Any] = {"source": str(document.source), "line": document.line, "facts": facts}
    if level == "sentence":
        row["sentences"] = [{"start": leak.span[0], "end": leak.span[1], "facts": list(leak.facts)} for leak in found]
    return row
