"""Which objects are the options of a question.

An option is never right: by the data it means neither the answer nor another object that the relation has for the
subject, whatever names it has (``facts.names``). No two options may mean the same, or be the same tokens in a
statement, and none extends the answer or is extended by it (``megatron_kis.data_tools.rendering.rivals``).
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import product

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.facts.names import Entities, name_key, one_of_each
from megatron_kis.data_tools.rendering.paraphrases import Paraphrases, with_paraphrases
from megatron_kis.data_tools.rendering.rivals import Rivals
from megatron_kis.data_tools.rendering.templates import Templates
from megatron_kis.data_tools.tokenizers.base import Tokenizer

_Marks = frozenset[Hashable]
"""What a name may mean, and the tokens that it shares with others: options that have a mark in common are one."""
_SPARE = 4  # names drawn beyond the distractors, because a few may be right
_DRAWS = 8  # then all names are looked through
_EXCHANGES = 64  # blocks, or facts left over, that are tried for an exchange
_FAILURES = 8  # blocks for which that may fail: then too many facts clash for a better deal
_MANY = 64  # right objects of a subject with which the wrong ones are kept, not sought for each of its facts
_LOOKED_AT = 64  # facts that a message about too few objects looks at


@dataclass
class Dealt:
    """The options of questions."""

    options: dict[str, tuple[list[str], int]] = field(default_factory=dict)
    """Fact id to its options, and the index of the right one."""
    left_out: list[str] = field(default_factory=list)
    """Ids of facts that are not asked about: too few objects are wrong and can be told from theirs."""


def choose_options(
    facts: Sequence[Fact], *, distractors: int | None, seed: int, asked: int | None = None
) -> dict[str, tuple[list[str], int]]:
    """The options that :func:`deal` gives where no object extends another."""
    return deal(facts, distractors=distractors, seed=seed, asked=asked).options


def deal(
    facts: Sequence[Fact],
    *,
    distractors: int | None,
    seed: int,
    asked: int | None = None,
    rivals: Rivals | None = None,
) -> Dealt:
    """Options of every asked fact: its object and distractors of the same relation and group, in random order.

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
        rivals: which objects cannot be told apart by their tokens.

    Raises:
        InputError: none of the facts of a group and relation can be asked about, or ``asked`` is less than 1.
    """
    if asked is not None and asked < 1:
        raise InputError(f"is {asked}", where="asked", remedy="1 or more facts of each group, or all")
    cells: dict[tuple[str, str], list[Fact]] = defaultdict(list)
    for fact in facts:
        cells[fact.group, fact.relation].append(fact)
    sizes = Counter(fact.group for fact in facts)
    rules, dealt = _Rules(facts, rivals), Dealt()
    for (group, relation), cell in cells.items():
        share = len(cell) if asked is None else -(-asked * len(cell) // sizes[group])  # rounded up
        rng = random.Random(f"{seed}/{group}/{relation}")  # noqa: S311 - a reproducible draw, not a secret
        before = len(dealt.options)
        own = _Cell(cell, rules)
        if distractors is None:
            own.deal_all(dealt, share, rng)
        else:
            own.deal(dealt, distractors, share, rng)
        if share and len(dealt.options) == before:
            raise own.nothing_to_ask(distractors)
    return dealt


class _Rules:
    """Which objects of a group and relation may be distractors of a fact."""

    def __init__(self, facts: Sequence[Fact], rivals: Rivals | None) -> None:
        self._entities, self._rivals = Entities(facts), rivals
        self._marks: dict[tuple[str, str], _Marks] = {}
        named: dict[tuple[str, str], set[Hashable]] = defaultdict(set)
        for fact in facts:
            named[fact.relation, name_key(fact.subject)] |= self.marks(fact.relation, fact.object)
        self._right: dict[tuple[str, str], set[Hashable]] = defaultdict(set)
        """Relation and what a subject may be, to the marks of all its objects."""
        for (relation, subject), marks in named.items():
            for meaning in self._entities.meanings(subject):
                self._right[relation, meaning] |= marks

    def marks(self, relation: str, name: str) -> _Marks:
        """What options of a relation must not have in common with an object."""
        if (relation, name) not in self._marks:
            tied = self._rivals.ties(relation, name) if self._rivals else frozenset()
            self._marks[relation, name] = self._entities.meanings(name) | tied
        return self._marks[relation, name]

    def is_tied(self, fact: Fact) -> bool:
        """Whether the fact's object is the same tokens as another one in some statement."""
        return bool(self._rivals and self._rivals.ties(fact.relation, fact.object))

    def right(self, fact: Fact) -> list[set[Hashable]]:
        """The marks of all objects that are right for the fact's subject."""
        return [self._right[fact.relation, meaning] for meaning in self._entities.meanings(fact.subject)]

    def wrong(self, fact: Fact, name: str) -> bool:
        """Whether an object is wrong for a fact."""
        marks = self.marks(fact.relation, name)
        return all(marks.isdisjoint(right) for right in self.right(fact))

    def allow(self, fact: Fact, name: str) -> bool:
        """Whether it may be a distractor, too."""
        return self.wrong(fact, name) and not (self._rivals and self._rivals(fact, name))

    def clashes(self, block: Sequence[Fact]) -> int:
        """How often an object of a block must not be a distractor of another fact of it."""
        return sum(not self.allow(fact, other.object) for fact in block for other in block if other is not fact)

    def rivals_of(self, fact: Fact) -> set[str]:
        """The objects that the fact's own extends, or that extend it."""
        near = self._rivals.near(fact.relation) if self._rivals else ()
        return {name for name in near if self._rivals and self._rivals(fact, name)}


