"""The usable facts of a source: what cannot be asked fairly is dropped and counted, in bounded memory.

A fact is usable where its subject has one object in the relation, its name belongs to no other subject, and the names
give nothing away. Subjects and objects are told apart by their ids where the source has some, else by the words of
their names.

Where a source has more triples than ``limit``, a random sample of its subjects is kept: those whose hash lies under a
threshold that is halved when memory is full. All triples of a kept subject are kept, so that what is ambiguous is still
known exactly.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from data_tools.hints import gives_away, holds_name
from data_tools.importers import NOT_SAMPLED, Candidate, Dropped, Imported
from data_tools.mentions import name_words

AMBIGUOUS_OBJECTS = "ambiguous: the subject has several objects"
AMBIGUOUS_NAMES = "ambiguous: several entities bear the subject's name"
REPEATED = "said twice"
NO_WORDS = "no letter or digit in a name"
OBJECT_INSIDE = "the object stands in the subject's name"
TELLING = "the subject's name hints at the object"


@dataclass(slots=True)
class Pool:
    """Usable facts by relation, and the counts of everything else."""

    facts: dict[str, list[Candidate]] = field(default_factory=dict)
    """Usable facts of each relation, in the order of the source."""
    imported: Counter[str] = field(default_factory=Counter)
    """Triples read, by relation."""
    dropped: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Reason to relation to count of dropped triples."""
    examples: dict[tuple[str, str], str] = field(default_factory=dict)
    """(Reason, relation) to where the first such triple is."""
    seen: set[str] = field(default_factory=set)
    """All relations of the source, also those not asked for."""


def subject_key(candidate: Candidate) -> str:
    """What tells a subject from others: its id, or the words of its name."""
    return f"#{candidate.subject_id}" if candidate.subject_id else " ".join(name_words(candidate.subject))


def object_key(candidate: Candidate) -> str:
    """What tells an object from others."""
    return f"#{candidate.object_id}" if candidate.object_id else " ".join(name_words(candidate.object))


def usable_facts(
    triples: Iterable[Imported],
    *,
    relations: Iterable[str] = (),
    longest_name: int | None = None,
    keep_telling_names: bool = False,
    limit: int = 4_000_000,
    seed: int = 0,
) -> Pool:
    """Reads a source to its end and keeps what a study may ask.

    Args:
        triples: what an importer yields.
        relations: relations to keep; empty means all.
        longest_name: longest subject or object in characters.
        keep_telling_names: keep facts whose subject's name hints at the object.
        limit: triples to hold at once, at about 0.6 kB each.
        seed: of the sample where there are more.
    """
    pool, wanted, held = Pool(), set(relations), _Held(limit, seed)
    for triple in triples:
        pool.seen.add(triple.relation)
        if wanted and triple.relation and triple.relation not in wanted:
            continue
        if isinstance(triple, Dropped):
            pool.imported[triple.relation] += triple.count
            pool.dropped[triple.reason][triple.relation] += triple.count
            pool.examples.setdefault((triple.reason, triple.relation), triple.where)
            continue
        pool.imported[triple.relation] += 1
        if reason := held.add(triple):
            pool.dropped[reason][triple.relation] += 1
            pool.examples.setdefault((reason, triple.relation), triple.where)
    pool.dropped[NOT_SAMPLED].update(held.evicted)
    pool.facts = {relation: [] for relation in pool.imported if relation}
    for (relation, key), candidates in held.by_subject.items():
        reason = held.ambiguity(key, candidates) or _unfair(candidates[0], longest_name, keep_telling_names)
        if reason:
            pool.dropped[reason][relation] += len(candidates)
            pool.examples.setdefault((reason, relation), candidates[0].where)
        else:
            pool.facts[relation].append(candidates[0])
    return pool


def _unfair(candidate: Candidate, longest_name: int | None, keep_telling_names: bool) -> str | None:
    if not keep_telling_names:
        if holds_name(candidate.subject, candidate.object):
            return OBJECT_INSIDE
        if gives_away(candidate.subject, candidate.object):
            return TELLING
    longest = max(len(candidate.subject), len(candidate.object))
    if longest_name is not None and longest > longest_name:
        return f"a name longer than {longest_name} characters"
    return None


class _Held:
    """Distinct triples in memory, by relation and subject."""

    def __init__(self, limit: int, seed: int) -> None:
        self._limit, self._seed = limit, seed
        self._threshold = 1 << 64
        self._count = 0
        self._bearers: dict[str, str | None] = {}  # words of a subject's name -> its key, None where there are several
        self.by_subject: dict[tuple[str, str], list[Candidate]] = {}
        self.evicted: Counter[str] = Counter()

    def add(self, candidate: Candidate) -> str | None:
        """Keeps a triple, or gives the reason why not."""
        name = " ".join(name_words(candidate.subject))
        answer = object_key(candidate)
        if not name or not name_words(candidate.object):
            return NO_WORDS
        if self._threshold < 1 << 64 and self._rank(name) >= self._threshold:
            return NOT_SAMPLED
        key = f"#{candidate.subject_id}" if candidate.subject_id else name
        if self._bearers.setdefault(name, key) != key:
            self._bearers[name] = None
        known = self.by_subject.setdefault((candidate.relation, key), [])
        for place, other in enumerate(known):
            if object_key(other) == answer:
                known[place] = _merged(other, candidate)
                return REPEATED
        known.append(candidate)
        self._count += 1
        while self._count > self._limit:
            self._evict()
        return None

    def ambiguity(self, key: str, candidates: list[Candidate]) -> str | None:
        """Why the facts of a subject in a relation cannot be asked, if so."""
        if len(candidates) > 1:
            return AMBIGUOUS_OBJECTS
        name = " ".join(name_words(candidates[0].subject))
        return None if self._bearers[name] == key else AMBIGUOUS_NAMES

    def _rank(self, name: str) -> int:
        return int.from_bytes(hashlib.blake2b(f"{self._seed}/{name}".encode(), digest_size=8).digest(), "little")

    def _evict(self) -> None:
        self._threshold //= 2
        kept: dict[tuple[str, str], list[Candidate]] = {}
        for (relation, key), candidates in self.by_subject.items():
            stay = [one for one in candidates if self._rank(" ".join(name_words(one.subject))) < self._threshold]
            self.evicted[relation] += len(candidates) - len(stay)
            if stay:
                kept[relation, key] = stay
        self.by_subject = kept
        self._bearers = {name: key for name, key in self._bearers.items() if self._rank(name) < self._threshold}
        self._count = sum(map(len, kept.values()))


def _merged(one: Candidate, other: Candidate) -> Candidate:
    """The first of two rows that say the same, with all names of both."""
    subjects = _names(one.subject, (*one.subject_aliases, other.subject, *other.subject_aliases))
    objects = _names(one.object, (*one.object_aliases, other.object, *other.object_aliases))
    if (subjects, objects) == (one.subject_aliases, one.object_aliases):
        return one
    return replace(one, subject_aliases=subjects, object_aliases=objects)


def _names(name: str, aliases: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(alias for alias in dict.fromkeys(aliases) if alias != name)
