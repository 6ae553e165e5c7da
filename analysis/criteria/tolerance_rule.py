"""Criterion ``tolerance_rule``: the last F at which a memorised rate is within r of its maximum, if it stays down."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_kis.analysis.criteria.counts import evidence, seed_matrix
from megatron_kis.analysis.criteria.tests import (
    detectable_drop,
    logit,
    p_above,
    plateau_fit,
)  # fmt: skip
from megatron_kis.analysis.runs.curves import Array, Curve
from megatron_kis.analysis.runs.transitions import (
    COLLAPSED,
    INCONCLUSIVE,
    LEFT_CENSORED,
    RIGHT_CENSORED,
    Transition,
    count,
    crossing,
    make,
)  # fmt: skip
from megatron_kis.config.analysis import AnalysisConfig

_FEWEST_LEVELS = 3  # a rise and a fall cannot be told apart on two


@dataclass(frozen=True)
class Fall:
    """The fall of curves [..., L] below their maxima."""

    last: npt.NDArray[np.int64]
    """[...] last level that is within the margin of the maximum; L - 1 where the curve does not stay down."""
    drop: Array
    """[...] maximum minus pooled rate of the levels from the clearest fall on."""
    z: Array
    """[...] the largest standardised drop to the levels from any one behind ``last`` on; 0 where there are none."""


def margin(peak: Array, settings: AnalysisConfig, spread: float | None) -> Array:
    """How far below its maximum a curve must stay: the largest of r * peak, delta_min and two seed deviations."""
    return np.maximum(settings.r * peak, max(settings.delta_min, 2 * (spread or 0.0)))


def fall(rates: Array, weight: Array, settings: AnalysisConfig, spread: float | None) -> Fall:
    """The fall of each curve of ``rates`` [..., L] with effective facts ``weight`` [L]."""
    levels = rates.shape[-1]
    peak = rates.max(axis=-1)
    kept = rates >= (peak - margin(peak, settings, spread))[..., None] - 1e-12
    last = levels - 1 - np.argmax(kept[..., ::-1], axis=-1)
    mass = np.cumsum(weight[::-1])[::-1]  # of the levels from each one on
    tail = np.cumsum((rates * weight)[..., ::-1], axis=-1)[..., ::-1] / mass
    peak_mass = weight[np.argmax(rates, axis=-1)][..., None]
    pooled = (peak[..., None] * peak_mass + tail * mass) / (peak_mass + mass)
    variance = pooled * (1 - pooled) * (1 / peak_mass + 1 / mass)
    drops = peak[..., None] - tail
    behind = (np.arange(levels) > last[..., None]) & (variance > 0)
    scores = np.where(behind, drops / np.sqrt(np.where(variance > 0, variance, 1.0)), 0.0)
    clearest = np.argmax(scores, axis=-1)[..., None]
    z = np.take_along_axis(scores, clearest, axis=-1)[..., 0]
    drop = np.where(z > 0, np.take_along_axis(drops, clearest, axis=-1)[..., 0], 0.0)
    return Fall(last, drop, z)


class ToleranceRule:
    """The collapse point is where the curve crosses, for the last time, ``margin`` below its maximum.

    The interval is the bracket of levels around that crossing, the value the crossing on the logit scale, linear in
    log F. A collapse is claimed only if H0 "the curve never falls" is rejected: the statistic is the largest
    standardised drop from the maximum to the pooled levels from some one behind the crossing on (a cliff at the end and
    a long decline are both seen); its distribution under the non-decreasing curve that fits best comes from a
    parametric bootstrap, which pays for picking the maximum, the crossing and that level. The bracket is the grid's,
    not a confidence interval.
    """

    kind = "collapse"
    groups: tuple[str, ...] = ("infused", "background")

    def find(self, curve: Curve, settings: AnalysisConfig) -> Transition:
        """The collapse of ``curve``."""
        levels = len(curve.frequency)
        if levels < _FEWEST_LEVELS:
            return make(curve, self.kind, INCONCLUSIVE, f"{levels} levels of F; at least {_FEWEST_LEVELS} are needed")
        counts = evidence(*seed_matrix(curve), settings.overdispersion)
        weight, spread = counts.weight, float(counts.spread) or None
        top = int(np.argmax(curve.rate))
        peak = float(curve.rate[top])
        chance = float(np.nanmean(curve.chance)) if np.isfinite(curve.chance).any() else 0.0
        detectable = detectable_drop(peak, float(weight[top]), float(weight[-1]), settings.alpha, settings.power)
        if p_above(peak, float(weight[top]), chance) > settings.alpha / levels:
            reason = (
                f"never reliably above chance ({chance:.2f}; highest rate {peak:.2f}): no memory that could collapse"
            )
            return make(curve, self.kind, INCONCLUSIVE, reason, peak=peak, detectable=detectable)

        seen = fall(curve.rate, weight, settings, spread)
        last, drop = int(seen.last), float(seen.drop)
        p_value = self._p_value(curve, weight, spread, float(seen.z), settings)
        largest = count(float(curve.frequency[-1]))
        if last == levels - 1 or p_value > settings.alpha:
            said = "stays within the margin of its maximum" if last == levels - 1 else "no reliable fall"
            reference = settings.reference(peak, chance, spread or 0.0)
            # Levels behind `last` may be down without being reliably down: nothing is said about them.
            reached = float(curve.frequency[last])
            if detectable > reference or reached == 0:
                reason = (
                    f"{said} up to F = {largest}, but only a fall of {detectable:.2f} or more would have shown "
                    f"(needed: {reference:.2f})"
                    if detectable > reference
                    else f"lower than at F = 0 from the first level on, but not reliably (p = {p_value:.2g})"
                )
                return make(
                    curve, self.kind, INCONCLUSIVE, reason, peak=peak, drop=drop, detectable=detectable, p_value=p_value
                )
            reason = f"{said} (maximum {peak:.2f}) up to F = {largest}; a fall of {detectable:.2f} would have shown"
            return make(
                curve, self.kind, RIGHT_CENSORED, reason, low=reached, peak=peak, drop=drop, detectable=detectable,
                p_value=p_value,
            )  # fmt: skip
        low, high = float(curve.frequency[last]), float(curve.frequency[last + 1])
        down = f"falls by {drop:.2f} from {peak:.2f} and stays down from F = {count(high)} on"
        if last == 0:
            return make(
                curve, self.kind, LEFT_CENSORED, f"{down}: falling from the first level", high=high, peak=peak,
                drop=drop,
                detectable=detectable, p_value=p_value,
            )  # fmt: skip
        height = np.array([logit(r, n) for r, n in zip(curve.rate, weight, strict=True)])
        edge = peak - float(margin(np.array(peak), settings, spread))
        value = crossing(curve.frequency, height, logit(edge, float(weight[last])), last)
        return make(
            curve, self.kind, COLLAPSED, down, value=value, low=low, high=high, peak=peak, drop=drop,
            detectable=detectable, p_value=p_value,
        )  # fmt: skip

    @staticmethod
    def _p_value(curve: Curve, weight: Array, spread: float | None, z: float, settings: AnalysisConfig) -> float:
        if z <= 0:
            return 1.0
        null = plateau_fit(curve.rate, weight)
        size = np.maximum(np.rint(weight), 1)
        p = (null * size + 0.5) / (size + 1)  # a fitted rate of 1.0 would leave the null no noise at all
        identity = f"{curve.params}/{curve.tokens}/{curve.group}/{curve.split}/{curve.scoring}"
        generator = np.random.default_rng([settings.seed, zlib.crc32(identity.encode())])
        drawn = generator.binomial(size.astype(int), p, size=(settings.resamples, len(p))) / size
        at_least = int(np.sum(fall(drawn, weight, settings, spread).z >= z - 1e-12))
        return (1 + at_least) / (1 + settings.resamples)
