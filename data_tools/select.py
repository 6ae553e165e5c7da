"""Chooses the facts of a study from imported triples: drops what cannot be asked fairly, splits the rest by seed.

The three groups are exchangeable: a fact's group is a random draw within its relation, so a difference between groups
can only come from what the model was shown. Within a group and relation an object is the answer of one fact only (by
default): every option is then equally often right, and preferring a frequent object gains nothing.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from data_tools.facts import GROUPS, Candidate, Fact
from data_tools.names import gives_away, name_words
from megatron_kis.errors import InputError, nearest


@dataclass(frozen=True, slots=True)
class SelectSettings:
    """How many facts a study takes, and which."""

    infused: int = 100
    """Facts of group ``infused`` in all, spread evenly over the relations."""
    background: int = 100
    """Facts of group ``background``."""
    control: int = 100
    """Facts of group ``control``. Keep the three numbers alike: chance and its spread are then comparable."""
    relations: tuple[str, ...] = ()
    """Relations to use; empty means all that the source has."""
    distractors: int = 3
    """Wrong options a question will have: each group and relation must offer that many other objects."""
    facts_per_object: int = 1
    """Facts of one group and relation that may share an object."""
    longest_name: int | None = None
    """Longest subject or object in characters; None for any. Short sequences cannot hold long names."""
    keep_telling_names: bool = False
    """Keep facts whose subject's name hints at the object."""
    seed: int = 0
    """Seed of the split."""

    def counts(self) -> dict[str, int]:
        """Facts of each group."""
        return {"infused": self.infused, "background": self.background, "control": self.control}


