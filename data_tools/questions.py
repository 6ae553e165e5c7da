"""Multiple-choice questions about facts, as token ids ready to be scored.

``PREFIX.questions.jsonl``: a header line (schema ``kis.questions/1``) with every choice that affects scores, then one
row a fact and template::

    {"fact", "group", "relation", "split": "train|held_out|question", "template": index within the split,
     "answer": index of the right option, "options": [{"text", "tokens": [...], "span": [a, b)}, ...]}

and ``"aliases"``, like ``options``, where the object has other names: right when a model completes the statement.
``tokens`` is the whole statement with the option filled in, without end-of-document tokens before or after. ``span`` is
the option's token range in it, read off the tokenized whole, so that the space before the option belongs to the option.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_tools.facts import Fact
from data_tools.names import name_words
from data_tools.paraphrases import Paraphrases, with_paraphrases
from data_tools.templates import SPLITS, Rendered, Templates, fill
from data_tools.tokenizer import Tokenizer
from megatron_kis.errors import InputError

_Words = tuple[str, ...]
_Key = TypeVar("_Key")

_SPARE = 4  # names drawn beyond the distractors, because a few may be right
_DRAWS = 8  # then all names are looked through
_BATCH = 4096  # statements tokenized in one call: a call for each question's few takes four times as long


def choose_options(
    facts: Sequence[Fact], *, distractors: int | None, seed: int, asked: int | None = None
) -> dict[str, tuple[list[str], int]]:
    """Options of every asked fact: its object and distractors of the same relation and group, in random order.

    Distractors of another group would be a trap: a model prefers any object it was trained on, and controls would fall
    below chance. Other right objects of the subject, and aliases of the answer, are never distractors.

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

    Returns:
        fact id to (options, index of the right one).

    Raises:
        InputError: a group and relation has too few objects.
    """
    right: dict[tuple[str, _Words], set[_Words]] = defaultdict(set)
    cells: dict[tuple[str, str], list[Fact]] = defaultdict(list)
    for fact in facts:
        names = {name_words(name) for name in (fact.object, *fact.object_aliases)}
        right[fact.relation, name_words(fact.subject)] |= names
        cells[fact.group, fact.relation].append(fact)
    sizes = Counter(fact.group for fact in facts)
    chosen: dict[str, tuple[list[str], int]] = {}
    for (group, relation), cell in cells.items():
        rng = random.Random(f"{seed}/{group}/{relation}")  # noqa: S311 - a reproducible draw, not a secret
        known = {fact.id: right[fact.relation, name_words(fact.subject)] for fact in cell}
        share = len(cell) if asked is None else -(-asked * len(cell) // sizes[group])  # rounded up
        objects = [name for _, name in sorted({name_words(fact.object): fact.object for fact in cell}.items())]
        if distractors is None:
            chosen |= {fact.id: _whole_space(fact, objects, known[fact.id]) for fact in rng.sample(cell, share)}
            continue
        blocks, rest = _blocks(rng.sample(cell, len(cell)), known, 1 + distractors)
        blocks = blocks[: -(-share // (1 + distractors))]
        rest = rest[: max(0, share - len(blocks) * (1 + distractors))]
        options = {fact.id: [other.object for other in block] for block in blocks for fact in block}
        for fact in rest:
            wrong = _draw_wrong(objects, known[fact.id], distractors, rng)
            if len(wrong) < distractors:
                raise InputError(
                    f"fact {fact.id!r} has {len(wrong)} possible distractors in group {group!r}, needs {distractors}",
                    remedy="more facts of this group and relation, or fewer distractors",
                )
            options[fact.id] = [*wrong, fact.object]
        for fact in cell:
            if fact.id in options:
                order = rng.sample(options[fact.id], 1 + distractors)
                chosen[fact.id] = (order, order.index(fact.object))
    return chosen


def _whole_space(fact: Fact, objects: list[str], known: set[_Words]) -> tuple[list[str], int]:
    """The fact's object among all objects that are not right for it, and its place."""
    own = name_words(fact.object)
    options = [name for name in objects if name_words(name) == own or name_words(name) not in known]
    if len(options) < 2:
        raise InputError(
            f"fact {fact.id!r} has no wrong object in group {fact.group!r}",
            remedy="more facts of this group and relation",
        )
    answer = next(place for place, name in enumerate(options) if name_words(name) == own)
    options[answer] = fact.object
    return options, answer


