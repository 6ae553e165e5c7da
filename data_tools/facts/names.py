"""Identity of names: decides whether two names, or two entities, are the same.

Two names are the same if they differ only in white space, case and compatibility forms (Unicode's D146, compatibility
caseless matching, but for exponents). Accents, vowel signs, voicing marks, signs before digits and symbols are the
name: Togo and Tonga in Devanagari, Paris and Bali in Katakana, ``A+`` and ``A-``, ``C`` and ``C++`` are different
names. Finding a name in text, where writers are less exact, is done by ``data_tools.mentions``.

Different names may mean the same entity: ``Entities`` knows the other names that a source gives.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Hashable, Iterable, Mapping, Set
from typing import NamedTuple, TypeAlias

from megatron_kis.data_tools.facts.fact import Candidate, Fact

Triple: TypeAlias = Fact | Candidate
"""A fact, or a triple that may become one."""

_EntitiesByName: TypeAlias = "dict[str, str | set[str]]"

_INVISIBLE = dict.fromkeys(
    [0xAD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), 0x2060, *range(0x2066, 0x206A), 0xFEFF]
)
"""Marks of line breaks and of the direction of writing, which are invisible. Joiners are visible, and stay."""
_RAISED = {ord(raised): f"^{plain}" for raised, plain in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-", strict=True)}
"""Exponents: 10⁶ is not 106, although Unicode defines one as a form of the other."""
_TYPOGRAPHY = {
    **dict.fromkeys(map(ord, "\u2018\u2019\u201b\u02bb\u02bc\u02b9\u2032\u00b4`"), "'"),
    **dict.fromkeys(map(ord, "\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb"), '"'),
    **dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u00ad"), "-"),
    **dict.fromkeys((0xFE0E, 0xFE0F), None),
}
"""Interchangeable apostrophes, quotation marks and dashes, and signs that choose a picture."""
_CACHED_FROM = 8  # number of meanings of a name from which on they are cached


@functools.lru_cache(1 << 14)  # the two names of a triple are needed several times
def name_key(name: str) -> str:
    """Returns the form in which names are compared: equal for two spellings of one name, different for two names."""
    if name.isascii():
        return " ".join(name.lower().split())
    folded = unicodedata.normalize("NFD", name.translate(_INVISIBLE).translate(_RAISED))
    for _ in range(2):  # the second folds what the first exposes, such as a capital in a ligature
        folded = unicodedata.normalize("NFKD", folded.casefold())
    return " ".join(unicodedata.normalize("NFC", folded).split())


def entity_key(name: str, identifier: str) -> str:
    """Returns the key of an entity: its id if the source has one, else its name."""
    return f"#{identifier}" if identifier else f"={name_key(name)}"


class NamedEntity(NamedTuple):
    """An entity as a source names it in one triple."""

    name: str
    """Name of the entity there."""
    identifier: str
    """Id of the entity; empty if the source has none."""
    aliases: tuple[str, ...]
    """Other names of the entity."""


def named_entities(triple: Triple) -> tuple[NamedEntity, NamedEntity]:
    """Returns the subject and the object of a fact."""
    return (
        NamedEntity(triple.subject, triple.subject_id, triple.subject_aliases),
        NamedEntity(triple.object, triple.object_id, triple.object_aliases),
    )


class Entities:
    """Meanings of names: which names mean, or may mean, the same entity, by all triples of a source.

    An entity is an id, or a name without one; its names are all that any fact uses for it, as subject or object, in any
    relation. A name has a set of meanings, and two names may mean the same if their sets intersect: if the source gives
    them one id, if one is an alias of the other, if both are names of a third entity, or if they differ in the form of
    an apostrophe, quotation mark or dash only. An alias shared by two ids does not make them one entity; entities
    without ids that share one may be.
    """

    def __init__(self, triples: Iterable[Triple]) -> None:
        """Reads the triples twice; time and memory are linear in their number of names."""
        shown = {key for triple in triples for one in named_entities(triple) for key in _keys(one.name)}
        self._ids: _EntitiesByName = {}  # by name, the entities with an id that have it
        self._others: _EntitiesByName = {}  # by name, the other entities without an id that have it as an alias
        self._aliases: dict[str, set[str]] = {}  # by name without an id, its other names
        self._cached: dict[str, frozenset[str]] = {}
        for triple in triples:
            for one in named_entities(triple):
                if not one.identifier and one.aliases:
                    names = {key for alias in one.aliases for key in _keys(alias)}
                    self._aliases.setdefault(name_key(one.name), set()).update(names)
                    shown |= names
        for triple in triples:
            for one in named_entities(triple):
                entity = entity_key(one.name, one.identifier)
                for key in {key for name in (one.name, *one.aliases) for key in _keys(name)} & shown:
                    if f"={key}" != entity:
                        _add(self._ids if one.identifier else self._others, key, entity)

    def meanings(self, name: str) -> frozenset[str]:
        """Returns all entities that a name may mean."""
        key = name_key(name)
        if key in self._cached:
            return self._cached[key]
        found: set[str] = set()
        for own in _keys(name):
            found |= {f"={own}", *_lookup(self._ids, own), *_lookup(self._others, own)}
        for alias in self._aliases.get(key, ()):
            found |= {f"={alias}", *_lookup(self._ids, alias)}
        meanings = frozenset(found)
        if len(meanings) > _CACHED_FROM:
            self._cached[key] = meanings
        return meanings

    def same(self, one: NamedEntity, other: NamedEntity) -> bool:
        """Returns whether two named entities are surely the same: by their ids, or by their names if one has no id."""
        if one.identifier and other.identifier:
            return one.identifier == other.identifier
        return not self.entities(one).isdisjoint(self.entities(other))

    def entities(self, one: NamedEntity) -> frozenset[str]:
        """Returns the entities that a named entity surely is: its id, or all that have its name."""
        key = name_key(one.name)
        ids = {f"#{one.identifier}"} if one.identifier else _lookup(self._ids, key)
        return frozenset({f"={key}", *ids, *_lookup(self._others, key)})


def _keys(name: str) -> set[str]:
    """Returns the key of a name, and that of the same name in plain ASCII punctuation."""
    key = name_key(name)
    return {key} if key.isascii() else {key, key.translate(_TYPOGRAPHY)}


def _add(entities_by_name: _EntitiesByName, name: str, entity: str) -> None:
    known = entities_by_name.setdefault(name, entity)  # most names have one entity and need no set
    if isinstance(known, set):
        known.add(entity)
    elif known != entity:
        entities_by_name[name] = {known, entity}


def _lookup(entities_by_name: _EntitiesByName, name: str) -> Set[str]:
    found = entities_by_name.get(name, set())
    return {found} if isinstance(found, str) else found


def representative_names(meanings: Mapping[str, Set[Hashable]]) -> dict[str, str]:
    """Maps each name to a representative; no two representatives may mean the same.

    Args:
        meanings: what each name may mean.

    Returns:
        The same names in the same order. A name that may mean the same as several others is no representative.
    """
    taken: dict[Hashable, str] = {}
    representatives: dict[str, str] = {}
    for name in sorted(meanings, key=lambda name: (len(meanings[name]), name)):
        representatives[name] = min((taken[one] for one in meanings[name] if one in taken), default=name)
        if representatives[name] == name:
            taken |= dict.fromkeys(meanings[name], name)
    return {name: representatives[name] for name in meanings}
