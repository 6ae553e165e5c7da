"""What a name is: the one place that decides whether two names, or two entities, are one.

Two names are one where nothing differs but white space, case and compatibility forms (Unicode's D146, compatibility
caseless matching, but for exponents). Accents, vowel signs, voicing marks, signs before digits and symbols are the
name: Togo and Tonga in Devanagari, Paris and Bali in Katakana, ``A+`` and ``A-``, ``C`` and ``C++`` are different
names. Finding a name in text, where writers are less exact, is the work of ``data_tools.mentions.mentions``.

Two names may mean the same although they differ: ``Entities`` knows the other names that a source gives.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Hashable, Iterable, Mapping, Set
from typing import NamedTuple, TypeAlias

from megatron_kis.data_tools.facts.fact import Candidate, Fact

Triple: TypeAlias = Fact | Candidate
"""A fact, or a triple that may become one."""

_Bearers: TypeAlias = "dict[str, str | set[str]]"

_INVISIBLE = dict.fromkeys(
    [0xAD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), 0x2060, *range(0x2066, 0x206A), 0xFEFF]
)
"""Marks of line breaks and of the direction of writing, which nobody sees. Joiners are seen, and stay."""
_RAISED = {ord(raised): f"^{plain}" for raised, plain in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-", strict=True)}
"""Exponents: 10⁶ is not 106, although Unicode calls the one a form of the other."""
_TYPOGRAPHY = {
    **dict.fromkeys(map(ord, "\u2018\u2019\u201b\u02bb\u02bc\u02b9\u2032\u00b4`"), "'"),
    **dict.fromkeys(map(ord, "\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb"), '"'),
    **dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u00ad"), "-"),
    **dict.fromkeys((0xFE0E, 0xFE0F), None),
}
"""Apostrophes, quotation marks and dashes that writers take for one another, and signs that choose a picture."""
_MANY = 8  # bearers of a name with which what it may mean is kept, not made again at each question


@functools.lru_cache(1 << 14)  # of one triple the same two names are asked for several times
def name_key(name: str) -> str:
    """The name as it is compared: equal for two spellings of one name, different for two names."""
    if name.isascii():
        return " ".join(name.lower().split())
    folded = unicodedata.normalize("NFD", name.translate(_INVISIBLE).translate(_RAISED))
    for _ in range(2):  # the second changes what the first brought to light, such as a capital in a ligature
        folded = unicodedata.normalize("NFKD", folded.casefold())
    return " ".join(unicodedata.normalize("NFC", folded).split())


def entity_key(name: str, identifier: str) -> str:
    """What tells an entity from others: its id where the source has one, else its name."""
    return f"#{identifier}" if identifier else f"={name_key(name)}"


class Mention(NamedTuple):
    """What a source says of an entity in one place."""

    name: str
    """The name it is called by."""
    identifier: str
    """Its id; empty where the source has none."""
    aliases: tuple[str, ...]
    """Its other names."""


def mentions(triple: Triple) -> tuple[Mention, Mention]:
    """The subject and the object of a fact."""
    return (
        Mention(triple.subject, triple.subject_id, triple.subject_aliases),
        Mention(triple.object, triple.object_id, triple.object_aliases),
    )


class Entities:
    """Which names mean, or may mean, the same, by all that a source says.

    An entity is an id, or a name without one; its names are all that any fact calls it, as subject or object, in any
    relation. What a name may mean is a set: two names may mean the same where their sets meet. They do where the
    source gives them one id, where one is an alias of the other, where both are names of a third entity, or where they
    differ in the form of an apostrophe, quotation mark or dash only. That an alias is shared by two ids does not make
    these one; entities without ids that share one may be.
    """

    def __init__(self, triples: Iterable[Triple]) -> None:
        """Reads the triples twice; time and memory are linear in their names."""
        shown = {key for triple in triples for one in mentions(triple) for key in _keys(one.name)}
        self._ids: _Bearers = {}  # name -> the entities with an id that it is a name of
        self._others: _Bearers = {}  # name -> those without one, but for its own, that have it as an alias
        self._aliases: dict[str, set[str]] = {}  # name without an id -> its other names
        self._many: dict[str, frozenset[str]] = {}
        for triple in triples:
            for one in mentions(triple):
                if not one.identifier and one.aliases:
                    names = {key for alias in one.aliases for key in _keys(alias)}
                    self._aliases.setdefault(name_key(one.name), set()).update(names)
                    shown |= names
        for triple in triples:
            for one in mentions(triple):
                bearer = entity_key(one.name, one.identifier)
                for key in {key for name in (one.name, *one.aliases) for key in _keys(name)} & shown:
                    if f"={key}" != bearer:
                        _add(self._ids if one.identifier else self._others, key, bearer)

    def meanings(self, name: str) -> frozenset[str]:
        """All that a name may mean."""
        key = name_key(name)
        if key in self._many:
            return self._many[key]
        found: set[str] = set()
        for own in _keys(name):
            found |= {f"={own}", *_of(self._ids, own), *_of(self._others, own)}
        for alias in self._aliases.get(key, ()):
            found |= {f"={alias}", *_of(self._ids, alias)}
        meanings = frozenset(found)
        if len(meanings) > _MANY:
            self._many[key] = meanings
        return meanings

    def same(self, one: Mention, other: Mention) -> bool:
        """Whether two mentions surely are of one entity: by their ids, or by their names where one has no id."""
        if one.identifier and other.identifier:
            return one.identifier == other.identifier
        return not self.entities(one).isdisjoint(self.entities(other))

    def entities(self, one: Mention) -> frozenset[str]:
        """The entities that a mention is surely of: its id, or all that bear its name."""
        key = name_key(one.name)
        ids = {f"#{one.identifier}"} if one.identifier else _of(self._ids, key)
        return frozenset({f"={key}", *ids, *_of(self._others, key)})


def _keys(name: str) -> set[str]:
    """The key of a name, and that of the same name in the signs of a typewriter."""
    key = name_key(name)
    return {key} if key.isascii() else {key, key.translate(_TYPOGRAPHY)}


def _add(bearers: _Bearers, name: str, bearer: str) -> None:
    known = bearers.setdefault(name, bearer)  # most names have one bearer, and need no set
    if isinstance(known, set):
        known.add(bearer)
    elif known != bearer:
        bearers[name] = {known, bearer}


def _of(bearers: _Bearers, name: str) -> Set[str]:
    found = bearers.get(name, set())
    return {found} if isinstance(found, str) else found


def representative_names(meanings: Mapping[str, Set[Hashable]]) -> dict[str, str]:
    """Name to the name that stands for it: no two of those that stand for names may mean the same.

    Args:
        meanings: of each name, what it may mean.

    Returns:
        The same names in the same order. A name that may mean the same as several others has no place among them.
    """
    taken: dict[Hashable, str] = {}
    stands: dict[str, str] = {}
    for name in sorted(meanings, key=lambda name: (len(meanings[name]), name)):
        stands[name] = min((taken[one] for one in meanings[name] if one in taken), default=name)
        if stands[name] == name:
            taken |= dict.fromkeys(meanings[name], name)
    return {name: stands[name] for name in meanings}
