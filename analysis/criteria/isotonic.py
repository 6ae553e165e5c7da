"""The best non-decreasing fits of a curve's first levels, of many curves at once.

The fit of the last of some levels is the highest mean of a block that ends there (the max-min formula of isotonic
regression). What is before that block is the fit of those levels alone, so that the last blocks say everything.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from megatron_kis.analysis.runs.curves import Array

_TINY = 1e-12


def isotonic_fit(values: Array, weight: Array | None = None) -> Array:
    """Returns [L] the best non-decreasing fit of ``values`` [L]."""
    fit: Array = prefix_fits(values, np.ones_like(values) if weight is None else weight)[-1]
    return fit


def isotonic_prefixes(rate: Array, weight: Array) -> Array:
    """Returns [..., L + 1] log-likelihoods of the best non-decreasing fits of the first i levels, 0 for none.

    They are binomial and up to a constant (`unimodal.log_likelihood`).

    Args:
        rate: [..., L] rates of ``weight`` facts.
        weight: effective numbers of facts, above 0; it broadcasts to ``rate``.
    """
    levels = rate.shape[-1]
    mass, right = _sums(rate, weight)
    first = _last_blocks(mass, right)
    row = np.arange(len(mass))
    n = mass[:, 1:] - np.take_along_axis(mass, first, axis=1)
    k = right[:, 1:] - np.take_along_axis(right, first, axis=1)
    p = k / n
    gain = k * np.log(np.maximum(p, _TINY)) + (n - k) * np.log(np.maximum(1 - p, _TINY))
    total = np.zeros((len(mass), levels + 1))
    for level in range(levels):
        total[:, level + 1] = total[row, first[:, level]] + gain[:, level]
    return total.reshape(*rate.shape[:-1], levels + 1)


def prefix_fits(rate: Array, weight: Array) -> Array:
    """Returns [..., L + 1, L] the best non-decreasing fit of the first i levels of curves [..., L]; +inf after them."""
    levels = rate.shape[-1]
    mass, right = _sums(rate, weight)
    first = _last_blocks(mass, right)
    row, place = np.arange(len(mass)), np.arange(levels)
    fits = np.full((len(mass), levels + 1, levels), np.inf)
    for size in range(1, levels + 1):
        begin = first[:, size - 1]
        mean = (right[:, size] - right[row, begin]) / (mass[:, size] - mass[row, begin])
        last = place[None, :size] >= begin[:, None]
        fits[:, size, :size] = np.where(last, mean[:, None], fits[row, begin, :size])
    return fits.reshape(*rate.shape[:-1], levels + 1, levels)


def _sums(rate: Array, weight: Array) -> tuple[Array, Array]:
    """Returns the facts before each level and those of them that were right, both [R, L + 1]."""
    levels = rate.shape[-1]
    weight = np.broadcast_to(weight, rate.shape).reshape(-1, levels)
    mass, right = np.zeros((2, len(weight), levels + 1))
    np.cumsum(weight, axis=1, out=mass[:, 1:])
    np.cumsum(weight * rate.reshape(-1, levels), axis=1, out=right[:, 1:])
    return mass, right


def _last_blocks(mass: Array, right: Array) -> npt.NDArray[np.int64]:
    """Returns [R, L] the level at which the last block of the fit of the first i + 1 levels begins."""
    levels = mass.shape[1] - 1
    first = np.zeros((len(mass), levels), dtype=np.int64)
    for level in range(1, levels):
        means = (right[:, [level + 1]] - right[:, : level + 1]) / (mass[:, [level + 1]] - mass[:, : level + 1])
        first[:, level] = means.argmax(axis=1)  # the first of several
    return first
