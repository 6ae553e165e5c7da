"""Finds general text that states a studied fact, and takes it out.

A text states a fact where it names subject and object, by name or alias (``mentions.py`` says when it does).
``document`` asks this of whole documents; ``sentence`` of single sentences, which spares more text but not a fact that
is told over two sentences.
"""

from __future__ import annotations

import gzip
import io
import json
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import atomic_path, atomic_write
from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.mentions.name_finder import NameFinder
from megatron_kis.data_tools.mentions.sentence_spans import sentence_spans
from megatron_kis.data_tools.readers.documents import Document

LEVELS = ("document", "sentence")
"""Where subject and object must stand together."""

_Span = tuple[int, int]
_BATCH = 1 << 18  # characters that are searched together
_SHOWN = 10  # facts that a summary names


@dataclass(slots=True)
class DecontaminationStats:
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
    unsought: list[str] = field(default_factory=list)
    """Names of facts that cannot be found in text: without letters, digits and symbols, or the single letter I."""
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
        if self.unsought:
            shown = ", ".join(map(repr, self.unsought[:_SHOWN]))
            lines.append(f"{len(self.unsought)} names of facts cannot be looked for: {shown}")
        return lines + [f"{count:8d}  {fact}" for fact, count in self.facts.most_common(_SHOWN)]


@dataclass(frozen=True, slots=True)
class Leak:
    """A document or sentence that states facts."""

    span: _Span
    """Half-open character range in the document."""
    facts: tuple[str, ...]
    """Ids, sorted."""


class FactMatcher:
    """The names of the studied facts, and which of them state a fact together."""

    def __init__(self, facts: Iterable[Fact]) -> None:
        """Reads the names; facts of all groups count."""
        self._names = NameFinder()
        self.unsought: list[str] = []
        """Names that cannot be found in text."""
        self._ids: list[str] = []
        self._objects: list[frozenset[int]] = []
        self._subjects: dict[int, list[int]] = defaultdict(list)
        for row, fact in enumerate(facts):
            self._ids.append(fact.id)
            self._objects.append(self._numbers(fact.object, *fact.object_aliases))
            for subject in self._numbers(fact.subject, *fact.subject_aliases):
                self._subjects[subject].append(row)
        self._names.build()

    def _numbers(self, *forms: str) -> frozenset[int]:
        numbers = {form: self._names.add(form) for form in forms}
        self.unsought += [form for form, number in numbers.items() if number is None]
        return frozenset(number for number in numbers.values() if number is not None)

    def find(self, text: str) -> list[str]:
        """Ids of the facts that a document states, sorted."""
        return self.find_all([text])[0]

    def find_all(self, texts: Sequence[str]) -> list[list[str]]:
        """Ids of the facts that each of several documents states, as :meth:`find` of each, in one search."""
        found: list[list[str]] = [[] for _ in texts]
        for candidates in self._names.candidates(texts):
            if wanted := self._involved(candidates.numbers):
                named = self._names.mentions(candidates, wanted, every=False).keys()
                found[candidates.which] = sorted({self._ids[row] for row, _ in self._stated(named)})
        return found

    def _stated(self, names: Set[int]) -> Iterator[tuple[int, int]]:
        """Rows of facts that names state together, each with its subject's number."""
        for name in names:
            for row in self._subjects.get(name, ()):
                objects = self._objects[row]
                # One name that subject and object share says nothing by itself.
                if not objects.isdisjoint(names) and (name not in objects or len(objects & names) > 1):
                    yield row, name

    def _involved(self, candidates: Set[int]) -> set[int]:
        """The names among candidates that would state a fact with another one."""
        involved: set[int] = set()
        for row, subject in self._stated(candidates):
            involved.add(subject)
            involved.update(self._objects[row] & candidates)
        return involved

    def sentence_matches(self, text: str) -> list[Leak]:
        """The sentences that state facts, in their order."""
        candidates = next(self._names.candidates([text]), None)
        wanted = self._involved(candidates.numbers) if candidates else None
        if not candidates or not wanted:
            return []
        spans = sentence_spans(text)
        starts = [start for start, _ in spans]
        named: dict[int, set[int]] = defaultdict(set)
        for number, places in self._names.mentions(candidates, wanted).items():
            for start, end in places:
                sentence = bisect_right(starts, start) - 1
                if end <= spans[sentence][1]:
                    named[sentence].add(number)
        leaks = []
        for sentence, names in sorted(named.items()):
            if stated := sorted({self._ids[row] for row, _ in self._stated(names)}):
                leaks.append(Leak(spans[sentence], tuple(stated)))
        return leaks


