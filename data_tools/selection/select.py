"""Selects the facts of a study from imported triples: drops those that cannot be asked fairly, splits the rest by seed.

The three groups are exchangeable: a fact's group is a random draw within its relation, so a difference between groups
can only come from what the model was shown. Within a group and relation an object is the answer of one fact only (by
default): every option is then equally often right, and preferring a frequent object gains nothing. Names that may mean
the same (``data_tools.facts.names``) are one object, and all facts of subjects that may be the same are in one group.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from megatron_kis.common.configuration import Config
from megatron_kis.common.errors import InputError, nearest
from megatron_kis.common.terms import GROUPS
from megatron_kis.common.units import plural
from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.facts.importers import Candidate, Imported
from megatron_kis.data_tools.facts.names import Entities, name_key, representative_names
from megatron_kis.data_tools.selection.pool import Pool, usable_facts

SPREADS = ("even", "proportional")
"""How facts are spread over relations: the same number of each, or as many as a relation has."""

_LATER = {"infused_relations": (), "background_relations": (), "control_relations": (), "permute_objects": False}
"""Settings that older records lack, with their defaults: a record of the same facts stays the same."""
_LISTED = 20  # counts in a line of the summary
_TRIED = 200_000  # usable facts up to which smaller numbers are tried, in seconds, where those asked for do not fit


class SelectConfig(Config):
    """How many facts a study takes, and which."""

    infused: int = 100
    """Number of facts of group ``infused``, spread over the relations."""

    background: int = 100
    """Number of facts of group ``background``."""

    control: int = 100
    """Number of facts of group ``control``. With equal numbers in all groups, chance and its spread are comparable."""

    relations: tuple[str, ...] = ()
    """Relations to use; empty means all that the source has."""

    infused_relations: tuple[str, ...] = ()
    """Relations of the infused facts; empty means ``relations``. With other relations for the background, the two
    groups have neither relations nor objects in common."""

    background_relations: tuple[str, ...] = ()
    """Relations of the background facts; empty means ``relations``."""

    control_relations: tuple[str, ...] = ()
    """Relations of the control facts; empty means ``relations``."""

    distractors: int = 3
    """Wrong options of each question: each group and relation must offer that many other objects."""

    facts_per_object: int = 1
    """Facts of one group and relation that may share an object; 0 for any number."""

    longest_name: int | None = None
    """Longest subject or object in characters; any length if not given. Short sequences cannot hold long names."""

    keep_telling_names: bool = False
    """Keep facts whose subject's name hints at the object."""

    permute_objects: bool = False
    """Permute the objects of each relation among its subjects, at random: no name then hints at its object. Facts whose
    names hinted at it are kept, as the hint is gone. A subject's object in the source is not a distractor."""

    seed: int = 0
    """Seed of the split into groups, and of the permutation of objects."""

    spread: Annotated[str, Field(json_schema_extra={"enum": list(SPREADS)})] = "even"
    """``even`` or ``proportional``: the same number of facts of each relation, or a number in proportion to its usable
    facts; too small relations then take no part."""

    memory_limit: int = 4_000_000
    """Triples held in memory, at about 1 kB each (1.6 kB with ids and aliases). If a source has more, a random sample
    of its subjects is used."""

    def counts(self) -> dict[str, int]:
        """Facts of each group."""
        return {"infused": self.infused, "background": self.background, "control": self.control}

    def record(self) -> dict[str, Any]:
        """Settings as a record has them: those that came later only where they are not the default."""
        dumped = self.model_dump()
        return {key: value for key, value in dumped.items() if key not in _LATER or value != _LATER[key]}

    def named_relations(self) -> dict[str, tuple[str, ...]]:
        """Relations that each setting names."""
        return {
            "relations": self.relations,
            "infused_relations": self.infused_relations,
            "background_relations": self.background_relations,
            "control_relations": self.control_relations,
        }

    def relations_of(self, group: str) -> tuple[str, ...]:
        """Relations of a group, each once; empty means all that the source has."""
        return tuple(dict.fromkeys(self.named_relations()[f"{group}_relations"] or self.relations))

    def relations_of_all_groups(self) -> tuple[str, ...]:
        """Relations of the groups that have facts, each once; empty means all that the source has."""
        of_groups = [self.relations_of(group) for group, count in self.counts().items() if count]
        return tuple(dict.fromkeys(one for of in of_groups for one in of)) if all(of_groups) else ()


