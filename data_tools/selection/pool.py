"""The usable facts of a source: what cannot be asked fairly is dropped and counted, in bounded memory.

A fact is usable where its subject has one object in the relation, its name belongs to no other subject, and the names
give nothing away. Subjects and objects are told apart by their ids where the source has some, else by their names
(``megatron_kis.data_tools.facts.names``): different names are one only if an alias says so.

Where a source has more triples than ``limit``, a random sample of its subjects is kept: those whose hash lies under a
threshold that is halved when memory is full. All triples of a kept subject are kept, so that what is ambiguous is still
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
from megatron_kis.data_tools.facts.names import Entities, Mention, entity_key, mentions, name_key
from megatron_kis.data_tools.selection.revealing_names import contains_name, reveals_object

AMBIGUOUS_OBJECTS = "ambiguous: the subject has several objects"
REPEATED = "said twice"
SAYS_NOTHING = "no letter, number or symbol in a name"
CONTAINS_OBJECT = "the object stands in the subject's name"
HINTS_AT_OBJECT = "the subject's name hints at the object"

_Place = tuple[str, str]
"""Relation and subject."""


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
    entities: Entities = field(default_factory=lambda: Entities(()))
    """What the names of the facts mean, by all triples that were held."""


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
        limit: triples to hold at once, at about 1 kB each, 1.6 with ids and aliases.
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
    pool.entities = Entities(held)
    for relation, candidates in _by_subject(held, pool.entities):
        first, *others = candidates
        reason = AMBIGUOUS_NAMES if any(held.is_shared(one, pool.entities) for one in candidates) else None
        if not all(pool.entities.same(mentions(first)[1], mentions(other)[1]) for other in others):
            reason = AMBIGUOUS_OBJECTS
        elif others:
            pool.dropped[REPEATED][relation] += len(others)
            for other in others:
                first = _merged(first, other)
        if reason := reason or _unfair(first, longest_name, keep_telling_names):
            pool.dropped[reason][relation] += len(candidates) if reason == AMBIGUOUS_OBJECTS else 1
            pool.examples.setdefault((reason, relation), first.where)
        else:
            pool.facts[relation].append(first)
    return pool


def _by_subject(held: _Held, entities: Entities) -> Iterator[tuple[str, list[Candidate]]]:
    """Yields a relation and the triples of a subject in it; subjects without ids are one where an alias says so."""
    homes: dict[_Place, _Place] = {}
    for relation, subject in held.places():
        if subject.startswith("="):
            for entity in entities.entities(Mention(subject[1:], "", ())):
                one, other = _home(homes, (relation, subject)), _home(homes, (relation, entity))
                if one != other and entity.startswith("="):
                    homes[max(one, other)] = min(one, other)
    joined = {_home(homes, place) for place in list(homes)}
    together: dict[_Place, list[_Place]] = {}
    for place in held.places():
        if (home := _home(homes, place)) in joined:
            together.setdefault(home, []).append(place)
    for place in held.places():
        places = together.get(_home(homes, place), [place])
        if place == places[0]:
            yield place[0], [candidate for one in places for candidate in held.at(one)]


def _home(homes: dict[_Place, _Place], place: _Place) -> _Place:
    while place in homes:
        homes[place] = place = homes.get(homes[place], homes[place])
    return place


def _unfair(candidate: Candidate, longest_name: int | None, keep_telling_names: bool) -> str | None:
    if not keep_telling_names:
        if contains_name(candidate.subject, candidate.object):
            return CONTAINS_OBJECT
        if reveals_object(candidate.subject, candidate.object):
            return HINTS_AT_OBJECT
    longest = max(len(unicodedata.normalize("NFC", name)) for name in (candidate.subject, candidate.object))
    if longest_name is not None and longest > longest_name:
        return f"a name longer than {longest_name} characters"
    return None


class _Held:
    """Distinct triples in memory."""

    def __init__(self, limit: int, seed: int) -> None:
        self._limit, self._seed = limit, seed
        self._threshold = 1 << 64
        self._count = 0
        self._bearers: dict[str, str | None] = {}  # a subject's name -> its key, None where there are several
        self._by_subject: dict[_Place, Candidate | dict[str, Candidate]] = {}  # most have one object: no dict for it
        self.evicted: Counter[str] = Counter()

    def add(self, candidate: Candidate) -> str | None:
        """Keeps a triple, or gives the reason why not."""
        if not has_content(candidate.subject) or not has_content(candidate.object):
            return SAYS_NOTHING
        name = name_key(candidate.subject)
        if self._threshold < 1 << 64 and self._rank(name) >= self._threshold:
            return NOT_SAMPLED
        subject, answer = (entity_key(one.name, one.identifier) for one in mentions(candidate))
        if self._bearers.setdefault(name, subject) != subject:
            self._bearers[name] = None
        place = (candidate.relation, subject)
        known = self._by_subject.get(place)
        if known is None:
            self._by_subject[place] = candidate
        else:
            if isinstance(known, Candidate):
                known = {entity_key(known.object, known.object_id): known}
            repeated = answer in known
            known[answer] = _merged(known[answer], candidate) if repeated else candidate
            self._by_subject[place] = known if len(known) > 1 else known[answer]
            if repeated:
                return REPEATED
        self._count += 1
        while self._count > self._limit:
            self._evict()
        return None

    def places(self) -> Iterable[_Place]:
        """The relations and subjects of all triples, in the order of the source."""
        return self._by_subject.keys()

    def at(self, place: _Place) -> Iterable[Candidate]:
        """What a relation says of a subject."""
        known = self._by_subject[place]
        return [known] if isinstance(known, Candidate) else known.values()

    def __iter__(self) -> Iterator[Candidate]:
        for place in self._by_subject:
            yield from self.at(place)

    def is_shared(self, candidate: Candidate, entities: Entities) -> bool:
        """Whether other entities bear the subject's name: as theirs, or, of a subject without an id, as an alias."""
        if self._bearers[name_key(candidate.subject)] is None:
            return True
        own = entities.entities(mentions(candidate)[0])
        return not candidate.subject_id and any(entity.startswith("#") for entity in own)

    def _rank(self, name: str) -> int:
        return int.from_bytes(hashlib.blake2b(f"{self._seed}/{name}".encode(), digest_size=8).digest(), "little")

    def _evict(self) -> None:
        self._threshold //= 2
        kept: dict[_Place, Candidate | dict[str, Candidate]] = {}
        for place, known in self._by_subject.items():
            several = known if isinstance(known, dict) else {"": known}
            stay = {key: one for key, one in several.items() if self._rank(name_key(one.subject)) < self._threshold}
            self.evicted[place[0]] += len(several) - len(stay)
            if stay:
                kept[place] = stay if len(stay) > 1 else next(iter(stay.values()))
        self._by_subject = kept
        self._count = sum(1 if isinstance(known, Candidate) else len(known) for known in kept.values())
        self._bearers = {name: key for name, key in self._bearers.items() if self._rank(name) < self._threshold}


def _merged(one: Candidate, other: Candidate) -> Candidate:
    """The first of two rows that say the same, with all names of both, and the ids that one of them has."""
    subjects = _names(one.subject, (*one.subject_aliases, other.subject, *other.subject_aliases))
    objects = _names(one.object, (*one.object_aliases, other.object, *other.object_aliases))
    ids = (one.subject_id or other.subject_id, one.object_id or other.object_id)
    if (subjects, objects, *ids) == (one.subject_aliases, one.object_aliases, one.subject_id, one.object_id):
        return one
    return replace(one, subject_aliases=subjects, object_aliases=objects, subject_id=ids[0], object_id=ids[1])


def _names(name: str, aliases: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(alias for alias in dict.fromkeys(aliases) if alias != name)
