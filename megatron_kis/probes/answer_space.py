"""The answer space of the questions: the number of possible objects of a fact, and the bits that follow from it.

To know a fact is to know which of its relation's objects is right: log2 of their number, if each is as likely. It is an
upper bound of what a model has to store, for objects that are right more often than others take fewer bits.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from megatron_kis.data_tools.facts.names import name_key
from megatron_kis.probes.questions import QuestionSet


def distinct_objects(questions: QuestionSet) -> dict[str, int] | None:
    """Returns the number of different right objects of each relation, over the facts of all groups.

    Args:
        questions: all questions of a file.

    Returns:
        The counts by relation; None if the file asks about some of the facts only.
    """
    if questions.header.get("asked_facts_per_group") is not None:
        return None
    table = questions.table
    _, first = np.unique(table.fact.codes, return_index=True)
    right = table.starts[first] + table.answer[first]
    objects: dict[int, set[str]] = defaultdict(set)
    for relation, at in zip(table.relation.codes[first].tolist(), right.tolist(), strict=True):
        objects[relation].add(name_key(table.texts[at].tobytes().decode("utf-8")))
    return {table.relation.names[relation]: len(names) for relation, names in objects.items()}


def bits_of_facts(facts: Mapping[str, int], objects: Mapping[str, int] | None) -> float | None:
    """Returns the bits of some facts: log2 of the objects of its relation for each.

    Args:
        facts: number of facts by relation.
        objects: number of different objects by relation, as ``distinct_objects`` has it.

    Returns:
        Their sum; None if the objects of a relation are not known.
    """
    if objects is None or any(objects.get(relation, 0) < 1 for relation, count in facts.items() if count):
        return None
    return math.fsum(count * math.log2(objects[relation]) for relation, count in facts.items() if count)