@dataclass(frozen=True, slots=True)
class RelationSummary:
    """Counts of one relation: what the source has, and what was chosen."""

    relation: str
    """Key of the relation."""
    imported: int
    """Number of triples read."""
    usable: int
    """Number of facts that can be asked."""
    objects: int
    """Number of distinct objects of the usable facts."""
    chance: float
    """Chance level where all objects are options: 1 / objects."""
    most_frequent: float
    """Share of the usable facts that have the most frequent object: what always naming it would score."""
    chosen: dict[str, int]
    """Number of facts chosen, by group."""


@dataclass(slots=True)
class Selection:
    """The chosen facts, and counts of those left out."""

    facts: list[Fact] = field(default_factory=list)
    """Facts in the order of the file: by group, then relation, then as drawn."""
    imported: Counter[str] = field(default_factory=Counter)
    """Number of imported triples, by relation."""
    dropped: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Number of dropped triples, by reason and relation."""
    relations: list[RelationSummary] = field(default_factory=list)
    """Summary of each relation that was asked for."""
    distractors: int = 3
    """Wrong options of a question."""

    def summary(self) -> list[str]:
        """Describes what was imported, dropped and chosen, one line each."""
        lines = [f"imported {_counts(self.imported)}"]
        lines += [f"dropped {_counts(counts)}: {reason}" for reason, counts in self.dropped.items() if counts.total()]
        lines += [
            f"{one.relation}: {one.usable} usable of {one.imported}, {plural(one.objects, 'object')}; chance"
            f" {one.chance:.4f} among all of them, {1 / (1 + self.distractors):.4f} among {1 + self.distractors} "
            "options;"
            f" the most frequent object answers {one.most_frequent:.4f}"
            for one in self.relations
        ]
        for group in GROUPS:
            chosen = Counter(fact.relation for fact in self.facts if fact.group == group)
            lines.append(f"{group}: {_counts(chosen)}")
        return lines


def _counts(counter: Mapping[str, int]) -> str:
    """Formats the total, and the largest counts by name."""
    ranked = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count} {name or 'unknown'}" for name, count in sorted(ranked[:_LISTED])]
    more = [f"and {len(ranked) - _LISTED} more"] if len(ranked) > _LISTED else []
    return f"{sum(counter.values())} (" + ", ".join([*shown, *more]) + ")"


def select_facts(
    triples: Iterable[Imported], settings: SelectConfig, *, on_pool: Callable[[Pool], None] | None = None
) -> Selection:
    """Drops unfair facts and splits the rest into groups, stratified by relation.

    Args:
        triples: output of an importer.
        settings: which facts, and how many.
        on_pool: called with all usable facts before any are chosen.

    Raises:
        InputError: a relation is unknown, or has too few facts or objects for its share; says how many there are.
    """
    check_settings(settings)
    pool = usable_facts(
        triples,
        relations=settings.relations_of_all_groups(),
        longest_name=settings.longest_name,
        keep_telling_names=settings.keep_telling_names,
        permute_objects=settings.permute_objects,
        limit=settings.memory_limit,
        seed=settings.seed,
    )
    if on_pool is not None:
        on_pool(pool)
    for key, relations in settings.named_relations().items():
        for relation in relations:
            if relation not in pool.seen:
                raise InputError(f"no facts of relation {relation!r}", where=key, remedy=nearest(relation, pool.seen))
    selection = Selection(imported=pool.imported, dropped=pool.dropped, distractors=settings.distractors)
    order = list(settings.relations_of_all_groups()) or sorted(pool.facts)
    entities = pool.entities
    sources = {
        relation: _UsableFacts(relation, pool.facts[relation], entities, _frequencies(pool.facts[relation], entities))
        for relation in order
    }
    try:
        drawn = _draw_all(sources, settings)
    except _TooFewFactsError as error:
        fewer = f"ask for fewer facts{_what_fits(sources, settings)}"
        raise InputError(error.problem, remedy=f"{fewer}{error.remedy}") from None
    for group in GROUPS:
        for relation in order:
            chosen = [candidate for candidate, owner in drawn[relation] if owner == group]
            selection.facts += [_fact(candidate, group) for candidate in chosen]
    _unique_ids(selection.facts)
    for relation in order:
        taken = Counter(group for _, group in drawn[relation])
        frequencies = sources[relation].frequencies
        usable = frequencies.total()
        summary = RelationSummary(
            relation=relation,
            imported=pool.imported[relation],
            usable=usable,
            objects=len(frequencies),
            chance=1 / max(1, len(frequencies)),
            most_frequent=max(frequencies.values(), default=0) / max(1, usable),
            chosen={group: taken[group] for group in GROUPS},
        )
        selection.relations.append(summary)
    return selection


@dataclass(frozen=True, slots=True)
class _UsableFacts:
    """The usable facts of a relation."""

    relation: str
    facts: list[Candidate]
    entities: Entities
    frequencies: Counter[str]
    """Number of facts by object."""


class _TooFewFactsError(InputError):
    """A relation cannot provide its share of the facts; the remedy is what else helps than fewer facts."""


def _draw_all(sources: Mapping[str, _UsableFacts], settings: SelectConfig) -> dict[str, list[tuple[Candidate, str]]]:
    """Returns the facts that are chosen from each relation, with their groups."""
    sizes = {relation: len(source.facts) for relation, source in sources.items()}
    shares = {
        group: _facts_per_relation(
            count, {relation: sizes[relation] for relation in settings.relations_of(group) or sizes}, settings
        )
        for group, count in settings.counts().items()
        if count
    }
    home: dict[str, str] = {}
    drawn: dict[str, list[tuple[Candidate, str]]] = {}
    # Scarce relations first: a subject's group is settled by the first relation that draws it.
    for relation in sorted(sizes, key=lambda name: (sizes[name], name)):
        wanted = {group: shares.get(group, {}).get(relation, 0) for group in GROUPS}
        rng = random.Random(f"{settings.seed}/{relation}")  # noqa: S311 - a reproducible draw, not a secret
        drawn[relation] = _draw(sources[relation], wanted, home, rng, settings)
    return drawn


def _what_fits(sources: Mapping[str, _UsableFacts], settings: SelectConfig) -> str:
    """Returns the largest numbers of facts in the same proportions that can be chosen, as part of a remedy."""
    if sum(len(source.facts) for source in sources.values()) > _TRIED:
        return ""
    counts = settings.counts()
    most = max(counts.values())
    fits: dict[str, int] = {}
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        fewer = {group: count * middle // most for group, count in counts.items()}
        try:
            _draw_all(sources, settings.model_copy(update=fewer))
        except InputError:
            high = middle
        else:
            low, fits = middle, fewer
    return f" ({', '.join(f'{group}: {count}' for group, count in fits.items())} fit)" if fits else ""


def _frequencies(facts: Iterable[Candidate], entities: Entities) -> Counter[str]:
    """Counts the facts of each object, under one of the names that may mean it."""
    counts = Counter(name_key(fact.object) for fact in facts)
    representatives = representative_names({name: entities.meanings(name) for name in counts})
    found: Counter[str] = Counter()
    for name, count in counts.items():
        found[representatives[name]] += count
    return found


def check_settings(settings: SelectConfig) -> None:
    """Checks what can be checked of the settings without the triples.

    Raises:
        InputError: a number is too small, or a choice unknown.
    """
    for group, count in settings.counts().items():
        if count < 0:
            raise InputError(f"is {count}", where=group, remedy="a number of facts, 0 or more")
    if not any(settings.counts().values()):
        problem = "is 0, and so are background and control"
        raise InputError(problem, where="infused", remedy="ask for facts of at least one group")
    if settings.longest_name is not None and settings.longest_name < 1:
        raise InputError(f"is {settings.longest_name}", where="longest_name", remedy="1 character or more")
    if settings.distractors < 1:
        raise InputError(f"is {settings.distractors}", where="distractors", remedy="at least 1")
    if settings.facts_per_object < 0:
        raise InputError(f"is {settings.facts_per_object}", where="facts_per_object", remedy="0 (any) or more")
    if settings.spread not in SPREADS:
        raise InputError(f"is {settings.spread!r}", where="spread", remedy=f"valid: {', '.join(SPREADS)}")
    if settings.memory_limit < 1:
        raise InputError(f"is {settings.memory_limit}", where="memory_limit", remedy="a number of triples")


def check_relations(settings: SelectConfig) -> None:
    """Checks that no setting names a relation twice.

    Raises:
        InputError: names the setting and the relation.
    """
    for key, relations in settings.named_relations().items():
        twice = [relation for relation, count in Counter(relations).items() if count > 1]
        if twice:
            raise InputError(f"{twice[0]!r} is given twice", where=key, remedy="name each relation once")


def _facts_per_relation(count: int, sizes: dict[str, int], settings: SelectConfig) -> dict[str, int]:
    """Returns the number of facts of a group that each relation provides."""
    if settings.spread == "even":
        return _even_shares(count, list(sizes))
    # A relation whose share is too small for the distractors leaves its share to the others; one at a time, the
    # smallest first, for each that goes makes the rest larger.
    taking = dict(sizes)
    while True:
        shares = _proportional_shares(count, taking)
        short = [relation for relation, share in shares.items() if 0 < share < _fewest_facts(settings)]
        if not short or len(taking) == 1:
            return {relation: shares.get(relation, 0) for relation in sizes}
        del taking[min(short, key=lambda relation: (taking[relation], relation))]


def _proportional_shares(count: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Splits ``count`` in proportion to ``sizes``, rounding up the largest remainders."""
    total = max(1, sum(sizes.values()))
    shares = {relation: count * size // total for relation, size in sizes.items()}
    remainders = sorted(sizes, key=lambda relation: (-(count * sizes[relation] % total), relation))
    for relation in remainders[: count - sum(shares.values())]:
        shares[relation] += 1
    return shares


def _fewest_facts(settings: SelectConfig) -> int:
    """Returns the number of facts of a group and relation that guarantees every question its distractors."""
    return (_objects_needed(settings) - 1) * max(1, settings.facts_per_object) + 1


def _objects_needed(settings: SelectConfig) -> int:
    """Returns the number of different objects of which a question can always be made.

    If the objects were permuted, the subject's object in the source is none of the options.
    """
    return settings.distractors + 1 + settings.permute_objects


def _even_shares(count: int, relations: Sequence[str]) -> dict[str, int]:
    """Splits ``count`` into shares that differ by at most one; the first relations take the remainder."""
    base, rest = divmod(count, max(1, len(relations)))
    return {relation: base + (index < rest) for index, relation in enumerate(relations)}


def _draw(
    source: _UsableFacts,
    wanted: dict[str, int],
    home: dict[str, str],
    rng: random.Random,
    settings: SelectConfig,
) -> list[tuple[Candidate, str]]:
    """Goes through the facts in random order and gives each to a random group that still has room for it."""
    relation, pool, meanings = source.relation, source.facts, source.entities.meanings
    needed = _objects_needed(settings)
    spare = needed - settings.distractors  # objects that are not distractors: the answer, and others of the subject
    objects = len(source.frequencies)
    if 0 < objects < needed and any(wanted.values()):
        raise InputError(
            f"relation {relation!r} has {plural(objects, 'different object')}; "
            f"{plural(settings.distractors, 'distractor')} need {needed}",
            remedy=f"{_at_most(objects - spare)}, or leave the relation out:"
            " more facts of the same objects do not help",
        )
    for group, count in wanted.items():
        if 0 < count < needed:
            raise InputError(
                f"{plural(count, f'{group} fact')} of relation {relation!r} cannot have "
                f"{plural(settings.distractors, 'distractor')} each",
                remedy=f"at least {needed} facts of a group and relation",
            )
    drawn: list[tuple[Candidate, str]] = []
    room = dict(wanted)
    used: dict[str, Counter[str]] = {group: Counter() for group in room}  # number of facts by meaning of the object
    for candidate in rng.sample(pool, len(pool)):
        if not any(room.values()):
            break
        # All facts of a subject stay in one group: a control subject is never shown, by no relation.
        subject = meanings(candidate.subject)
        homes = {home[one] for one in subject if one in home}
        if len(homes) > 1:
            continue
        groups = [
            group
            for group in homes or GROUPS
            if room[group] and _has_room(used[group], candidate.object, source.entities, settings.facts_per_object)
        ]
        if not groups:
            continue
        group = rng.choices(groups, [room[group] for group in groups])[0]
        home |= dict.fromkeys(subject, group)
        room[group] -= 1
        used[group].update(meanings(candidate.object))
        drawn.append((candidate, group))
    short = {group: left for group, left in room.items() if left}
    if short:
        asked = " + ".join(f"{count} {group}" for group, count in wanted.items() if count)
        taken = f"only {len(drawn)} of its {plural(len(pool), 'usable fact')} ({objects} objects) can be used together"
        few = f"it has {len(pool)} usable ones with {plural(objects, 'object')}" if len(drawn) == len(pool) else taken
        raise _TooFewFactsError(
            f"relation {relation!r} must provide {plural(sum(wanted.values()), 'fact')} ({asked}), but {few}",
            remedy=f"{_or_raise(settings, wanted, source.frequencies)}, or add relations",
        )
    for group in room:
        found = _frequencies((candidate for candidate, owner in drawn if owner == group), source.entities)
        if 0 < len(found) < needed:
            raise InputError(
                f"the {plural(found.total(), f'{group} fact')} of relation {relation!r} have "
                f"{plural(len(found), 'different object')}; {plural(settings.distractors, 'distractor')} need {needed}",
                # If no more facts than that share an object, there are so many objects whatever is drawn.
                remedy=f"facts_per_object of {max(1, (found.total() - 1) // (needed - 1))} or less,"
                f" {_at_most(len(found) - spare)}, or more {group} facts",
            )
    return drawn


def _has_room(used: Counter[str], answer: str, entities: Entities, most: int) -> bool:
    """Returns whether fewer than ``most`` facts (0: any number) have an object that may mean the same as this one."""
    own = f"={name_key(answer)}"
    if most and used[own] < most and any(used[one] >= most for one in entities.meanings(answer)):
        used[own] = most  # so it stays: many entities may have one name
    return not most or used[own] < most


def _at_most(distractors: int) -> str:
    return f"at most {plural(distractors, 'distractor')}" if distractors > 0 else "a relation whose objects differ"


def _or_raise(settings: SelectConfig, wanted: Mapping[str, int], of_object: Mapping[str, int]) -> str:
    """Returns advice on ``facts_per_object`` if that is what excludes facts."""
    each, total = settings.facts_per_object, sum(wanted.values())
    if not each or total > sum(of_object.values()):
        return ""
    room = {groups: sum(min(count, groups * each) for count in of_object.values()) for groups in range(1, 4)}
    if max(wanted.values()) <= room[1] and total <= room[sum(count > 0 for count in wanted.values())]:
        return ""
    shares = [-(-count // len(of_object)) for count in wanted.values()]
    return f", raise facts_per_object (to {max(settings.facts_per_object + 1, *shares)} or more)"


def _fact(candidate: Candidate, group: str) -> Fact:
    return Fact(
        id=candidate.id or f"{candidate.relation}/{candidate.subject}",
        subject=candidate.subject,
        relation=candidate.relation,
        object=candidate.object,
        group=group,
        subject_aliases=candidate.subject_aliases,
        object_aliases=candidate.object_aliases,
        subject_id=candidate.subject_id,
        object_id=candidate.object_id,
        source_object=candidate.source_object,
    )


def _unique_ids(facts: list[Fact]) -> None:
    twice = [identifier for identifier, count in Counter(fact.id for fact in facts).items() if count > 1]
    if twice:
        raise InputError(f"several facts have the id {twice[0]!r}", remedy="ids must be unique, or left out")
