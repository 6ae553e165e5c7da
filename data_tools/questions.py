"""Multiple-choice questions about facts, as token ids ready to be scored.

``PREFIX.questions.jsonl``: a header line (schema ``kis.questions/1``) with every choice that affects scores, then one
row a fact and template::

    {"fact", "group", "relation", "split": "train|held_out|question", "template": index within the split,
     "answer": index of the right option, "options": [{"text", "tokens": [...], "span": [a, b)}, ...]}

and ``"aliases"``, like ``options``, where the object has other names: right when a model completes the statement.
``tokens`` is the whole statement with the option filled in, without end-of-document tokens before or after. ``span`` is
the option's token range in it, read off the tokenized whole, so that the space before the option belongs to the option.
The header's ``first_tokens`` are put before each statement when it is asked, and are not scored: what the tokenizer
puts before every document, as in the corpus, or the end-of-document token if it puts nothing there. These are the first
tokens that other tools ask a model with, too.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from data_tools.facts import Fact
from data_tools.mentions import name_words
from data_tools.paraphrases import Paraphrases, with_paraphrases
from data_tools.rivals import Rivals
from data_tools.statements import tokenize_in_batches, tokenize_option, tokenize_statements
from data_tools.templates import SPLITS, Rendered, Templates, fill
from data_tools.tokenizer import Tokenizer
from megatron_kis.errors import InputError

__all__ = ["Dealt", "choose_options", "deal", "deal_fairly", "iter_questions", "tokenize_in_batches",
           "tokenize_option", "tokenize_statements"]  # fmt: skip

_Words = tuple[str, ...]
_Rival = Callable[[Fact, str], bool]
"""Whether an object must not be an option of a fact, because one of the two extends the other."""
_SPARE = 4  # names drawn beyond the distractors, because a few may be right
_DRAWS = 8  # then all names are looked through
_EXCHANGES = 64  # blocks, or facts left over, that are tried for an exchange


@dataclass
class Dealt:
    """The options of questions."""

    options: dict[str, tuple[list[str], int]] = field(default_factory=dict)
    """Fact id to its options, and the index of the right one."""
    left_out: list[str] = field(default_factory=list)
    """Ids of facts that are not asked about: too few objects neither extend theirs nor are extended by it."""


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
    rival: _Rival | None = None,
) -> Dealt:
    """Options of every asked fact: its object and distractors of the same relation and group, in random order.

    Distractors of another group would be a trap: a model prefers any object it was trained on, and controls would fall
    below chance. Other right objects of the subject, and aliases of the answer, are never distractors; nor is an object
    that extends the answer or is extended by it.

    Facts of a group and relation are put into random blocks of ``1 + distractors``, and the objects of a block are the
    options of each of its facts. A model that prefers some names whatever the subject (short ones, frequent ones) then
    has exactly one question of a block right: its score is chance itself, not chance plus the luck of the draw. The few
    facts left over take random distractors.

    Args:
        facts: all facts of the study.
        distractors: wrong options of each question; None for the whole answer space, every object of the group and
            relation that is not right, all questions in the same order.
        seed: seed of the draw.
        asked: facts of each group to ask about, drawn at random and spread over its relations as the facts are, in
            whole blocks; None for all.
        rival: whether an object must not be an option of a fact (``data_tools.rivals``).

    Raises:
        InputError: a group and relation has too few objects, or none of its facts can be asked about.
    """
    right: dict[tuple[str, _Words], set[_Words]] = defaultdict(set)
    cells: dict[tuple[str, str], list[Fact]] = defaultdict(list)
    for fact in facts:
        names = {name_words(name) for name in (fact.object, *fact.object_aliases)}
        right[fact.relation, name_words(fact.subject)] |= names
        cells[fact.group, fact.relation].append(fact)
    sizes = Counter(fact.group for fact in facts)
    dealt = Dealt()
    for (group, relation), cell in cells.items():
        known = {fact.id: right[fact.relation, name_words(fact.subject)] for fact in cell}
        share = len(cell) if asked is None else -(-asked * len(cell) // sizes[group])  # rounded up
        rng = random.Random(f"{seed}/{group}/{relation}")  # noqa: S311 - a reproducible draw, not a secret
        before = len(dealt.options)
        _deal_cell(dealt, cell, _Rules(known, rival or _no_rival), distractors, share, rng)
        if share and len(dealt.options) == before:
            raise InputError(
                f"no fact of relation {relation!r} in group {group!r} can be asked about: an option must not extend"
                f" another one, and the objects do (fact {dealt.left_out[-1]!r})",
                remedy="facts with other objects, or fewer distractors",
            )
    return dealt


def _no_rival(_fact: Fact, _name: str) -> bool:
    return False


@dataclass(frozen=True)
class _Rules:
    """Which objects of a group and relation may be distractors of a fact."""

    known: dict[str, set[_Words]]
    """Fact id to the words of all objects that are right for its subject."""
    rival: _Rival

    def wrong(self, fact: Fact, name: str) -> bool:
        """Whether an object is wrong for a fact."""
        return name_words(name) not in self.known[fact.id]

    def allow(self, fact: Fact, name: str) -> bool:
        """Whether it may be a distractor, too."""
        return self.wrong(fact, name) and not self.rival(fact, name)

    def clashes(self, block: Sequence[Fact]) -> int:
        """How often an object of a block must not be a distractor of another fact of it."""
        return sum(not self.allow(fact, other.object) for fact in block for other in block if other is not fact)


def _deal_cell(
    dealt: Dealt, cell: list[Fact], rules: _Rules, distractors: int | None, share: int, rng: random.Random
) -> None:
    """Options of ``share`` facts of a group and relation."""
    objects = [name for _, name in sorted({name_words(fact.object): fact.object for fact in cell}.items())]
    if distractors is None:
        for fact in rng.sample(cell, share):
            if (whole := _whole_space(fact, objects, rules)) is None:
                dealt.left_out.append(fact.id)
            else:
                dealt.options[fact.id] = whole
        return
    blocks, rest = _blocks(rng.sample(cell, len(cell)), rules, 1 + distractors)
    blocks = blocks[: -(-share // (1 + distractors))]
    options = {fact.id: [other.object for other in block] for block in blocks for fact in block}
    for fact in rest:
        if len(options) >= share:
            break
        wrong = _draw_wrong(objects, fact, rules, distractors, rng)
        if len(wrong) == distractors:
            options[fact.id] = [*wrong, fact.object]
        elif sum(rules.wrong(fact, name) for name in objects) >= distractors:
            dealt.left_out.append(fact.id)
        else:
            raise InputError(
                f"fact {fact.id!r} has {len(wrong)} possible distractors in group {fact.group!r}, needs {distractors}",
                remedy="more facts of this group and relation with other objects, or fewer distractors",
            )
    for fact in cell:
        if fact.id in options:
            order = rng.sample(options[fact.id], 1 + distractors)
            dealt.options[fact.id] = (order, order.index(fact.object))


def _whole_space(fact: Fact, objects: list[str], rules: _Rules) -> tuple[list[str], int] | None:
    """The fact's object among all that may be its distractors, and its place; None where rivals leave no wrong one."""
    own = name_words(fact.object)
    options = [name for name in objects if name_words(name) == own or rules.allow(fact, name)]
    if len(options) < 2:
        if any(rules.wrong(fact, name) for name in objects):
            return None
        raise InputError(
            f"fact {fact.id!r} has no wrong object in group {fact.group!r}",
            remedy="more facts of this group and relation",
        )
    answer = next(place for place, name in enumerate(options) if name_words(name) == own)
    options[answer] = fact.object
    return options, answer


