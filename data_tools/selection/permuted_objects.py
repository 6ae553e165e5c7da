"""A random permutation of each relation's objects, so that no subject's name says anything about its object.

Real names hint at their objects: an airport's code at its city, a person's name at a country. Where that lets a model
guess, even facts that it was never shown are answered above chance. The permutation ends this: how often each object
is right stays as it was, and which subject it belongs to is pure chance. A few facts
get their own object back, as in any random permutation: to exclude that would say of an object that it is wrong.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from megatron_kis.data_tools.facts.fact import Candidate


def with_permuted_objects(facts: Iterable[Candidate], seed: int) -> list[Candidate]:
    """Returns the facts, each with the object of a random fact of its relation.

    An object keeps its id and its other names, and ``source_object`` is what the source has. Relations are permuted
    independently: a relation's facts are the same whatever others there are.

    Args:
        facts: one fact per subject and relation.
        seed: seed of the permutations.

    Returns:
        As many facts, in the same order.
    """
    listed = list(facts)
    places: dict[str, list[int]] = defaultdict(list)
    for place, fact in enumerate(listed):
        places[fact.relation].append(place)
    permuted = list(listed)
    for relation, own in places.items():
        rng = random.Random(f"{seed}/{relation}/objects")  # noqa: S311 - a reproducible draw, not a secret
        for place, origin in zip(own, rng.sample(own, len(own)), strict=True):
            fact, giver = listed[place], listed[origin]
            permuted[place] = replace(
                fact,
                object=giver.object,
                object_id=giver.object_id,
                object_aliases=giver.object_aliases,
                source_object=fact.source_object or fact.object,
            )
    return permuted
