from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_kis.data.counter_rng import key_of, mix, mix_one, permute, permute_one

SEARCH = settings(max_examples=60, deadline=None)


@SEARCH
@given(st.integers(1, 700), st.integers(0, 2**64 - 1))
def test_a_permutation_meets_every_value_once(domain: int, key: int) -> None:
    image = permute(np.arange(domain), domain, key)
    assert sorted(image.tolist()) == list(range(domain))


@SEARCH
@given(st.integers(2, 700), st.integers(0, 2**64 - 1), st.randoms(use_true_random=False))
def test_a_value_does_not_depend_on_what_is_asked_beside_it(domain: int, key: int, random: Random) -> None:
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


@pytest.mark.parametrize("key_of_order", [key_of, mix_one, int])
def test_all_orders_of_a_few_are_about_equally_frequent(key_of_order: Callable[[int], int]) -> None:
    # 24,000 orders of 4, each of the 24 about 1,000 times: few rounds over 2 x 2 are no perfect draw.
    keys = np.array([[key_of_order(number)] * 4 for number in range(24_000)], dtype=np.uint64)
    orders = permute(np.tile(np.arange(4), (24_000, 1)), 4, keys)
    found = Counter(map(tuple, orders.tolist()))
    assert len(found) == 24
    assert min(found.values()) > 500 and max(found.values()) < 1500


def test_neighbours_do_not_stay_neighbours() -> None:
    # A value's image and the next one's: the correlation of 5,000 pairs is within 6 / sqrt(5,000).
    image = permute(np.arange(5000), 5000, key_of("neighbours"))
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.085
    assert abs(np.corrcoef(np.arange(5000), image)[0, 1]) < 0.085
    steps = Counter(np.diff(image).tolist())
    assert max(steps.values()) < 10  # a step of a chance order comes about once


def test_keys_tell_their_parts_apart() -> None:
    keys = {key_of(1, "a"), key_of(1, "b"), key_of(2, "a"), key_of("1a"), key_of(1)}
    assert len(keys) == 5
    assert all(0 <= key < 2**64 for key in keys)


@SEARCH
@given(st.integers(1, 2**50), st.integers(0, 2**64 - 1), st.data())
def test_one_number_is_permuted_as_an_array_of_it(domain: int, key: int, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, domain - 1))
    image = permute(np.array([position]), domain, key)
    assert permute_one(position, domain, key) == image[0]
    assert 0 <= image[0] < domain


@SEARCH
@given(st.lists(st.tuples(st.integers(1, 90), st.integers(0, 2**64 - 1)), min_size=1, max_size=9))
def test_each_element_may_have_a_domain_of_its_own(pairs: list[tuple[int, int]]) -> None:
    domains, keys = np.array([domain for domain, _ in pairs]), np.array([key for _, key in pairs], dtype=np.uint64)
    last = permute(domains - 1, domains, keys)
    assert last.tolist() == [permute_one(domain - 1, domain, key) for domain, key in pairs]


def test_nothing_is_permuted_to_nothing() -> None:
    assert permute(np.zeros(0, dtype=np.int64), 0, 7).tolist() == []


@SEARCH
@given(st.integers(0, 2**64 - 1))
def test_a_word_is_mixed_as_in_the_published_generator(word: int) -> None:
    assert mix(np.array([word], dtype=np.uint64)).tolist() == [mix_one(word)]


def test_mixing_is_split_mix_64() -> None:
    # The first outputs of SplitMix64 with the seed 1234567 (Steele, Lea and Flood 2014).
    step = 0x9E3779B97F4A7C15
    outputs = [mix_one((1234567 + number * step) % 2**64) for number in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]
