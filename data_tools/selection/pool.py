"""Selects the usable facts of a source, in bounded memory; other triples are dropped and counted.

A fact is usable if its subject has one object in the relation, its name belongs to no other subject, and the names
do not reveal the object. Subjects and objects are distinguished by their ids where the source has some, else by their
names (``facts.names``): different names are one only if an alias says so.

Where a source has more triples than ``limit``, a random sample of its subjects is kept: those whose hash is below a
threshold that is halved whenever memory is full. All triples of a kept subject are kept, so that ambiguity is still
known exactly.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from megatron_kis.data_tools.facts.fields import has_content
from megatron_kis.data_tools.facts.importers import AMBIGUOUS_NAMES, NOT_SAMPLED, Candidate, Dropped, Imported
from megatron_kis.data_tools.facts.names import Entities, NamedEntity, entity_key, name_key, named_entities
from megatron_kis.data_tools.selection.permuted_objects import with_permuted_objects
from megatron_kis.data_tools.selection.revealing_names import contains_name, reveals_object

AMBIGUOUS_OBJECTS = "ambiguous: the subject has several objects"
REPEATED = "said twice"
NO_CONTENT = "no letter, number or symbol in a name"
CONTAINS_OBJECT = "the object is in the subject's name"
HINTS_AT_OBJECT = "the subject's name hints at the object"

_Key = tuple[str, str]
"""Relation and entity key of the subject."""


@dataclass(slots=True)
class Pool:
    """Usable facts by relation, and counts of everything else."""

    facts: dict[str, list[Candidate]] = field(default_factory=dict)
    """Usable facts of each relation, in the order of the source."""
    imported: Counter[str] = field(default_factory=Counter)
    """Number of triples read, by relation."""
    dropped: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Number of dropped triples, by reason and relation."""
    examples: dict[tuple[str, str], str] = field(default_factory=dict)
    """Place of the first dropped triple, by (reason, relation)."""
    seen: set[str] = field(default_factory=set)
    """All relations of the source, including those not asked for."""
    entities: Entities = field(default_factory=lambda: Entities(()))
    """Meanings of names, by all triples in memory."""


def usable_facts(
    triples: Iterable[Imported],
    *,
    relations: Iterable[str] = (),
    longest_name: int | None = None,
    keep_telling_names: bool = False,
    permute_objects: bool = False,
    limit: int = 4_000_000,
    seed: int = 0,
) -> Pool:
    """Reads a source to its end and keeps the facts that a study may ask about.

    Args:
        triples: output of an importer.
        relations: relations to keep; empty means all.
        longest_name: longest subject or object in characters.
        keep_telling_names: keep facts whose subject's name hints at the object.
        permute_objects: assign the objects of each relation to its subjects again. A name that hints at its object is
            then an accident, and is kept: to drop it would say that what a name hints at is wrong.
        limit: most triples in memory, at about 1 kB each, 1.6 with ids and aliases.
        seed: seed of the sample if the source has more, and of the permutation.
    """
    pool = Pool()
    wanted = set(relations)
    store = _TripleStore(limit, seed)
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
        if reason := store.add(triple):
            pool.dropped[reason][triple.relation] += 1
            pool.examples.setdefault((reason, triple.relation), triple.where)
    pool.dropped[NOT_SAMPLED].update(store.evicted)
    pool.facts = {relation: [] for relation in pool.imported if relation}
    pool.entities = Entities(store)
    facts = _fair_facts(pool, store, longest_name, telling=keep_telling_names or permute_objects)
    for fact in with_permuted_objects(facts, seed) if permute_objects else facts:
        pool.facts[fact.relation].append(fact)
    return pool


def _fair_facts(pool: Pool, store: _TripleStore, longest_name: int | None, *, telling: bool) -> Iterator[Candidate]:
    """Yields the facts that are not ambiguous and have fair names, and counts the others as dropped."""
    for relation, candidates in _by_subject(store, pool.entities):
        first, *others = candidates
        reason = AMBIGUOUS_NAMES if any(store.is_shared(one, pool.entities) for one in candidates) else None
        if not all(pool.entities.same(named_entities(first)[1], named_entities(other)[1]) for other in others):
            reason = AMBIGUOUS_OBJECTS
        elif others:
            pool.dropped[REPEATED][relation] += len(others)
            for other in others:
                first = _merge(first, other)
        if reason := reason or _unfairness(first, longest_name, telling):
            pool.dropped[reason][relation] += len(candidates) if reason == AMBIGUOUS_OBJECTS else 1
            pool.examples.setdefault((reason, relation), first.where)
        else:
            yield first


def _by_subject(store: _TripleStore, entities: Entities) -> Iterator[tuple[str, list[Candidate]]]:
    """Yields (relation, triples of a subject in it); subjects without ids are one if an alias says so."""
    parents: dict[_Key, _Key] = {}
    for relation, subject in store.subject_keys():
        if subject.startswith("="):
            for entity in entities.entities(NamedEntity(subject[1:], "", ())):
                one, other = _root(parents, (relation, subject)), _root(parents, (relation, entity))
                if one != other and entity.startswith("="):
                    parents[max(one, other)] = min(one, other)
    joined = {_root(parents, key) for key in list(parents)}
    together: dict[_Key, list[_Key]] = {}
    for key in store.subject_keys():
        if (root := _root(parents, key)) in joined:
            together.setdefault(root, []).append(key)
    for key in store.subject_keys():
        keys = together.get(_root(parents, key), [key])
        if key == keys[0]:
            yield key[0], [candidate for one in keys for candidate in store.triples_of(one)]


