"""Decontamination: finds general text that states a studied fact, and removes it.

A text states a fact if it names subject and object, by name or alias (see ``mentions.py``). Level ``document`` tests
whole documents; ``sentence`` tests single sentences, which removes less text but keeps a fact that is stated over two
sentences.
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
from megatron_kis.common.units import plural
from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.mentions.name_finder import NameFinder
from megatron_kis.data_tools.mentions.sentence_spans import sentence_spans
from megatron_kis.data_tools.readers.documents import Document

LEVELS = ("document", "sentence")
"""Units of text in which subject and object must both be named."""

_Span = tuple[int, int]
_BATCH = 1 << 18  # characters searched together
_LISTED = 10  # facts listed in a summary


@dataclass(slots=True)
class DecontaminationStats:
    """Counts of the documents, sentences and characters that state facts."""

    documents: int = 0
    """Documents that state at least one studied fact."""
    sentences: int = 0
    """Sentences that state facts, at level ``sentence``."""
    facts: Counter[str] = field(default_factory=Counter)
    """Number of documents that state a fact, by fact id."""
    characters: int = 0
    """Characters of the documents, or at level ``sentence`` of the sentences, that state facts."""
    over_sentences: set[str] = field(default_factory=set)
    """Facts named only in different sentences of a document, at level ``sentence``."""
    unsearchable: list[str] = field(default_factory=list)
    """Names that cannot be found in text: without letters, digits and symbols, or the single letter I."""
    all_documents: int = 0
    """Number of documents read."""
    all_characters: int = 0
    """Characters of all documents read."""

    def add(self, identifiers: Iterable[str]) -> None:
        """Counts one document that states these facts."""
        self.documents += 1
        self.facts.update(identifiers)

    def summary(self, facts: int, level: str) -> list[str]:
        """Describes the counts in lines of text; ``facts`` is the number of studied facts."""
        sentences = f"{plural(self.sentences, 'sentence')} in " if level == "sentence" else ""
        share = self.characters / max(1, self.all_characters)
        lines = [
            f"leaks of {len(self.facts):,} of {plural(facts, 'fact')}: {sentences}{self.documents:,} of "
            f"{plural(self.all_documents, 'document')}, {self.characters:,} of {self.all_characters:,} characters "
            f"({share:.2%})"
        ]
        if level == "sentence":
            lines.append(f"also stated across sentences of a document: {plural(len(self.over_sentences), 'fact')}")
        if self.unsearchable:
            shown = ", ".join(map(repr, self.unsearchable[:_LISTED]))
            lines.append(f"not searched for: {plural(len(self.unsearchable), 'name')} of facts ({shown})")
        return lines + [f"{count:8d}  {fact}" for fact, count in self.facts.most_common(_LISTED)]


@dataclass(frozen=True, slots=True)
class Match:
    """A document or sentence that states facts."""

    span: _Span
    """Half-open character range in the document."""
    facts: tuple[str, ...]
    """Sorted ids of the facts."""


class FactMatcher:
    """Finds which of the studied facts a text states."""

    def __init__(self, facts: Iterable[Fact]) -> None:
        """Indexes the names of the facts, of whatever group."""
        self._names = NameFinder()
        self.unsearchable: list[str] = []
        """Names that cannot be found in any text."""
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
        self.unsearchable += [form for form, number in numbers.items() if number is None]
        return frozenset(number for number in numbers.values() if number is not None)

    def facts_in(self, text: str) -> list[str]:
        """Returns the sorted ids of the facts that a document states."""
        return self.facts_in_each([text])[0]

    def facts_in_each(self, texts: Sequence[str]) -> list[list[str]]:
        """Applies :meth:`facts_in` to several documents in one search."""
        found: list[list[str]] = [[] for _ in texts]
        for candidates in self._names.candidates(texts):
            if wanted := self._involved(candidates.numbers):
                named = self._names.mentions(candidates, wanted, every=False).keys()
                found[candidates.text_index] = sorted({self._ids[row] for row, _ in self._stated(named)})
        return found

    def _stated(self, names: Set[int]) -> Iterator[tuple[int, int]]:
        """Yields rows of facts of which subject and object are among the names, each with its subject's number."""
        for name in names:
            for row in self._subjects.get(name, ()):
                objects = self._objects[row]
                # One name that subject and object share says nothing by itself.
                if not objects.isdisjoint(names) and (name not in objects or len(objects & names) > 1):
                    yield row, name

    def _involved(self, candidates: Set[int]) -> set[int]:
        """Returns the candidates that would state a fact together with another one."""
        involved: set[int] = set()
        for row, subject in self._stated(candidates):
            involved.add(subject)
            involved.update(self._objects[row] & candidates)
        return involved

    def sentence_matches(self, text: str) -> list[Match]:
        """Returns the sentences that state facts, in their order."""
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
        matches = []
        for sentence, names in sorted(named.items()):
            if stated := sorted({self._ids[row] for row, _ in self._stated(names)}):
                matches.append(Match(spans[sentence], tuple(stated)))
        return matches


