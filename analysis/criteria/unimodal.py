"""The test against "no collapse": a likelihood ratio over all places where a curve may turn from rising to falling.

H0: the curve never falls. Its likelihood is maximised over *all* non-decreasing curves (pool adjacent violators), so
the test needs no form of the rise. H1: non-decreasing up to some level, non-increasing behind it. The statistic is
twice the gain of the best turning place. Its distribution is never a chi-square (the turning place exists under H1
only), and is found by a parametric bootstrap under H0 that pays for the choice of the place.
"""

from __future__ import annotations

import numpy as np

from megatron_kis.analysis.criteria.counts import Evidence, draw, evidence
from megatron_kis.analysis.criteria.tests import plateau_fit
from megatron_kis.analysis.runs.curves import Array


def log_likelihood(p: Array, rate: Array, weight: Array) -> Array:
    """[..., L] binomial log-likelihood of each level, up to a constant; effective counts may be fractional."""
    tiny = 1e-12
    return weight * (rate * np.log(np.clip(p, tiny, None)) + (1 - rate) * np.log(np.clip(1 - p, tiny, None)))


def prefix_fits(rate: Array, weight: Array) -> Array:
    """[..., L + 1, L] the best non-decreasing fit of the first i levels of curves [..., L]; +inf behind them.

    By the max-min formula of isotonic regression.
    """
    levels = rate.shape[-1]
    mass = np.cumsum(weight, axis=-1)
    total = np.cumsum(weight * rate, axis=-1)
    before = [np.zeros_like(mass[..., :1]), np.zeros_like(mass[..., :1])]
    mass, total = (np.concatenate([zero, part], axis=-1) for zero, part in zip(before, (mass, total), strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):  # empty blocks, masked below
        mean = (total[..., None, 1:] - total[..., :-1, None]) / (mass[..., None, 1:] - mass[..., :-1, None])
    start, end = np.arange(levels)[:, None], np.arange(levels)[None, :]
    mean = np.where(end >= start, mean, np.inf)  # [..., s, t]: levels s..t
    fits = np.full((*rate.shape[:-1], levels + 1, levels), np.inf)
    for size in range(1, levels + 1):
        smallest = np.minimum.accumulate(mean[..., :size, :size][..., ::-1], axis=-1)[..., ::-1]
        fits[..., size, :size] = np.where(start[:size] <= end[:, :size], smallest, -np.inf).max(axis=-2)
    return fits


def isotonic_prefixes(rate: Array, weight: Array) -> Array:
    """[..., L + 1] log-likelihood of the best non-decreasing fit of the first i levels of curves, 0 for none."""
    fits = prefix_fits(rate, weight)
    cells = log_likelihood(np.minimum(fits, 1.0), rate[..., None, :], weight[..., None, :])
    total: Array = np.where(np.isfinite(fits), cells, 0.0).sum(axis=-1)
    return total


def fall_statistic(rate: Array, weight: Array) -> Array:
    """[...] twice the log-likelihood gained by letting curves [..., L] fall behind their best turning place."""
    rising = isotonic_prefixes(rate, weight)
    falling = isotonic_prefixes(rate[..., ::-1], weight[..., ::-1])
    levels = rate.shape[-1]
    turned = rising[..., 1:levels] + falling[..., ::-1][..., 1:levels]  # first i levels rise, the others fall
    statistic: Array = 2 * np.maximum(turned.max(axis=-1) - rising[..., levels], 0.0)
    return statistic


def fall_test(
    seen: Evidence, facts: Array, floor: float, resamples: int, generator: np.random.Generator
) -> tuple[float, Array]:
    """(p-value, [R] statistics under H0) of a curve that falls, against every curve that never does.

    The null is the fitted non-decreasing curve with its top made level (`plateau_fit`): a fit that rises with the noise
    would show fewer falls than a flat truth does. Seeds are drawn beta-binomially and their correlation is estimated
    anew in every resample, as it was in the data.
    """
    statistic = float(fall_statistic(seen.rate, seen.weight))
    null = plateau_fit(seen.rate, seen.weight)
    size = np.maximum(seen.weight, 1.0)
    null = (null * size + 0.5) / (size + 1)  # a fitted rate of 1.0 would leave the null no noise at all
    again = evidence(draw(generator, null, facts, float(seen.icc), resamples), facts, floor)
    under_null = fall_statistic(again.rate, again.weight)
    if statistic <= 0:
        return 1.0, under_null
    return (1 + int(np.sum(under_null >= statistic - 1e-9))) / (1 + resamples), under_null
