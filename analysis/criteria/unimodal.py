"""The test against "no collapse": a likelihood ratio over all places where a curve may turn from rising to falling.

H0: the curve never falls. Its likelihood is maximised over *all* non-decreasing curves (pool adjacent violators), so
the test needs no form of the rise. H1: non-decreasing up to some level, non-increasing after it. The statistic is
twice the gain of the best turning place. Its distribution is never a chi-square (the turning place exists under H1
only), and is found by a parametric bootstrap under H0 that pays for the choice of the place.
"""

from __future__ import annotations

import numpy as np

from megatron_kis.analysis.criteria.counts import Evidence, draw
from megatron_kis.analysis.criteria.isotonic import isotonic_prefixes, prefix_fits
from megatron_kis.analysis.criteria.tests import plateau_fit
from megatron_kis.analysis.runs.curves import Array


def log_likelihood(p: Array, rate: Array, weight: Array) -> Array:
    """Returns [..., L] each level's binomial log-likelihood n (r log p + (1 - r) log(1 - p)), up to a constant.

    Rates ``rate`` of ``weight`` facts, which need not be whole numbers, at the true rates ``p``.
    """
    tiny = 1e-12
    return weight * (rate * np.log(np.clip(p, tiny, None)) + (1 - rate) * np.log(np.clip(1 - p, tiny, None)))


def fall_statistic(rate: Array, weight: Array) -> Array:
    """Returns [...] twice the log-likelihood gained by letting curves [..., L] fall after their best turning place."""
    rising = isotonic_prefixes(rate, weight)
    falling = isotonic_prefixes(rate[..., ::-1], weight[..., ::-1])
    levels = rate.shape[-1]
    turned = rising[..., 1:levels] + falling[..., ::-1][..., 1:levels]  # first i levels rise, the others fall
    statistic: Array = 2 * np.maximum(turned.max(axis=-1) - rising[..., levels], 0.0)
    return statistic


def unimodal_likelihood(rate: Array, weight: Array) -> Array:
    """Returns [...] the log-likelihood of the best curve that rises and then falls, of rates [..., L]."""
    levels = rate.shape[-1]
    rising = isotonic_prefixes(rate, weight)
    falling = isotonic_prefixes(rate[..., ::-1], weight[..., ::-1])[..., ::-1]  # of the levels from i on
    best: Array = (rising[..., 1 : levels + 1] + falling[..., 1 : levels + 1]).max(axis=-1)
    return best


def unimodal_fit(rate: Array, weight: Array) -> Array:
    """Returns [L] the best curve that rises and then falls."""
    levels = len(rate)
    rising, falling = isotonic_prefixes(rate, weight), isotonic_prefixes(rate[::-1], weight[::-1])[::-1]
    turn = int(np.argmax(rising[1:] + falling[1:])) + 1
    up = prefix_fits(rate, weight)[turn, :turn]
    down = prefix_fits(rate[::-1], weight[::-1])[levels - turn, : levels - turn][::-1]
    return np.concatenate([up, down])


def fall_test(seen: Evidence, resamples: int, generator: np.random.Generator) -> tuple[float, Array]:
    """Returns (p-value, [R] statistics under H0) of a curve that falls, against every curve that never does.

    The null is the fitted non-decreasing curve with its top made level (`plateau_fit`): a fit that rises with the noise
    would show fewer falls than a flat truth does. Resamples are drawn with the dispersion, and how well it is known.
    """
    statistic = float(fall_statistic(seen.rate, seen.weight))
    null = plateau_fit(seen.rate, seen.weight)
    size = np.maximum(seen.weight, 1.0)
    null = (null * size + 0.5) / (size + 1)  # a fitted rate of 1.0 would leave the null no noise at all
    under_null = fall_statistic(draw(generator, null, seen.weight, seen.freedom, resamples), seen.weight)
    if statistic <= 0:
        return 1.0, under_null
    return (1 + int(np.sum(under_null >= statistic - 1e-9))) / (1 + resamples), under_null


def critical_value(null: Array, alpha: float) -> float:
    """Returns the statistic that must be exceeded for `fall_test` to reject at ``alpha``; inf if none can.

    The p-value (1 + number of null statistics that reach it) / (1 + R) is at most alpha exactly beyond the k-th largest
    of them, where k is the largest number with k / (1 + R) <= alpha.
    """
    k = int(((1 + np.arange(len(null))) / (1 + len(null)) <= alpha).sum())
    return float(np.sort(null)[-k]) if k else float("inf")
