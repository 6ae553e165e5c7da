"""How often each infused fact is shown: one frequency for all, a list, or by popularity, with a mean F or a ratio."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megatron_kis.common.errors import InputError
from megatron_kis.data.counter_rng import key_of, permute

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

_COUNTABLE = 1 << 40  # exposures whose tokens surely fit into 64 bits; a budget of more tokens may have more
_SEARCH_STEPS = 200  # regula falsi needs about ten; bisection, its fall-back, about sixty


def zipf_popularity(facts: int, exponent: float, *, seed: int | str = 0) -> FloatArray:
    """Returns popularities that fall as a power of the rank; which fact has which rank is drawn.

    Args:
        facts: number of facts.
        exponent: exponent of the power; 0 makes all equal, 1 is Zipf's law.
        seed: seed of the ranks.

    Returns:
        float [facts], of mean 1.

    Raises:
        InputError: a negative exponent.
    """
    if not 0.0 <= exponent < np.inf:
        raise InputError(f"is {exponent:g}", where="infusion.zipf_exponent", remedy="must be 0 or more")
    weights = np.arange(1, facts + 1, dtype=np.float64) ** -exponent
    drawn = weights[permute(np.arange(facts), facts, key_of(seed, "popularity"))]
    return drawn / drawn.mean() if facts else drawn


def equal_frequencies(frequencies: IntArray | int) -> bool:
    """Returns whether all facts have the same frequency."""
    return isinstance(frequencies, int) or not len(frequencies) or bool(frequencies.min() == frequencies.max())


def check_count(exposures: float, *, budget: int, where: str) -> None:
    """Refuses numbers of exposures far beyond a budget of D tokens, which could not even be counted in 64 bits.

    Raises:
        InputError: too many exposures.
    """
    if exposures > max(budget, _COUNTABLE):
        raise InputError(
            f"{float(min(exposures, 1e300)):g} exposures are more than a budget of {budget:,} tokens",
            where=where,
            remedy="use a smaller frequency, or raise the token budget",
        )


def frequencies_for(
    tokens_of: Callable[[IntArray | int], int],
    *,
    facts: int,
    budget: int,
    frequency: float | ArrayLike | None,
    ratio: float | None,
    popularity: ArrayLike | None,
    key: int,
    shown: NDArray[np.bool_] | None = None,
) -> IntArray | int:
    """Returns the frequency of each infused fact.

    Args:
        tokens_of: returns the tokens of all exposures at some frequencies.
        facts: number of infused facts.
        budget: D, tokens.
        frequency: F, or [facts], the frequency of each fact, or their mean.
        ratio: share of D, instead of a frequency.
        popularity: [facts], by what factor each fact is shown more often; equal if None.
        key: random key by which facts get one exposure more where not all can get the same.
        shown: [facts], whether a fact is shown at all; a mean frequency is that of the facts shown. All if None.

    Returns:
        One whole number for all, or int64 [facts].

    Raises:
        InputError: both or none of frequency and ratio, or impossible values.
    """
    if (frequency is None) == (ratio is None):
        raise InputError(
            "needs one of infusion_frequency and infusion_ratio", where="infusion", remedy="the other one is derived"
        )
    if shown is not None and np.ndim(0 if frequency is None else frequency):
        raise InputError("is a list, which already says what is shown", where="infusion_frequency", remedy="use zeros")
    weights = None if popularity is None else _weights(popularity, facts)
    count = facts
    if shown is not None:
        count = int(shown.sum())
        weights = _weights(np.where(shown, 1.0 if weights is None else weights, 0.0), facts)
    if ratio is not None:
        if not 0.0 <= ratio <= 1.0:
            raise InputError(f"is {ratio:g}", where="infusion_ratio", remedy="must be in [0, 1]")
        if not facts or not ratio:
            return _checked(0, facts) if not ratio else _checked(1, facts)
        return _nearest(tokens_of, _Apportionment(facts, weights, key), target=ratio * budget, limit=budget)
    given = np.asarray(frequency)
    if given.ndim:
        listed = _listed(given, facts, weights)
        check_count(float(listed.sum(dtype=np.float64)), budget=budget, where="infusion_frequency")
        return listed.astype(np.int64)
    mean = float(given)
    if not 0.0 <= mean < np.inf:
        raise InputError(f"is {mean:g}", where="infusion_frequency", remedy="must be 0 or more")
    check_count(count * mean, budget=budget, where="infusion_frequency")
    if popularity is None and mean == int(mean):
        each = _checked(int(mean), facts)
        return each if shown is None or not each else np.where(shown, each, 0).astype(np.int64)
    apportionment = _Apportionment(facts, weights, key)
    _checked(1, facts)
    return _nearest(lambda each: int(np.sum(each)), apportionment, target=mean * count, limit=np.inf)


def _checked(frequency: int, facts: int) -> int:
    if frequency and not facts:
        raise InputError("no infused facts", where="infusion_frequency", remedy="add facts or use 0")
    return frequency


def _listed(given: NDArray[Any], facts: int, weights: FloatArray | None) -> NDArray[np.integer]:
    where = "infusion_frequency"
    if weights is not None:
        raise InputError(
            "popularity cannot be combined with a list of frequencies", where=where, remedy="give one of them"
        )
    if given.shape != (facts,):
        raise InputError(f"lists {len(given)} frequencies for {facts} facts", where=where, remedy="give one per fact")
    if given.dtype.kind not in "iu" or (facts and given.min() < 0):
        raise InputError(
            "lists a value that is not a whole number of 0 or more",
            where=where,
            remedy="give the number of exposures of each fact",
        )
    return given


def _weights(popularity: ArrayLike, facts: int) -> FloatArray:
    weights = np.asarray(popularity, dtype=np.float64)
    if weights.shape != (facts,) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum():
        raise InputError(
            f"is not a list of {facts} numbers of 0 or more, some above 0",
            where="popularity",
            remedy="give one per fact",
        )
    shares: NDArray[np.float64] = weights / weights.mean()
    return shares


class _Apportionment:
    """Whole frequencies in proportion to weights: fact k gets floor(level * weight_k + start_k).

    The starts are evenly spread in [0, 1), in random order, so that raising the level adds one exposure after the
    other; with equal weights no two facts are more than one apart.
    """

    def __init__(self, facts: int, weights: FloatArray | None, key: int) -> None:
        self._weights = np.float64(1.0) if weights is None else weights
        self._starts = (permute(np.arange(facts), facts, key) + 0.5) / facts if facts else np.zeros(0)

    def at(self, level: float) -> IntArray:
        """Returns int64 [facts], the frequencies at a level."""
        each: IntArray = np.floor(level * self._weights + self._starts).astype(np.int64)
        return each


def _nearest(
    measure: Callable[[IntArray | int], int], apportionment: _Apportionment, *, target: float, limit: float
) -> IntArray | int:
    """Returns the frequencies whose measure is nearest to the target and not above the limit.

    The measure rises with the level in steps. Doubling brackets the level at which it reaches the target, regula falsi
    (each third step bisection, which cannot stall) narrows the bracket to two neighbouring numbers, and among the facts
    that rise between these a bisection finds how many must.
    """
    low, high = 0.0, 1.0
    at_low: float = -target  # measure minus target at the ends of the bracket
    while (at_high := measure(apportionment.at(high)) - target) < 0:
        low, high = high, 2 * high
        at_low = at_high
    for step in range(_SEARCH_STEPS):
        middle = (low + high) / 2
        if step % 3 and at_high > at_low:
            middle = high - at_high * (high - low) / (at_high - at_low)
        if not low < middle < high:
            break
        found = measure(apportionment.at(middle)) - target
        if found < 0:
            low, at_low = middle, found
        else:
            high, at_high = middle, found
        if at_high == 0:
            break
    below = apportionment.at(low)
    above = apportionment.at(high)
    rising = np.flatnonzero(above > below)  # several, where facts reach their next whole number at the same level

    def with_first(count: int) -> IntArray:
        each = below.copy()
        each[rising[:count]] = above[rising[:count]]
        return each

    def excess(count: int) -> float:
        return measure(with_first(count)) - target

    count = bisect_left(range(len(rising)), 0.0, key=excess)  # the fewest that reach the target
    if count and not (abs(excess(count)) <= abs(excess(count - 1)) and excess(count) + target <= limit):
        count -= 1
    each = with_first(count)
    return int(each[0]) if equal_frequencies(each) else each