class _Cell:
    """The facts of a group and relation, and their different objects."""

    def __init__(self, facts: list[Fact], rules: _Rules) -> None:
        self.facts, self.rules = facts, rules
        names = {name_key(fact.object): fact.object for fact in facts}
        marks = {key: rules.marks(facts[0].relation, name) for key, name in names.items()}
        self.stands = one_of_each(marks)
        self.objects = [name for key, name in sorted(names.items()) if self.stands[key] == key]
        """Each under one name, in the order of these names."""
        self._marked = {mark: name for name in self.objects for mark in marks[name_key(name)]}
        self._right: dict[str, frozenset[str]] = {}
        self._wrong: dict[str, list[str]] = {}

    def deal_all(self, dealt: Dealt, share: int, rng: random.Random) -> None:
        """All that is wrong, for ``share`` of the facts; facts without other objects share one list."""
        for fact in rng.sample(self.facts, share):
            barred = self.right_objects(fact) | self.rules.rivals_of(fact)
            options = self.objects
            if barred != {fact.object}:
                wrong = [name for name in self.objects if name not in barred]
                options = sorted([*wrong, fact.object], key=name_key)
            if len(options) < 2:
                dealt.left_out.append(fact.id)
            else:
                dealt.options[fact.id] = (options, options.index(fact.object))

    def deal(self, dealt: Dealt, distractors: int, share: int, rng: random.Random) -> None:
        """Blocks of facts whose objects are the options of each; the few facts left over take random distractors."""
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
                dealt.left_out.append(fact.id)
        for fact in self.facts:
            if fact.id in options:
                order = rng.sample(options[fact.id], 1 + distractors)
                dealt.options[fact.id] = (order, order.index(fact.object))

    def nothing_to_ask(self, distractors: int | None) -> InputError:
        """The error where no fact has its distractors: because too few are wrong, or because they extend others."""
        wrong, fact = max(
            ((len(self.objects) - len(self.right_objects(fact)), fact) for fact in self.facts[:_LOOKED_AT]),
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
        """Those of the different objects that are right for the fact's subject."""
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
        """Up to ``count`` different objects that may be distractors: all that there are where they are too few."""
        allow, objects = self.rules.allow, self.objects
        for _ in range(_DRAWS):
            drawn = [name for name in rng.sample(objects, min(len(objects), count + _SPARE)) if allow(fact, name)]
            if len(drawn) >= count:
                return drawn[:count]
        drawn = self._wrong_objects(fact)
        if barred := self.rules.rivals_of(fact):
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


def _blocks(facts: Sequence[Fact], cell: _Cell, size: int) -> tuple[list[list[Fact]], list[Fact]]:
    """Blocks of ``size`` facts each of whose objects may be a distractor of the others, and what is left over.

    Facts lie sorted by their object, the most frequent first, and are dealt to the blocks in turn: one object's facts
    go to different blocks. An object that has more facts than there are blocks leaves some over.
    """
    rules = cell.rules
    by_object: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        by_object[cell.stands[name_key(fact.object)]].append(fact)
    members = sorted(by_object.values(), key=len, reverse=True)
    count = len(facts) // size
    while (fitting := sum(min(len(member), count) for member in members) // size) < count:
        count = fitting
    dealt = [fact for member in members for fact in member[:count]]
    rest = [fact for member in members for fact in member[count:]] + dealt[count * size :]
    blocks = [dealt[start : count * size : count] for start in range(count)]
    _part_rivals(blocks, rest, rules)
    sound = [not rules.clashes(block) for block in blocks]
    rest += [fact for block, kept in zip(blocks, sound, strict=True) if not kept for fact in block]
    return [block for block, kept in zip(blocks, sound, strict=True) if kept], rest


def _part_rivals(blocks: list[list[Fact]], rest: list[Fact], rules: _Rules) -> None:
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


def _exchanged(block: list[Fact], other: list[Fact], rules: _Rules, *, free: bool = False) -> bool:
    """Exchanges two facts if that leaves fewer clashes; facts that are ``free``, in no block, clash with none."""
    before = rules.clashes(block) + (0 if free else rules.clashes(other))
    for at, place in product(range(len(block)), range(min(len(other), _EXCHANGES))):
        mine, theirs = list(block), list(other)
        mine[at], theirs[place] = other[place], block[at]
        if rules.clashes(mine) + (0 if free else rules.clashes(theirs)) < before:
            block[:], other[:] = mine, theirs
            return True
    return False


def deal_fairly(
    facts: Sequence[Fact],
    templates: Templates,
    tokenizer: Tokenizer,
    *,
    distractors: int | None,
    seed: int,
    asked: int | None = None,
    paraphrases: Paraphrases | None = None,
) -> Dealt:
    """:func:`deal` without options that extend one another, or are the same tokens, in statements of these templates.

    Args and errors are those of :func:`deal`; ``paraphrases`` are sentences of single facts, next to the templates.
    """
    own = paraphrases or {}
    rivals = Rivals(facts, lambda fact: with_paraphrases(templates[fact.relation], own.get(fact.id)), tokenizer)
    return deal(facts, distractors=distractors, seed=seed, asked=asked, rivals=rivals)
