"""Chooses the options of a question: the right object and its distractors.

An option is never right: by the data it means neither the answer nor another object that the relation has for the
subject, whatever names it has (``facts.names``). If the objects were permuted, the source's own object is no option
either. No two options may mean the same, or be the same tokens in a statement, and none extends the answer or is
extended by it (``rendering.confusable``).
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import islice, product

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.facts.names import Entities, name_key, representative_names
from megatron_kis.data_tools.rendering.confusable import ConfusableOptions
from megatron_kis.data_tools.rendering.paraphrases import Paraphrases, with_paraphrases
from megatron_kis.data_tools.rendering.templates import Templates
from megatron_kis.data_tools.tokenizers.base import Tokenizer

Marks = frozenset[Hashable]
"""Meanings of a name, and the token sequences that it shares with others: two options with a common mark are one."""
_SPARE = 4  # names drawn in excess of the distractors, because a few may be right
_DRAWS = 8  # after so many draws all names are searched
_EXCHANGES = 64  # blocks, or facts left over, that are tried for an exchange
_FAILURES = 8  # blocks for which that may fail: then too many facts clash for a better choice
_MANY = 64  # right objects of a subject from which on its wrong ones are cached
_INSPECTED = 64  # facts inspected for a message about too few objects


@dataclass
class ChosenOptions:
    """The options of questions."""

    options: dict[str, tuple[list[str], int]] = field(default_factory=dict)
    """Options of each fact by its id, with the index of the right one."""
    left_out: list[str] = field(default_factory=list)
    """Ids of facts that no question asks about: too few objects are wrong and distinguishable from theirs."""


def choose_options(
    facts: Sequence[Fact],
    *,
    distractors: int | None,
    seed: int,
    asked: int | None = None,
    confusable: ConfusableOptions | None = None,
) -> ChosenOptions:
    """Chooses the options of every asked fact: its object and distractors of its relation and group, in random order.

    Distractors of another group would be a trap: a model prefers any object it was trained on, and controls would fall
    below chance. Of an object that has several names in a group and relation one name is an option.

    Facts of a group and relation are put into random blocks of ``1 + distractors``, and the objects of a block are the
    options of each of its facts. A model that prefers some names whatever the subject (short ones, frequent ones) then
    has exactly one question of a block right: its score is chance itself, not chance plus the luck of the draw. The few
    facts left over take random distractors.

    Args:
        facts: all facts of the study.
        distractors: wrong options of each question; None for the whole answer space, every object of the group and
            relation that is not right under one name, all questions in the same order.
        seed: seed of the draw.
        asked: facts of each group to ask about, drawn at random and spread over its relations as the facts are, in
            whole blocks; None for all.
        confusable: objects that cannot be told apart by their tokens.

    Raises:
        InputError: none of the facts of a group and relation can be asked about, or ``asked`` is less than 1.
    """
    if asked is not None and asked < 1:
        raise InputError(f"is {asked}", where="asked", remedy="1 or more facts of each group, or all")
    strata: dict[tuple[str, str], list[Fact]] = defaultdict(list)
    for fact in facts:
        strata[fact.group, fact.relation].append(fact)
    sizes = Counter(fact.group for fact in facts)
    rules, chosen = _DistractorRules(facts, confusable), ChosenOptions()
    for (group, relation), stratum in strata.items():
        share = len(stratum) if asked is None else -(-asked * len(stratum) // sizes[group])  # rounded up
        rng = random.Random(f"{seed}/{group}/{relation}")  # noqa: S311 - a reproducible draw, not a secret
        before = len(chosen.options)
        own = _Stratum(stratum, rules)
        if distractors is None:
            own.choose_all(chosen, share, rng)
        else:
            own.choose_in_blocks(chosen, distractors, share, rng)
        if share and len(chosen.options) == before:
            raise own.nothing_to_ask(distractors)
    return chosen


class _DistractorRules:
    """Rules for the objects of a relation that may be distractors of a fact."""

    def __init__(self, facts: Sequence[Fact], confusable: ConfusableOptions | None) -> None:
        self._entities = Entities(facts)
        self._confusable = confusable
        self._marks: dict[tuple[str, str], Marks] = {}
        named: dict[tuple[str, str], set[Hashable]] = defaultdict(set)
        for fact in facts:
            named[fact.relation, name_key(fact.subject)] |= self.marks(fact.relation, fact.object)
            if fact.source_object:  # a model may know it from elsewhere, and would prefer it
                named[fact.relation, name_key(fact.subject)] |= self.marks(fact.relation, fact.source_object)
        self._right: dict[tuple[str, str], set[Hashable]] = defaultdict(set)
        """Marks of all right objects, by relation and by what the subject may mean."""
        self._asked: tuple[str, str] | None = None
        self._right_there: list[set[Hashable]] = []
        """What `right` returned last, for this relation and subject: many objects in turn are compared with it."""
        for (relation, subject), marks in named.items():
            for meaning in self._entities.meanings(subject):
                self._right[relation, meaning] |= marks

    def marks(self, relation: str, name: str) -> Marks:
        """Returns the marks of an object, of which other options must have none."""
        if (relation, name) not in self._marks:
            tied = self._confusable.ties(relation, name) if self._confusable else frozenset()
            self._marks[relation, name] = self._entities.meanings(name) | tied
        return self._marks[relation, name]

    def is_tied(self, fact: Fact) -> bool:
        """Returns whether the fact's object has the same tokens as another one in some statement."""
        return bool(self._confusable and self._confusable.ties(fact.relation, fact.object))

    def right(self, fact: Fact) -> list[set[Hashable]]:
        """Returns the marks of all objects that are right for the fact's subject."""
        if self._asked != (asked := (fact.relation, fact.subject)):
            meanings = self._entities.meanings(fact.subject)
            self._asked, self._right_there = asked, [self._right[fact.relation, meaning] for meaning in meanings]
        return self._right_there

    def is_wrong(self, fact: Fact, name: str) -> bool:
        """Returns whether an object is wrong for a fact."""
        marks = self.marks(fact.relation, name)
        return all(marks.isdisjoint(right) for right in self.right(fact))

    def is_allowed(self, fact: Fact, name: str) -> bool:
        """Returns whether an object may be a distractor of a fact: wrong, and not confusable with the right one."""
        return self.is_wrong(fact, name) and not (self._confusable and self._confusable(fact, name))

    def clashes(self, block: Sequence[Fact]) -> int:
        """Counts the pairs of facts in a block of which one's object must not be a distractor of the other."""
        return sum(not self.is_allowed(fact, other.object) for fact in block for other in block if other is not fact)

    def confusable_with(self, fact: Fact) -> set[str]:
        """Returns the objects that the fact's own extends, or that extend it."""
        near = self._confusable.near(fact.relation) if self._confusable else ()
        return {name for name in near if self._confusable and self._confusable(fact, name)}


