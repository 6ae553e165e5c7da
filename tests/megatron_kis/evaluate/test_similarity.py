"""The similarity of facts, against a comparison of every pair."""

from __future__ import annotations

from itertools import takewhile

from hypothesis import given
from hypothesis import strategies as st

from megatron_kis.evaluate.similarity import OtherFacts, Pieces, Similarity

NAMES = st.lists(st.integers(0, 4), min_size=1, max_size=5).map(tuple)
OBJECTS = st.sampled_from("abc")


def test_the_nearest_of_each_kind_counts() -> None:
    others = OtherFacts([(1, 2, 9), (1, 7, 3, 8), (5,)], ["rome", "ulm", "rome"])
    assert others.nearest((1, 2, 3, 7), "rome") == Similarity(2, 0.75, 2)
    assert others.nearest((5, 5), "bern") == Similarity(1, 1.0, 0)
    assert others.nearest((6,), "ulm") == Similarity(0, 0.0, 1)
    assert OtherFacts([], []).nearest((6,), "ulm") == Similarity(0, 0.0, 0)


@given(st.lists(st.tuples(NAMES, OBJECTS), max_size=12), NAMES, OBJECTS)
def test_no_pair_is_overlooked(others: list[tuple[Pieces, str]], subject: Pieces, answer: str) -> None:
    found = OtherFacts([pieces for pieces, _ in others], [name for _, name in others]).nearest(subject, answer)
    alike = [
        sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(subject, pieces, strict=False)))
        for pieces, _ in others
    ]
    assert found.prefix == max(alike, default=0)
    shares = [len(set(subject) & set(pieces)) / len(set(subject)) for pieces, _ in others]
    assert found.overlap == max(shares, default=0)
    assert found.same_object == sum(name == answer for _, name in others)