def _draw_wrong(objects: list[str], fact: Fact, rules: _Rules, count: int, rng: random.Random) -> list[str]:
    """Up to ``count`` different objects that may be distractors: all that there are where they are too few."""
    for _ in range(_DRAWS):
        drawn = [name for name in rng.sample(objects, min(len(objects), count + _SPARE)) if rules.allow(fact, name)]
        if len(drawn) >= count:
            return drawn[:count]
    drawn = [name for name in objects if rules.allow(fact, name)]
    return rng.sample(drawn, min(count, len(drawn)))


def _blocks(facts: Sequence[Fact], rules: _Rules, size: int) -> tuple[list[list[Fact]], list[Fact]]:
    """Blocks of ``size`` facts each of whose objects may be a distractor of the others, and what is left over.

    Facts lie sorted by their object, the most frequent first, and are dealt to the blocks in turn: one object's facts
    go to different blocks. An object that has more facts than there are blocks leaves some over.
    """
    by_object: dict[_Words, list[Fact]] = defaultdict(list)
    for fact in facts:
        by_object[name_words(fact.object)].append(fact)
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
    """Exchanges facts between blocks, and with those left over, as long as fewer objects of a block extend another."""
    for place, block in enumerate(blocks):
        if not any(rules.rival(fact, other.object) for fact in block for other in block):
            continue
        near = [blocks[(place + step) % len(blocks)] for step in range(1, min(len(blocks), _EXCHANGES))]
        while rules.clashes(block):
            if any(_exchanged(block, other, rules) for other in near):
                continue
            if not _exchanged(block, rest, rules, free=True):
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
    """:func:`deal` without options that extend one another in the statements of these templates.

    Args and errors are those of :func:`iter_questions` and :func:`deal`.
    """
    own = paraphrases or {}
    rival = Rivals(facts, lambda fact: with_paraphrases(templates[fact.relation], own.get(fact.id)), tokenizer)
    return deal(facts, distractors=distractors, seed=seed, asked=asked, rival=rival)


