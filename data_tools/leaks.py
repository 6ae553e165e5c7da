"""Finds documents of general text that state a studied fact: subject and object in one document, as whole words.

Case and accents do not matter, aliases count. One pass over the text: every document's words are looked up in a
dictionary of subjects, and only the objects of subjects that were found are searched for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from data_tools.facts import Fact
from data_tools.names import name_words, words
from data_tools.text import Document

_Name = tuple[str, ...]


@dataclass(slots=True)
class LeakCount:
    """What was found in a text."""

    documents: int = 0
    """Documents that state at least one studied fact."""
    facts: Counter[str] = field(default_factory=Counter)
    """Documents that state a fact, by fact id."""

    def add(self, identifiers: Iterable[str]) -> None:
        """Counts one document that states these facts."""
        self.documents += 1
        self.facts.update(identifiers)


class LeakFinder:
    """A dictionary of the studied facts' names."""

    def __init__(self, facts: Iterable[Fact]) -> None:
        """Indexes subjects by their first word; facts of all groups count."""
        self._facts: dict[_Name, list[tuple[str, list[str]]]] = defaultdict(list)
        self._lengths: dict[str, set[int]] = defaultdict(set)
        for fact in facts:
            objects = {" ".join(name_words(name)) for name in (fact.object, *fact.object_aliases)}
            padded = [f" {name} " for name in sorted(objects) if name]
            for subject in {name_words(name) for name in (fact.subject, *fact.subject_aliases)}:
                if subject:
                    self._facts[subject].append((fact.id, padded))
                    self._lengths[subject[0]].add(len(subject))

    def find(self, text: str) -> list[str]:
        """Ids of the facts that a document states, sorted."""
        found = words(text)
        subjects: set[_Name] = set()
        for at, word in enumerate(found):
            for length in self._lengths.get(word, ()):
                name = tuple(found[at : at + length])
                if name in self._facts:
                    subjects.add(name)
        if not subjects:
            return []
        line = f" {' '.join(found)} "
        leaks = {
            identifier
            for subject in subjects
            for identifier, objects in self._facts[subject]
            if any(name in line for name in objects)
        }
        return sorted(leaks)


def iter_leaks(documents: Iterable[Document], facts: Iterable[Fact], count: LeakCount) -> Iterator[dict[str, Any]]:
    """Yields ``{"source", "line", "facts"}`` of each document that states a fact, and counts into ``count``."""
    finder = LeakFinder(facts)
    for document in documents:
        stated = finder.find(document.text)
        if stated:
            count.add(stated)
            yield {"source": str(document.source), "line": document.line, "facts": stated}