def without(text: str, leaks: Iterable[Leak]) -> str:
    """A text without the parts that state facts; empty where nothing visible is left."""
    kept, at = [], 0
    for leak in leaks:
        kept.append(text[at : leak.span[0]])
        at = leak.span[1]
    return "".join([*kept, text[at:]]).strip()


def iter_matches(
    documents: Iterable[Document], facts: Iterable[Fact], count: DecontaminationStats, *, level: str = "document"
) -> Iterator[tuple[Document, list[Leak]]]:
    """Yields every document with its leaks, and counts into ``count``.

    Raises:
        InputError: an unknown level.
    """
    if level not in LEVELS:
        raise InputError(f"unknown level {level!r}", where="level", remedy=f"valid: {', '.join(LEVELS)}")
    finder = FactMatcher(facts)
    count.unsought = finder.unsought
    for document, stated in _stated_by_each(documents, finder):
        leaks = [Leak((0, len(document.text)), tuple(stated))] if stated else []
        if stated and level == "sentence":
            leaks = finder.sentence_matches(document.text)
            count.over_sentences.update(set(stated).difference(*(leak.facts for leak in leaks)))
        count.all_documents += 1
        count.all_characters += len(document.text)
        if leaks:
            count.add({identifier for leak in leaks for identifier in leak.facts})
            count.sentences += len(leaks) if level == "sentence" else 0
            count.characters += sum(end - start for start, end in (leak.span for leak in leaks))
        yield document, leaks


def _stated_by_each(documents: Iterable[Document], finder: FactMatcher) -> Iterator[tuple[Document, list[str]]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH:
            yield from zip(batch, finder.find_all([one.text for one in batch]), strict=True)
            batch, characters = [], 0
    yield from zip(batch, finder.find_all([one.text for one in batch]), strict=True)


def decontaminate(
    documents: Iterable[Document],
    facts: Iterable[Fact],
    count: DecontaminationStats,
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
        listing: JSON lines to write, see :func:`match_row`.
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
        for document, leaks in iter_matches(documents, facts, count, level=level):
            if rows and leaks:
                rows.write(json.dumps(match_row(document, leaks, level), ensure_ascii=False) + "\n")
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
    documents: Iterable[Document], facts: Iterable[Fact], count: DecontaminationStats, *, level: str = "document"
) -> Iterator[dict[str, Any]]:
    """Yields a row of each document that states a fact, and counts into ``count``; see :func:`match_row`."""
    for document, leaks in iter_matches(documents, facts, count, level=level):
        if leaks:
            yield match_row(document, leaks, level)


def match_row(document: Document, leaks: Iterable[Leak], level: str) -> dict[str, Any]:
    """``{"source", "line", "facts"}``, and for sentences ``"sentences"``: ``{"start", "end", "facts"}`` of each."""
    found = list(leaks)
    facts = sorted({identifier for leak in found for identifier in leak.facts})
    row: dict[str, Any] = {"source": str(document.source), "line": document.line, "facts": facts}
    if level == "sentence":
        row["sentences"] = [{"start": leak.span[0], "end": leak.span[1], "facts": list(leak.facts)} for leak in found]
    return row