class _Stratum:
    """The facts of one group and relation, and their different objects."""

    def __init__(self, facts: list[Fact], rules: _DistractorRules) -> None:
        self.facts = facts
        self.rules = rules
        names = {name_key(fact.object): fact.object for fact in facts}
        marks = {key: rules.marks(facts[0].relation, name) for key, name in names.items()}
        self.representatives = representative_names(marks)
        self.objects = [name for key, name in sorted(names.items()) if self.representatives[key] == key]
        """The different objects, each under one name, sorted by name."""
        self._marked = {mark: name for name in self.objects for mark in marks[name_key(name)]}
        self._right: dict[str, frozenset[str]] = {}
        self._wrong: dict[str, list[str]] = {}

    def choose_all(self, chosen: ChosenOptions, share: int, rng: random.Random) -> None:
        """Gives ``share`` of the facts all wrong objects; facts with a single right one share one list."""
        for fact in rng.sample(self.facts, share):
            barred = self.right_objects(fact) | self.rules.confusable_with(fact)
            options = self.objects
            if barred != {fact.object}:
                wrong = [name for name in self.objects if name not in barred]
                options = sorted([*wrong, fact.object], key=name_key)
            if len(options) < 2:
                chosen.left_out.append(fact.id)
            else:
                chosen.options[fact.id] = (options, options.index(fact.object))

    def choose_in_blocks(self, chosen: ChosenOptions, distractors: int, share: int, rng: random.Random) -> None:
        """Gives each fact of a block the objects of the block; the few facts left over take random distractors."""
        drawn = rng.sample(self.facts, len(self.facts))
        hopeless = {fact.id for fact in drawn if not self._has_wrong(fact, distractors)}
        blocks, rest = _blocks([fact for fact in drawn if fact.id not in hopeless], self, 1 + distractors)
        blocks = blocks[: -(-share // (1 + distractors))]
        options = {fact.id: [other.object for other in block] for block in blocks for fact in block}
        for fact in [*rest, *(fact for fact in drawn if fact.id in hopeless)]:
            if len(options) >= share:
                break
            wrong = [] if fact.id in hopeless else self._draw(fact, distractors, rng)
            if len(wrong) == distractors:
                options[fact.id] = [*wrong, fact.object]
            else:
                chosen.left_out.append(fact.id)
        for fact in self.facts:
            if fact.id in options:
                order = rng.sample(options[fact.id], 1 + distractors)
                chosen.options[fact.id] = (order, order.index(fact.object))

    def nothing_to_ask(self, distractors: int | None) -> InputError:
        """Returns the error for facts of which none has its distractors: too few are wrong, or they extend others."""
        wrong, fact = max(
            ((len(self.objects) - len(self.right_objects(fact)), fact) for fact in self.facts[:_INSPECTED]),
            key=lambda pair: pair[0],
        )
        if wrong >= (distractors or 1) or any(self.rules.is_tied(other) for other in self.facts):
            return InputError(
                f"no fact of relation {fact.relation!r} in group {fact.group!r} can be asked about: an option must not"
                f" extend another one or be the same tokens, and the objects do (fact {fact.id!r})",
                remedy="facts with other objects, or fewer distractors",
            )
        if distractors is None:
            return InputError(
                f"fact {fact.id!r} has no wrong object in group {fact.group!r}",
                remedy="more facts of this group and relation",
            )
        return InputError(
            f"fact {fact.id!r} has {wrong} possible distractors in group {fact.group!r}, needs {distractors}",
            remedy="more facts of this group and relation with other objects, or fewer distractors",
        )

    def right_objects(self, fact: Fact) -> frozenset[str]:
        """Returns those of the different objects that are right for the fact's subject."""
        key = name_key(fact.subject)
        if key not in self._right:
            marks = (mark for right in self.rules.right(fact) for mark in right)
            self._right[key] = frozenset(self._marked[mark] for mark in marks if mark in self._marked)
        return self._right[key]

    def _has_wrong(self, fact: Fact, count: int) -> bool:
        if sum(map(len, self.rules.right(fact))) <= len(self.objects) - count:  # an object has a mark or more
            return True
        return len(self.objects) - len(self.right_objects(fact)) >= count

    def _draw(self, fact: Fact, count: int, rng: random.Random) -> list[str]:
        """Draws ``count`` different objects that may be distractors; all that exist where they are too few."""
        is_allowed, objects = self.rules.is_allowed, self.objects
        for _ in range(_DRAWS):
            sampled = rng.sample(objects, min(len(objects), count + _SPARE))
            drawn = list(islice((name for name in sampled if is_allowed(fact, name)), count))
            if len(drawn) == count:
                return drawn
        drawn = self._wrong_objects(fact)
        if barred := self.rules.confusable_with(fact):
            drawn = [name for name in drawn if name not in barred]
        return rng.sample(drawn, min(count, len(drawn)))

    def _wrong_objects(self, fact: Fact) -> list[str]:
        right = self.right_objects(fact)
        if len(right) < _MANY:
            return [name for name in self.objects if name not in right]
        key = name_key(fact.subject)
        if key not in self._wrong:
            self._wrong[key] = [name for name in self.objects if name not in right]
        return self._wrong[key]


def _blocks(facts: Sequence[Fact], stratum: _Stratum, size: int) -> tuple[list[list[Fact]], list[Fact]]:
    """Forms blocks of ``size`` facts whose objects may be distractors of one another; also returns the facts left over.

    Facts are sorted by their object, the most frequent first, and dealt to the blocks in turn: one object's facts go to
    different blocks. An object that has more facts than there are blocks leaves some over.
    """
    rules = stratum.rules
    by_object: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        by_object[stratum.representatives[name_key(fact.object)]].append(fact)
    members = sorted(by_object.values(), key=len, reverse=True)
    count = len(facts) // size
    while (fitting := sum(min(len(member), count) for member in members) // size) < count:
        count = fitting
    dealt = [fact for member in members for fact in member[:count]]
    rest = [fact for member in members for fact in member[count:]] + dealt[count * size :]
    blocks = [dealt[start : count * size : count] for start in range(count)]
    _separate_confusable(blocks, rest, rules)
    sound = [not rules.clashes(block) for block in blocks]
    rest += [fact for block, kept in zip(blocks, sound, strict=True) if not kept for fact in block]
    return [block for block, kept in zip(blocks, sound, strict=True) if kept], rest


def _separate_confusable(blocks: list[list[Fact]], rest: list[Fact], rules: _DistractorRules) -> None:
    """Exchanges facts between blocks, and with those left over, as long as that leaves fewer clashes."""
    failed = 0
    for place, block in enumerate(blocks):
        if failed == _FAILURES:
            break
        if not rules.clashes(block):
            continue
        near = [blocks[(place + step) % len(blocks)] for step in range(1, min(len(blocks), _EXCHANGES))]
        while rules.clashes(block):
            if any(_exchanged(block, other, rules) for other in near):
                continue
            if not _exchanged(block, rest, rules, free=True):
                failed += 1
                break


def _exchanged(block: list[Fact], other: list[Fact], rules: _DistractorRules, *, free: bool = False) -> bool:
    """Exchanges two facts if that leaves fewer clashes; facts that are ``free``, in no block, clash with none."""
    before = rules.clashes(block) + (0 if free else rules.clashes(other))
    for at, place in product(range(len(block)), range(min(len(other), _EXCHANGES))):
        mine, theirs = list(block), list(other)
        mine[at], theirs[place] = other[place], block[at]
        if rules.clashes(mine) + (0 if free else rules.clashes(theirs)) < before:
            block[:], other[:] = mine, theirs
            return True
    return False


def choose_fair_options(
    facts: Sequence[Fact],
    templates: Templates,
    tokenizer: Tokenizer,
    *,
    distractors: int | None,
    seed: int,
    asked: int | None = None,
    paraphrases: Paraphrases | None = None,
) -> ChosenOptions:
    """Chooses options that neither extend one another nor have the same tokens in statements of these templates.

    Args and errors are those of :func:`choose_options`; ``paraphrases`` are sentences of single facts, next to the
    templates.
    """
    own = paraphrases or {}
    confusable = ConfusableOptions(
        facts, lambda fact: with_paraphrases(templates[fact.relation], own.get(fact.id)), tokenizer
    )
    return choose_options(facts, distractors=distractors, seed=seed, asked=asked, confusable=confusable)