def _draw_wrong(objects: list[str], known: set[_Words], count: int, rng: random.Random) -> list[str]:
    """Up to ``count`` different objects, none of them right: all that there are where they are too few."""
    for _ in range(_DRAWS):
        drawn = [
            name for name in rng.sample(objects, min(len(objects), count + _SPARE)) if name_words(name) not in known
        ]
        if len(drawn) >= count:
            return drawn[:count]
    drawn = [name for name in objects if name_words(name) not in known]
    return rng.sample(drawn, min(count, len(drawn)))


def _blocks(facts: Sequence[Fact], known: dict[str, set[_Words]], size: int) -> tuple[list[list[Fact]], list[Fact]]:
    """Blocks of ``size`` facts none of whose objects is right for another, in random order, and what is left over.

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
    sound = [block for block in blocks if _sound(block, known)]
    rest += [fact for block in blocks if not _sound(block, known) for fact in block]
    return sound, rest


def _sound(block: Sequence[Fact], known: dict[str, set[_Words]]) -> bool:
    """Whether each fact of a block has one right option: other facts' objects can be right too, or their aliases."""
    words = [name_words(fact.object) for fact in block]
    return all(
        other not in known[fact.id] for place, fact in enumerate(block) for at, other in enumerate(words) if at != place
    )


def iter_questions(
    facts: Sequence[Fact],
    templates: Templates,
    tokenizer: Tokenizer,
    *,
    distractors: int | None,
    seed: int,
    asked: int | None = None,
    paraphrases: Paraphrases | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields the rows of the questions file: facts in their order, splits and templates in theirs."""
    chosen = choose_options(facts, distractors=distractors, seed=seed, asked=asked)

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


def tokenize_in_batches(
    groups: Iterable[tuple[_Key, list[Rendered]]], tokenizer: Tokenizer
) -> Iterator[tuple[_Key, list[list[int]], NDArray[np.int64]]]:
    """:func:`tokenize_statements` of each group of statements, many groups in one call.

    Args:
        groups: what each group is called, and its statements.
        tokenizer: the tokenizer.

    Yields:
        The name, the token ids of the group's statements and [statements, 2] the token ranges of their answers.
    """
    waiting: list[tuple[_Key, int]] = []
    statements: list[Rendered] = []

    def finished() -> Iterator[tuple[_Key, list[list[int]], NDArray[np.int64]]]:
        tokens, spans = tokenize_statements(statements, tokenizer)
        start = 0
        for key, count in waiting:
            yield key, tokens[start : start + count], spans[start : start + count]
            start += count
        waiting.clear()
        statements.clear()

    for key, group in groups:
        waiting.append((key, len(group)))
        statements += group
        if len(statements) >= _BATCH:
            yield from finished()
    if waiting:
        yield from finished()


def tokenize_option(template: str, subject: str, option: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """Text, token ids and answer span of a template with an option filled in."""
    tokens, spans = tokenize_statements([fill(template, subject, option)], tokenizer)
    return {"text": option, "tokens": tokens[0], "span": spans[0].tolist()}


def tokenize_statements(
    statements: Sequence[Rendered], tokenizer: Tokenizer
) -> tuple[list[list[int]], NDArray[np.int64]]:
    """Token ids of statements, each tokenized as a whole, and [statements, 2] the token ranges of their answers.

    A token belongs to the answer if it covers one of its characters; the piece of its first word covers the space
    before it as well. A space that has a token of its own belongs to the answer too, also the one that the tokenizer
    puts before a statement, whose range is empty.
    """
    tokens, spans = tokenizer.encode_batch_with_spans([statement.text for statement in statements])
    counts = np.array([len(own) for own in tokens], dtype=np.int64)
    begins = np.cumsum(counts) - counts
    answers = np.array([statement.answer for statement in statements], dtype=np.int64).reshape(-1, 2)
    first, last = spans.T
    of_token = np.repeat(np.arange(len(statements)), counts)
    inside = np.flatnonzero((first < answers[of_token, 1]) & (last > answers[of_token, 0]))
    bounds = np.searchsorted(of_token[inside], np.arange(len(statements) + 1))
    for number in np.flatnonzero(np.diff(bounds) == 0).tolist():
        raise AssertionError(f"no token covers the answer in {statements[number].text!r}")
    starts, stops = inside[bounds[:-1]], inside[bounds[1:] - 1] + 1
    space = np.array([s.answer[0] == 0 or s.text[s.answer[0] - 1] == " " for s in statements], dtype=bool)
    own = space & (starts > begins) & (first[starts] == answers[:, 0]) & (last[starts - 1] == answers[:, 0])
    own &= first[starts - 1] == np.maximum(answers[:, 0] - 1, 0)
    return tokens, np.stack([starts - own - begins, stops - begins], axis=1)
