"""The order in which facts are taken where a run shows, or asks for, only some of them, and which these are.

The first K infused facts are shown (``infusion.facts``). Groups of background facts take the next stretch each
(``infusion.background.groups``). The first of each group are asked for (``probes.facts_per_group``).

Each relation has its share of every K, and the facts of a smaller K are among those of a larger one. Facts that share
their options follow each other: an option that the run never shows as an answer would be easier to recognise. (Where
all objects of a relation are options, this cannot be avoided.) Facts that no question asks about come last.

The order is that of the questions' file, the same for all seeds and whatever a run is asked: it is taken from
questions of every split (``ONE_OF_EACH``), not from those that ``probes.templates`` leaves. Where a study has other
questions now than its first runs began with, the first ones still define the order (``order_file``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_kis.common.errors import InputError
from megatron_kis.common.terms import BACKGROUND, INFUSED, SPLITS
from megatron_kis.config.data import BackgroundGroup
from megatron_kis.config.run import RunConfig
from megatron_kis.probes.questions import QuestionSet

ONE_OF_EACH: dict[str, int] = dict.fromkeys(SPLITS, 1)
"""Templates whose questions define the order: every fact that any question asks about has one of them."""


def order_file(questions: Path) -> Path:
    """Returns the file that defines the order of the facts: the one next to the questions, or the questions themselves.

    Args:
        questions: ``exposures.questions.jsonl`` of the data, or ``questions.jsonl.gz`` of a run's inputs.
    """
    first = order_path(questions)
    return first if first.exists() else questions


def order_path(questions: Path) -> Path:
    """Returns the name of the file next to questions that defines the order of the facts, whether it exists or not."""
    return questions.with_name(questions.name.replace("questions.jsonl", "order.jsonl"))


def infusion_order(questions: QuestionSet, group: str = INFUSED) -> list[str]:
    """Returns the ids of the facts of a group that are asked for, in the order in which they are taken."""
    if group not in questions.orders:
        questions.orders[group] = _order(questions, group)
    return questions.orders[group]


def _order(questions: QuestionSet, group: str) -> list[str]:
    table = questions.table
    whole = questions.header.get("distractors_per_question", 0) is None  # all objects of a relation are options
    if group not in table.group.names:
        return []
    rows = np.flatnonzero(table.group.codes == table.group.names.index(group))
    _, first = np.unique(table.fact.codes[rows], return_index=True)
    blocks: dict[tuple[int, frozenset[bytes]], list[int]] = defaultdict(list)  # rows of facts with the same options
    for row in rows[np.sort(first)].tolist():
        start = int(table.starts[row])
        options = frozenset(table.texts[at].tobytes() for at in range(start, start + int(table.sizes[row])))
        blocks[int(table.relation.codes[row]), options].append(row)
    units: dict[int, list[list[int]]] = defaultdict(list)  # by relation: facts to be taken together
    for (relation, options), members in blocks.items():
        together = not whole and len(members) <= len(options)
        units[relation] += [members] if together else [[row] for row in members]
    placed: list[tuple[float, int, list[int]]] = []
    for relation, own in units.items():
        total, before = sum(map(len, own)), 0
        for unit in own:
            placed.append(((before + len(unit) / 2) / total, relation, unit))
            before += len(unit)
    placed.sort(key=lambda place: place[:2])
    return [table.fact[row] for _, _, unit in placed for row in unit]


def shown_facts(questions: QuestionSet, ids: Sequence[str], count: int) -> NDArray[np.bool_]:
    """Returns which infused facts a run shows.

    Args:
        questions: those of the run's file that define the order (``ONE_OF_EACH``).
        ids: of all infused facts, in the order of the plan's rows.
        count: K.

    Returns:
        bool [facts].

    Raises:
        InputError: there are fewer facts.
    """
    if count > len(ids):
        raise InputError(f"is {count}, the data have {len(ids)}", where="infusion.facts", remedy="select more facts")
    taken = set(_whole_order(questions, ids, INFUSED)[:count])
    return np.array([fact in taken for fact in ids], dtype=bool)


def background_frequencies(
    questions: QuestionSet, ids: Sequence[str], groups: Sequence[BackgroundGroup]
) -> NDArray[np.int64]:
    """Returns how often a run shows each background fact, before any exposure gives way to infusion.

    Args:
        questions: those of the run's file that define the order (``ONE_OF_EACH``).
        ids: of all background facts, in the order of the plan's rows.
        groups: numbers of facts and their frequencies.

    Returns:
        int64 [facts], 0 for facts beyond the groups.

    Raises:
        InputError: the groups have more facts than there are.
    """
    wanted = sum(group.facts for group in groups)
    if wanted > len(ids):
        raise InputError(
            f"have {wanted} facts together, the data {len(ids)} background facts",
            where="infusion.background.groups",
            remedy="make groups smaller, or select more background facts",
        )
    counts = dict.fromkeys(ids, 0)
    for frequency, facts in _stretches(_whole_order(questions, ids, BACKGROUND), groups):
        counts |= dict.fromkeys(facts, frequency)
    return np.array(list(counts.values()), dtype=np.int64)


def _whole_order(questions: QuestionSet, ids: Sequence[str], group: str) -> list[str]:
    """Returns all facts of a group in order: those that no question asks about come last."""
    asked = infusion_order(questions, group)
    among = set(asked)
    return [*asked, *(fact for fact in ids if fact not in among)]


def _stretches(order: Sequence[str], groups: Sequence[BackgroundGroup]) -> Iterator[tuple[int, Sequence[str]]]:
    """Yields the frequency of each group and its facts, which follow those of the group before it."""
    start = 0
    for group in groups:
        yield group.frequency, order[start : start + group.facts]
        start += group.facts


def asks_about_every_fact(config: RunConfig) -> bool:
    """Returns whether a run is asked about every fact that its questions are about."""
    return not takes_some_facts(config) and config.probes.facts_per_group is None


def takes_some_facts(config: RunConfig) -> bool:
    """Returns whether the order of the facts decides which ones a run shows, or how often."""
    return config.infusion.facts is not None or bool(config.infusion.background.groups)


def questions_of_run(questions: QuestionSet, config: RunConfig, *, own: QuestionSet | None = None) -> QuestionSet:
    """Returns the questions that a run is asked; the arguments are those of ``questions_of_shown``."""
    infusion = config.infusion
    return questions_of_shown(
        questions, infusion.facts, background=infusion.background.groups, most=config.probes.facts_per_group, own=own
    )


def questions_of_shown(
    questions: QuestionSet,
    count: int | None,
    *,
    background: Sequence[BackgroundGroup] = (),
    most: int | None = None,
    own: QuestionSet | None = None,
) -> QuestionSet:
    """Leaves out the questions about facts that a run does not show, or that are more than it is to be asked.

    Args:
        questions: the questions.
        count: K, number of infused facts that are shown; None for all.
        background: groups of background facts; none if all are shown equally often.
        most: largest number of facts of each group that are asked for, of the background of each of its groups; None
            for all. Of groups that are shown as a whole these are the first ones that ``questions`` has.
        own: questions of the run's own file that define the order (``ONE_OF_EACH``); ``questions`` if not given.

    Returns:
        The questions that remain, in their order, with the strengths of the background facts if these differ.
    """
    if count is None and not background and most is None:
        return questions
    table = questions.table
    kept = np.ones(len(table), dtype=bool)
    strengths: dict[str, int] = {}
    for code, group in enumerate(table.group.names):
        limited = (group == INFUSED and count is not None) or (group == BACKGROUND and background)
        if most is None and not limited:
            continue
        order = infusion_order(own or questions, group)
        if own is not None and not limited:  # the other questions may be about other facts
            theirs = dict.fromkeys(infusion_order(questions, group))
            order = [fact for fact in {**dict.fromkeys(order), **theirs} if fact in theirs]
        if group == BACKGROUND and background:
            parts = [(frequency, facts[:most]) for frequency, facts in _stretches(order, background)]
            taken = {fact for _, facts in parts for fact in facts}
            if len(background) > 1:
                strengths = {fact: frequency for frequency, facts in parts for fact in facts}
        else:
            taken = set(order[: count if group == INFUSED else None][:most])
        of_taken = np.array([name in taken for name in table.fact.names], dtype=bool)[table.fact.codes]
        kept &= of_taken | (table.group.codes != code)
    return QuestionSet(questions.header, table.take(np.flatnonzero(kept)), strengths)
