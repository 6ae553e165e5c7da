"""Levels of a curve as the likelihood of where it declines takes them: runs that differ from the others are left out.

Of three runs or more of a level, one that is far from their median has failed, and the others represent the level. Of
one or two runs nobody can say which has failed; then the whole level may be of no curve, with a small probability.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_kis.analysis.criteria.dispersion import dispersion_of
from megatron_kis.analysis.runs.curves import Array, Curve
from megatron_kis.config.analysis import AnalysisConfig

FAILED = 0.01
"""Probability that a run has failed, so that its answers say nothing of its dose: about one of a hundred does."""
_FORM = 0.0005
"""Variance, in units of p (1 - p), by which a curve may differ from every form that is tried: a hundredth of a rate."""
_APART = 4.0  # standard deviations from the median
_OUTVOTED = 3  # runs among which one can be recognised as different from the others


@dataclass(frozen=True)
class Levels:
    """The levels of one curve; every array is [L]."""

    x: Array
    """Log dose; -inf for 0."""
    rate: Array
    """Share answered right by the runs that are kept."""
    weight: Array
    """Effective number of facts."""
    failed: Array
    """Probability that the level is of no curve."""


def levels_of(curve: Curve, settings: AnalysisConfig) -> Levels:
    """Returns the levels of a curve without the runs that differ from the others."""
    dispersion = dispersion_of(curve, settings)
    rates, facts, runs = np.empty(len(curve.dose)), np.empty(len(curve.dose)), np.ones(len(curve.dose), dtype=np.int64)
    for level, (seeds, own) in enumerate(zip(curve.seed_rates, curve.seed_facts, strict=True)):
        kept = np.ones(len(seeds), dtype=bool)
        if len(seeds) >= _OUTVOTED:
            middle = float(np.median(seeds))
            # A rate near 0 or 1 has next to no binomial spread: one count of a run is the smallest visible difference.
            spread = np.sqrt(
                np.maximum(middle * (1 - middle), 1 / own)
                / dispersion.effective(own, np.ones_like(runs, shape=len(own)))
            )
            kept = np.abs(seeds - middle) <= _APART * spread
            kept = kept if 2 * kept.sum() > len(seeds) else np.ones(len(seeds), dtype=bool)
        order = np.argsort(seeds[kept], kind="stable")  # the order of rows changes no digit
        facts[level] = own[kept].sum()
        rates[level] = (seeds[kept] * own[kept])[order].sum() / facts[level]
        runs[level] = kept.sum()
    with np.errstate(divide="ignore"):
        x = np.log(curve.dose)
    failed = np.where(runs < _OUTVOTED, FAILED, FAILED**2)
    return Levels(x, rates, 1 / (1 / dispersion.effective(facts, runs) + _FORM), failed)
