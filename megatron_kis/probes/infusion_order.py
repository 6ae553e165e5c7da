"""The order in which infused facts are taken where a run shows only the first K of them (``infusion.facts``).

Each relation has its share of every K, and the facts of a smaller K are among those of a larger one. Facts that share
their options follow each other: an option that the run never shows as an answer would be easier to tell apart. (Where
all objects of a relation are options this cannot be helped.) Facts that no question asks about come last.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from megatron_kis.common.errors import InputError
from megatron_kis.probes.questions import QuestionSet

_GROUP = "infused"


def infusion_order(questions: QuestionSet) -> list[str]:
    """Returns the ids of the infused facts that are asked for, in the order in which they are taken."""
    table = questions.table
    whole = questions.header.get("distractors_per_question", 0) is None  # all objects of a relation are options
    if _GROUP not in table.group.names:
        return []
    rows = np.flatnonzero(table.group.codes == table.group.names.index(_GROUP))
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
        questions: all questions of the run's file.
        ids: of all infused facts, in the order of the plan's rows.
        count: K.

    Returns:
        bool [facts].

    Raises:
        InputError: there are fewer facts.
    """
    if count > len(ids):
        raise InputError(f"is {count}, the data have {len(ids)}", where="infusion.facts", remedy="select more facts")
    asked = infusion_order(questions)
    among = set(asked)
    taken = set([*asked, *(fact for fact in ids if fact not in among)][:count])
    return np.array([fact in taken for fact in ids], dtype=bool)


def questions_of_shown(questions: QuestionSet, count: int | None, *, own: QuestionSet | None = None) -> QuestionSet:
    """Leaves out the questions about infused facts that a run does not show.

    Args:
        questions: the questions.
        count: K; None if all facts are shown.
        own: all questions of the run's own file, which has the order; ``questions`` if not given.
    """
    if count is None:
        return questions
    taken = set(infusion_order(own or questions)[:count])
    table = questions.table
    of_taken = np.array([name in taken for name in table.fact.names], dtype=bool)[table.fact.codes]
    of_group = np.array([name == _GROUP for name in table.group.names], dtype=bool)[table.group.codes]
    return QuestionSet(questions.header, table.take(np.flatnonzero(of_taken | ~of_group)))
