from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_kis.data.packing import pack_block

SEARCH = settings(max_examples=100, deadline=None)


def pack(
    lengths: Iterable[int], facts: Iterable[int], ideal: Iterable[int], *, sequences: int, capacity: int
) -> list[int]:
    """Where exposures go; they fit."""
    where = refused_or_packed(lengths, facts, ideal, sequences=sequences, capacity=capacity)
    assert where is not None
    return where


def refused_or_packed(
    lengths: Iterable[int], facts: Iterable[int], ideal: Iterable[int], *, sequences: int, capacity: int
) -> list[int] | None:
    where = pack_block(
        np.array(list(lengths), dtype=np.int64),
        np.array(list(facts), dtype=np.int64),
        np.array(list(ideal), dtype=np.int64),
        sequences=sequences,
        capacity=capacity,
    )
    return None if where is None else where.tolist()


@SEARCH
@given(st.data())
def test_no_sequence_is_overfilled_and_nothing_is_lost(data: st.DataObject) -> None:
    sequences, capacity = data.draw(st.integers(1, 12)), data.draw(st.integers(4, 40))
    item = st.tuples(st.integers(1, capacity), st.integers(0, 5), st.integers(0, sequences - 1))
    items = data.draw(st.lists(item, max_size=4 * sequences))
    lengths, facts, ideal = zip(*items, strict=True) if items else ((), (), ())
    where = refused_or_packed(lengths, facts, ideal, sequences=sequences, capacity=capacity)
    if where is None:
        # A refusal is right only where the fill leaves some exposure no room.
        assert sum(lengths) > sequences * (capacity - max(lengths))
        return
    assert len(where) == len(items)
    assert all(0 <= place < sequences for place in where)
    fill = np.bincount(where, weights=lengths, minlength=sequences) if items else np.zeros(1)
    assert fill.max() <= capacity


@pytest.mark.parametrize("other", [1, 9])
def test_two_exposures_of_a_fact_are_parted_also_from_the_emptiest_sequence(other: int) -> None:
    _, first, second = pack([other, 3, 3], [0, 7, 7], [0, 1, 1], sequences=2, capacity=16)
    assert first != second


def test_two_exposures_of_a_fact_share_a_sequence_where_there_is_no_other() -> None:
    assert pack([3, 3], [7, 7], [0, 0], sequences=1, capacity=8) == [0, 0]


def test_an_overfull_sequence_gives_to_an_empty_one() -> None:
    where = pack([5, 5, 5], [0, 1, 2], [0, 0, 0], sequences=3, capacity=8)
    assert sorted(where) == [0, 1, 2]


def test_what_fits_only_without_waste_is_packed_without_waste() -> None:
    # Dealt to the emptiest, 3 + 3 and 2 + 2 + 2 would leave no room for the last 2.
    where = pack([3, 3, 2, 2, 2], [0, 1, 2, 3, 4], [0] * 5, sequences=2, capacity=6)
    assert np.bincount(where, weights=[3, 3, 2, 2, 2]).tolist() == [6, 6]


def test_more_tokens_than_room_do_not_fit() -> None:
    assert refused_or_packed([5, 5, 5], [0, 1, 2], [0, 0, 0], sequences=2, capacity=7) is None


def test_exposures_that_fit_by_tokens_but_not_whole_do_not_fit() -> None:
    assert refused_or_packed([5, 5, 5], [0, 1, 2], [0, 1, 1], sequences=2, capacity=8) is None


def test_exposures_of_equal_length_are_dealt_in_the_order_of_their_places() -> None:
    where = pack([4] * 6, range(6), [5, 3, 1, 4, 2, 0], sequences=6, capacity=8)
    assert where == [5, 3, 1, 4, 2, 0]


def test_the_last_of_a_fact_goes_to_the_emptiest_where_it_is_everywhere() -> None:
    where = pack([5, 4, 3, 1], [7, 7, 7, 7], [0, 0, 0, 0], sequences=3, capacity=8)
    assert sorted(where[:3]) == [0, 1, 2]
    assert where[3] == where[2]


def test_what_is_left_of_a_sequence_is_filled_by_the_lengths_that_fill_it_best() -> None:
    # Longest first, 12 + 12 would leave 4 tokens that nothing fills: 12 + 7 + 5 + ... does not fit into two.
    lengths = [7, 5, 5, 12, 7, 12, 5]
    where = pack(lengths, range(7), [0] * 7, sequences=2, capacity=28)
    assert np.bincount(where, weights=lengths).max() <= 28


def test_a_full_packing_parts_the_exposures_of_a_fact_too() -> None:
    lengths, facts = [16, 12, 12, 17, 16, 12, 12], [3, 2, 3, 3, 0, 1, 1]
    where = pack(lengths, facts, [0] * 7, sequences=3, capacity=36)
    assert len({*zip(facts, where, strict=True)}) == 7
    assert np.bincount(where, weights=lengths).max() <= 36
