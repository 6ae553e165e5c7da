from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_kis.data.random import key_of, permute

SEARCH = settings(max_examples=60, deadline=None)


@SEARCH
@given(st.integers(1, 700), st.integers(0, 2**64 - 1))
def test_a_permutation_meets_every_value_once(domain: int, key: int) -> None:
    image = permute(np.arange(domain), domain, key)
    assert sorted(image.tolist()) == list(range(domain))


@SEARCH
@given(st.integers(2, 700), st.integers(0, 2**64 - 1), st.randoms(use_true_random=False))
def test_a_value_does_not_depend_on_what_is_asked_beside_it(domain: int, key: int, random) -> None:
    whole = permute(np.arange(domain), domain, key)
    asked = [random.randrange(domain) for _ in range(9)]
    assert permute(np.array(asked), domain, key).tolist() == whole[asked].tolist()


def test_each_element_may_have_a_key_of_its_own() -> None:
    keys = np.array([5, 6, 7], dtype=np.uint64)
    together = permute(np.array([1, 1, 1]), 50, keys)
    assert together.tolist() == [int(permute(np.array([1]), 50, int(key))[0]) for key in keys]


def test_other_keys_give_other_orders() -> None:
    orders = {tuple(permute(np.arange(40), 40, key).tolist()) for key in range(50)}
    assert len(orders) == 50


def test_orders_are_spread_over_all_places() -> None:
    # 2,000 orders of 10: each value is expected 200 times at each place; 6 standard deviations are 80.
    keys = np.array([[key_of(number)] * 10 for number in range(2000)], dtype=np.uint64)
    orders = permute(np.tile(np.arange(10), (2000, 1)), 10, keys)
    for value in range(10):
        at = np.bincount(np.flatnonzero(orders == value) % 10, minlength=10)
        assert abs(at - 200).max() < 80


def test_keys_tell_their_parts_apart() -> None:
    keys = {key_of(1, "a"), key_of(1, "b"), key_of(2, "a"), key_of("1a"), key_of(1)}
    assert len(keys) == 5
    assert all(0 <= key < 2**64 for key in keys)