def _root(parents: dict[_Key, _Key], key: _Key) -> _Key:
    while key in parents:
        parents[key] = key = parents.get(parents[key], parents[key])
    return key


def _unfairness(candidate: Candidate, longest_name: int | None, keep_telling_names: bool) -> str | None:
    if not keep_telling_names:
        if contains_name(candidate.subject, candidate.object):
            return CONTAINS_OBJECT
        if reveals_object(candidate.subject, candidate.object):
            return HINTS_AT_OBJECT
    longest = max(len(unicodedata.normalize("NFC", name)) for name in (candidate.subject, candidate.object))
    if longest_name is not None and longest > longest_name:
        return f"a name longer than {longest_name} characters"
    return None


class _TripleStore:
    """Distinct triples in memory, sampled by subject when there are too many."""

    def __init__(self, limit: int, seed: int) -> None:
        self._limit = limit
        self._seed = seed
        self._threshold = 1 << 64
        self._count = 0
        self._bearers: dict[str, str | None] = {}  # entity key by a subject's name; None if there are several
        self._by_subject: dict[_Key, Candidate | dict[str, Candidate]] = {}  # most have one object: no dict for it
        self.evicted: Counter[str] = Counter()

    def add(self, candidate: Candidate) -> str | None:
        """Keeps a triple, or returns the reason for dropping it."""
        if not has_content(candidate.subject) or not has_content(candidate.object):
            return NO_CONTENT
        name = name_key(candidate.subject)
        if self._threshold < 1 << 64 and self._rank(name) >= self._threshold:
            return NOT_SAMPLED
        named_subject, named_object = named_entities(candidate)
        subject = entity_key(named_subject.name, named_subject.identifier)
        answer = entity_key(named_object.name, named_object.identifier)
        if self._bearers.setdefault(name, subject) != subject:
            self._bearers[name] = None
        key = (candidate.relation, subject)
        known = self._by_subject.get(key)
        if known is None:
            self._by_subject[key] = candidate
        else:
            if isinstance(known, Candidate):
                known = {entity_key(known.object, known.object_id): known}
            repeated = answer in known
            known[answer] = _merge(known[answer], candidate) if repeated else candidate
            self._by_subject[key] = known if len(known) > 1 else known[answer]
            if repeated:
                return REPEATED
        self._count += 1
        while self._count > self._limit:
            self._evict()
        return None

    def subject_keys(self) -> Iterable[_Key]:
        """Returns the keys of all triples, in the order of the source."""
        return self._by_subject.keys()

    def triples_of(self, key: _Key) -> Iterable[Candidate]:
        """Returns the triples of a relation and subject."""
        known = self._by_subject[key]
        return [known] if isinstance(known, Candidate) else known.values()

    def __iter__(self) -> Iterator[Candidate]:
        for key in self._by_subject:
            yield from self.triples_of(key)

    def is_shared(self, candidate: Candidate, entities: Entities) -> bool:
        """Returns whether other entities have the subject's name: as theirs, or as an alias if it has no id."""
        if self._bearers[name_key(candidate.subject)] is None:
            return True
        own = entities.entities(named_entities(candidate)[0])
        return not candidate.subject_id and any(entity.startswith("#") for entity in own)

    def _rank(self, name: str) -> int:
        return int.from_bytes(hashlib.blake2b(f"{self._seed}/{name}".encode(), digest_size=8).digest(), "little")

    def _evict(self) -> None:
        self._threshold //= 2
        kept: dict[_Key, Candidate | dict[str, Candidate]] = {}
        for key, known in self._by_subject.items():
            several = known if isinstance(known, dict) else {"": known}
            stay = {key: one for key, one in several.items() if self._rank(name_key(one.subject)) < self._threshold}
            self.evicted[key[0]] += len(several) - len(stay)
            if stay:
                kept[key] = stay if len(stay) > 1 else next(iter(stay.values()))
        self._by_subject = kept
        self._count = sum(1 if isinstance(known, Candidate) else len(known) for known in kept.values())
        self._bearers = {name: key for name, key in self._bearers.items() if self._rank(name) < self._threshold}


def _merge(one: Candidate, other: Candidate) -> Candidate:
    """Merges two rows of one fact: the first, with all names of both and the ids that either has."""
    subjects = _names(one.subject, (*one.subject_aliases, other.subject, *other.subject_aliases))
    objects = _names(one.object, (*one.object_aliases, other.object, *other.object_aliases))
    ids = (one.subject_id or other.subject_id, one.object_id or other.object_id)
    if (subjects, objects, *ids) == (one.subject_aliases, one.object_aliases, one.subject_id, one.object_id):
        return one
    return replace(one, subject_aliases=subjects, object_aliases=objects, subject_id=ids[0], object_id=ids[1])


def _names(name: str, aliases: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(alias for alias in dict.fromkeys(aliases) if alias != name)
