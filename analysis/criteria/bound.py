"""Up to where a curve without a fall has kept what it knew: a bound that assumes no shape of the fall.

The hypothesis "fallen by the share r at level j": some level before j is the plateau P; the levels before that one rise
to it; those between are anything up to P; those from j on are at most (1 - r) P and never rise. Its likelihood is
maximised over P and the plateau's level, and compared with that of the best curve that rises and then falls. The bound
is the last level at which the hypothesis is rejected. A fall that is too small to be seen, and one that begins in the
brackets after the bound, are thus not excluded.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from megatron_kis.analysis.criteria.isotonic import prefix_fits
from megatron_kis.analysis.criteria.unimodal import log_likelihood, unimodal_likelihood
from megatron_kis.analysis.runs.curves import Array

_PLATEAUS = 48  # values of P that are tried, from `_LOWEST` of the highest rate on
_LOWEST = 0.4


def kept_up_to(rate: Array, weight: Array, r: float, cut: float) -> npt.NDArray[np.int64]:
    """Returns [R] the last level at which curves [R, L] have not fallen by the share ``r``; 0 where none is certain.

    Args:
        rate: shares answered right.
        weight: [L] effective numbers of facts.
        r: share of the plateau's rate.
        cut: likelihood ratio beyond which a hypothesis is rejected.
    """
    ratio = fallen_ratios(rate, weight, r)
    open_ = ratio <= cut
    open_[:, -1] |= ~open_.any(axis=1)
    first: npt.NDArray[np.int64] = open_.argmax(axis=1)  # of levels 1 to L - 1
    return np.where((ratio > cut).all(axis=1), rate.shape[1] - 1, first)


def fallen_ratios(rate: Array, weight: Array, r: float) -> Array:
    """Returns [R, L - 1] likelihood-ratio statistics of "fallen by the share ``r`` at level j", j from 1 on."""
    levels = rate.shape[1]
    best = unimodal_likelihood(rate, weight)
    up = prefix_fits(rate, weight)[:, :levels]  # [R, t, L]: of the levels before t; +inf from there on
    down = prefix_fits(rate[:, ::-1], weight[::-1])[:, levels - 1 : 0 : -1, ::-1]  # [R, j - 1, L]: from j on; else +inf
    highest = np.full((len(rate), levels - 1), -np.inf)
    peak = rate.max(axis=1)
    for share in np.linspace(_LOWEST, 1.0, _PLATEAUS):
        plateau = np.maximum(share * peak, 1e-9)[:, None]
        rising = _total(np.minimum(up, plateau[..., None]), np.isfinite(up), rate, weight)
        at = log_likelihood(plateau, rate, weight)
        between = np.cumsum(log_likelihood(np.minimum(rate, plateau), rate, weight), axis=1)
        falling = _total(np.minimum(down, (1 - r) * plateau[..., None]), np.isfinite(down), rate, weight)
        # The best plateau's level before j: rising[t] + at[t] + between(t + 1 .. j - 1), of which -between[t] is t's.
        start = np.maximum.accumulate(rising + at - between, axis=1)
        highest = np.maximum(highest, start[:, :-1] + between[:, :-1] + falling)
    return 2 * (best[:, None] - highest)


def _total(p: Array, there: npt.NDArray[np.bool_], rate: Array, weight: Array) -> Array:
    """Returns [R, K] the log-likelihoods of fits ``p`` [R, K, L] of the levels that are ``there``."""
    cells = log_likelihood(np.where(there, p, 0.5), rate[:, None, :], weight)
    total: Array = np.where(there, cells, 0.0).sum(axis=-1)
    return total