def without_matches(text: str, matches: Iterable[Match]) -> str:
    """Removes the parts of a text that state facts; returns the empty string if nothing visible is left."""
    kept, at = [], 0
    for match in matches:
        kept.append(text[at : match.span[0]])
        at = match.span[1]
    return "".join([*kept, text[at:]]).strip()


def iter_matches(
    documents: Iterable[Document], facts: Iterable[Fact], count: DecontaminationStats, *, level: str = "document"
) -> Iterator[tuple[Document, list[Match]]]:
    """Yields every document with its matches, and adds to ``count``.

    Raises:
        InputError: an unknown level.
    """
    if level not in LEVELS:
        raise InputError(f"unknown level {level!r}", where="level", remedy=f"valid: {', '.join(LEVELS)}")
    matcher = FactMatcher(facts)
    count.unsearchable = matcher.unsearchable
    for document, stated in _with_stated_facts(documents, matcher):
        matches = [Match((0, len(document.text)), tuple(stated))] if stated else []
        if stated and level == "sentence":
            matches = matcher.sentence_matches(document.text)
            count.over_sentences.update(set(stated).difference(*(match.facts for match in matches)))
        count.all_documents += 1
        count.all_characters += len(document.text)
        if matches:
            count.add({identifier for match in matches for identifier in match.facts})
            count.sentences += len(matches) if level == "sentence" else 0
            count.characters += sum(end - start for start, end in (match.span for match in matches))
        yield document, matches


def _with_stated_facts(documents: Iterable[Document], matcher: FactMatcher) -> Iterator[tuple[Document, list[str]]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH:
            yield from zip(batch, matcher.facts_in_each([one.text for one in batch]), strict=True)
            batch, characters = [], 0
    yield from zip(batch, matcher.facts_in_each([one.text for one in batch]), strict=True)


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
    """Lists the text that states facts and writes the text without it, in one pass.

    Args:
        documents: general text.
        facts: studied facts of all groups.
        count: statistics to add to.
        level: ``document`` or ``sentence``: the unit that states a fact and is removed.
        listing: JSON lines to write, see :func:`match_row`.
        clean: JSON lines to write, ``{text_key: text}`` of each document that has something left; ``.gz`` compresses.
        text_key: key of the text in them.

    Raises:
        InputError: a name that cannot be written, or an unknown level.
    """
    if clean is not None and not clean.name.removesuffix(".gz").endswith(".jsonl"):
        raise InputError("is not a name of a JSON Lines file", where=str(clean), remedy="expected .jsonl or .jsonl.gz")
    with ExitStack() as stack:
        rows = stack.enter_context(atomic_write(listing)) if listing else None
        texts = stack.enter_context(_text_writer(clean)) if clean else None
        for document, matches in iter_matches(documents, facts, count, level=level):
            if rows and matches:
                rows.write(json.dumps(match_row(document, matches, level), ensure_ascii=False) + "\n")
            if texts:
                kept = without_matches(document.text, matches) if matches else document.text
                if kept:
                    texts.write(json.dumps({text_key: kept}, ensure_ascii=False) + "\n")


@contextmanager
def _text_writer(path: Path) -> Iterator[IO[str]]:
    with atomic_path(path) as partial, open(partial, "wb") as raw:
        # No time stamp: the same text gives the same bytes.
        packed = gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) if path.suffix == ".gz" else raw
        with packed, io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as file:
            yield file


def match_row(document: Document, matches: Iterable[Match], level: str) -> dict[str, Any]:
    """Returns ``{"source", "line", "facts"}``, and for sentences ``{"start", "end", "facts"}`` of each."""
    found = list(matches)
    facts = sorted({identifier for match in found for identifier in match.facts})
    row: dict[str, Any] = {"source": str(document.source), "line": document.line, "facts": facts}
    if level == "sentence":
        row["sentences"] = [
            {"start": match.span[0], "end": match.span[1], "facts": list(match.facts)} for match in found
        ]
    return row