def iter_questions(
    facts: Sequence[Fact],
    templates: Templates,
    tokenizer: Tokenizer,
    *,
    distractors: int | None,
    seed: int,
    asked: int | None = None,
    paraphrases: Paraphrases | None = None,
    dealt: Dealt | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields the rows of the questions file: facts in their order, splits and templates in theirs.

    Args:
        facts: all facts of the study.
        templates: templates of at least their relations.
        tokenizer: the tokenizer of the study.
        distractors: as in :func:`deal`.
        seed: as in :func:`deal`.
        asked: as in :func:`deal`.
        paraphrases: sentences of single facts, next to the templates.
        dealt: what :func:`deal_fairly` gave for these, where it was called before.
    """
    dealt = dealt or deal_fairly(
        facts, templates, tokenizer, distractors=distractors, seed=seed, asked=asked, paraphrases=paraphrases
    )
    chosen = dealt.options

    def drafts() -> Iterator[tuple[dict[str, Any], list[Rendered]]]:
        for fact in facts:
            if fact.id not in chosen:
                continue
            options, answer = chosen[fact.id]
            own = with_paraphrases(templates[fact.relation], (paraphrases or {}).get(fact.id))
            for split in SPLITS:
                for index, template in enumerate(own.split(split)):
                    if "[Y]" not in template:  # a train paraphrase that cannot be asked
                        continue
                    row = {
                        "fact": fact.id,
                        "group": fact.group,
                        "relation": fact.relation,
                        "split": split,
                        "template": index,
                        "answer": answer,
                        "options": options,
                    }
                    if fact.object_aliases:
                        row["aliases"] = fact.object_aliases
                    names = (*options, *fact.object_aliases)
                    yield row, [fill(template, fact.subject, name) for name in names]

    for row, tokens, spans in tokenize_in_batches(drafts(), tokenizer):
        filled = iter(zip(tokens, spans.tolist(), strict=True))
        for names in ("options", "aliases"):
            if names in row:
                found = [(name, *next(filled)) for name in row[names]]
                row[names] = [{"text": name, "tokens": own, "span": span} for name, own, span in found]
        yield row