@dataclass(slots=True)
class Selection:
    """The chosen facts and what was left out."""

    facts: list[Fact] = field(default_factory=list)
    """In the order of the file: group, then relation, then drawn order."""
    imported: Counter[str] = field(default_factory=Counter)
    """Imported triples of each relation."""
    dropped: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Reason to relation to count of dropped triples."""

    def summary(self) -> list[str]:
        """What was imported, dropped and chosen, one line each."""
        lines = [f"imported {_counts(self.imported)}"]
        lines += [f"dropped {_counts(counts)}: {reason}" for reason, counts in self.dropped.items() if counts]
        for group in GROUPS:
            chosen = Counter(fact.relation for fact in self.facts if fact.group == group)
            lines.append(f"{group}: {_counts(chosen)}")
        return lines


def _counts(counter: Mapping[str, int]) -> str:
    total = sum(counter.values())
    return f"{total} (" + ", ".join(f"{count} {name}" for name, count in sorted(counter.items())) + ")"


def select_facts(candidates: Iterable[Candidate], settings: SelectSettings) -> Selection:
    """Drops unfair facts and splits the rest into groups.

    Raises:
        InputError: a relation is unknown, or has too few facts or objects for its share; says how many there are.
    """
    _check(settings)
    selection = Selection()
    pools = _pools(candidates, settings, selection)
    order = sorted(pools) if not settings.relations else list(settings.relations)
    shares = {group: _spread(count, order) for group, count in settings.counts().items()}
    home: dict[tuple[str, ...], str] = {}
    drawn: dict[str, list[tuple[Candidate, str]]] = {}
    # Scarce relations first: a subject's group is settled by the first relation that draws it.
    for relation in sorted(order, key=lambda name: (len(pools[name]), name)):
        wanted = {group: shares[group][relation] for group in GROUPS}
        rng = random.Random(f"{settings.seed}/{relation}")  # noqa: S311 - a reproducible draw, not a secret
        drawn[relation] = _draw(relation, pools[relation], wanted, home, rng, settings)
    for group in GROUPS:
        for relation in order:
            chosen = [candidate for candidate, owner in drawn[relation] if owner == group]
            selection.facts += [_fact(candidate, group) for candidate in chosen]
    _unique_ids(selection.facts)
    return selection


def _check(settings: SelectSettings) -> None:
    for group, count in settings.counts().items():
        if count < 0:
            raise InputError(f"is {count}", where=f"facts.{group}", remedy="a number of facts, 0 or more")
    if settings.distractors < 1:
        raise InputError(f"is {settings.distractors}", where="distractors", remedy="at least 1")
    if settings.facts_per_object < 1:
        raise InputError(f"is {settings.facts_per_object}", where="facts_per_object", remedy="at least 1")


def _pools(
    candidates: Iterable[Candidate], settings: SelectSettings, selection: Selection
) -> dict[str, list[Candidate]]:
    """The usable facts of each relation."""
    wanted = set(settings.relations)
    by_pair: dict[tuple[str, tuple[str, ...]], dict[tuple[str, ...], Candidate]] = defaultdict(dict)
    entities: dict[tuple[str, ...], set[str]] = defaultdict(set)
    seen: set[str] = set()
    for candidate in candidates:
        seen.add(candidate.relation)
        if wanted and candidate.relation not in wanted:
            continue
        selection.imported[candidate.relation] += 1
        subject, answer = name_words(candidate.subject), name_words(candidate.object)
        if not subject or not answer:
            selection.dropped["no letter or digit in a name"][candidate.relation] += 1
            continue
        if candidate.entity:
            entities[subject].add(candidate.entity)
        objects = by_pair[candidate.relation, subject]
        if answer in objects:
            selection.dropped["said twice"][candidate.relation] += 1
        else:
            objects[answer] = candidate
    for relation in settings.relations:
        if relation not in seen:
            raise InputError(f"no facts of relation {relation!r}", remedy=nearest(relation, seen))
    pools: dict[str, list[Candidate]] = {relation: [] for relation in selection.imported}
    for (relation, subject), objects in by_pair.items():
        candidate = next(iter(objects.values()))
        reason = _unfair(candidate, len(objects), len(entities[subject]), settings)
        if reason:
            selection.dropped[reason][relation] += len(objects)
        else:
            pools[relation].append(candidate)
    return pools


def _unfair(candidate: Candidate, objects: int, bearers: int, settings: SelectSettings) -> str | None:
    if objects > 1:
        return "ambiguous: the subject has several objects"
    if bearers > 1:
        return "ambiguous: several entities bear the subject's name"
    if not settings.keep_telling_names and gives_away(candidate.subject, candidate.object):
        return "the subject's name hints at the object"
    longest = max(len(candidate.subject), len(candidate.object))
    if settings.longest_name is not None and longest > settings.longest_name:
        return f"a name longer than {settings.longest_name} characters"
    return None


def _spread(count: int, relations: Sequence[str]) -> dict[str, int]:
    """Shares of ``count`` that differ by at most one, the first relations taking the remainder."""
    base, rest = divmod(count, max(1, len(relations)))
    return {relation: base + (index < rest) for index, relation in enumerate(relations)}


def _draw(
    relation: str,
    pool: list[Candidate],
    wanted: dict[str, int],
    home: dict[tuple[str, ...], str],
    rng: random.Random,
    settings: SelectSettings,
) -> list[tuple[Candidate, str]]:
    """Goes through the pool in random order and gives each fact to a random group that still has room for it."""
    for group, count in wanted.items():
        if 0 < count <= settings.distractors * settings.facts_per_object:
            raise InputError(
                f"{count} {group} facts of relation {relation!r} cannot have {settings.distractors} distractors each",
                remedy=f"at least {settings.distractors * settings.facts_per_object + 1} facts of a group and relation",
            )
    drawn: list[tuple[Candidate, str]] = []
    room = dict(wanted)
    used: dict[str, Counter[tuple[str, ...]]] = {group: Counter() for group in room}
    for candidate in rng.sample(pool, len(pool)):
        if not any(room.values()):
            break
        subject, answer = name_words(candidate.subject), name_words(candidate.object)
        # All facts of a subject stay in one group: a control subject is never shown, by no relation.
        groups = [home[subject]] if subject in home else list(GROUPS)
        groups = [group for group in groups if room[group] and used[group][answer] < settings.facts_per_object]
        if not groups:
            continue
        group = rng.choices(groups, [room[group] for group in groups])[0]
        home[subject] = group
        room[group] -= 1
        used[group][answer] += 1
        drawn.append((candidate, group))
    short = {group: left for group, left in room.items() if left}
    if short:
        objects = len({name_words(candidate.object) for candidate in pool})
        lacking = ", ".join(f"{left} {group}" for group, left in short.items())
        raise InputError(
            f"relation {relation!r} lacks {lacking} facts: {sum(wanted.values())} wanted of {len(pool)} usable ones"
            f" with {objects} objects",
            remedy="ask for fewer facts, add relations, or raise facts_per_object",
        )
    return drawn


def _fact(candidate: Candidate, group: str) -> Fact:
    return Fact(
        id=candidate.id or f"{candidate.relation}/{candidate.subject}",
        subject=candidate.subject,
        relation=candidate.relation,
        object=candidate.object,
        group=group,
        subject_aliases=candidate.subject_aliases,
        object_aliases=candidate.object_aliases,
    )


def _unique_ids(facts: list[Fact]) -> None:
    twice = [identifier for identifier, count in Counter(fact.id for fact in facts).items() if count > 1]
    if twice:
        raise InputError(f"several facts have the id {twice[0]!r}", remedy="ids must be unique, or left out")
