"""Criterion ``tolerance_rule``: the last F at which a memorised rate is within r of its maximum, if it stays down."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_kis.analysis.criteria.bound import kept_up_to
from megatron_kis.analysis.criteria.counts import draw, generator_of
from megatron_kis.analysis.criteria.dispersion import dispersion_of
from megatron_kis.analysis.criteria.one_run import run_it_rests_on
from megatron_kis.analysis.criteria.tests import cut_off, detectable_drop, logit, p_above, plateau_fit
from megatron_kis.analysis.criteria.unimodal import critical_value
from megatron_kis.analysis.runs.curves import Array, Curve
from megatron_kis.analysis.runs.transitions import (
    COLLAPSED,
    INCONCLUSIVE,
    LEFT_CENSORED,
    RIGHT_CENSORED,
    Found,
    Transition,
    count,
    crossing,
    make_transition,
    never_known,
    too_few_levels,
)
from megatron_kis.config.analysis import AnalysisConfig

_FEWEST_LEVELS = 3  # two do not distinguish a rise from a fall


@dataclass(frozen=True)
class Fall:
    """The fall of curves [..., L] below their maxima."""

    last: npt.NDArray[np.int64]
    """[...] last level that is within the margin of the maximum; L - 1 where the curve does not stay down."""
    drop: Array
    """[...] maximum minus pooled rate of the levels from the clearest fall on."""
    z: Array
    """[...] the largest standardised drop to the levels from any one after ``last`` on; 0 where there are none."""


def margin(peak: Array | float, settings: AnalysisConfig) -> Array:
    """Returns how far below its maximum a curve must stay: r * peak or delta_min, the larger."""
    return np.maximum(settings.r * np.asarray(peak), settings.delta_min)


def needed_drop(peak: Array | float, chance: float, settings: AnalysisConfig) -> Array:
    """Returns the fall whose absence makes "no collapse" worth saying: it must have been detectable."""
    return np.maximum(settings.reference_loss * (np.asarray(peak) - chance), settings.delta_min)


def last_level_up(rates: Array, margin: Array) -> npt.NDArray[np.int64]:
    """Returns [...] the last level of rates [..., L] that is within ``margin`` [...] of the maximum."""
    kept = rates >= (rates.max(axis=-1) - margin)[..., None] - 1e-12
    last: npt.NDArray[np.int64] = rates.shape[-1] - 1 - np.argmax(kept[..., ::-1], axis=-1)
    return last


def fall(rates: Array, weight: Array, settings: AnalysisConfig) -> Fall:
    """Measures the fall of each curve of ``rates`` [..., L] with effective facts ``weight`` [L].

    For every level j after the last one up, the standardised drop from the maximum to the pooled levels from j on is

        z_j = (peak - tail_j) / sqrt(p (1 - p) (1 / n_peak + 1 / n_j)),

    where tail_j is the rate of these n_j facts together and p that of them and the maximum's.
    """
    levels = rates.shape[-1]
    peak = rates.max(axis=-1)
    last = last_level_up(rates, margin(peak, settings))
    mass = np.cumsum(weight[::-1])[::-1]  # n_j
    tail = np.cumsum((rates * weight)[..., ::-1], axis=-1)[..., ::-1] / mass
    peak_mass = weight[np.argmax(rates, axis=-1)][..., None]
    pooled = (peak[..., None] * peak_mass + tail * mass) / (peak_mass + mass)
    variance = pooled * (1 - pooled) * (1 / peak_mass + 1 / mass)
    drops = peak[..., None] - tail
    down = (np.arange(levels) > last[..., None]) & (variance > 0)
    scores = np.where(down, drops / np.sqrt(np.where(variance > 0, variance, 1.0)), 0.0)
    clearest = np.argmax(scores, axis=-1)[..., None]
    z = np.take_along_axis(scores, clearest, axis=-1)[..., 0]
    drop = np.where(z > 0, np.take_along_axis(drops, clearest, axis=-1)[..., 0], 0.0)
    return Fall(last, drop, z)


class ToleranceRule:
    """The collapse point is where the curve crosses, for the last time, ``margin`` below its maximum.

    The interval is the bracket of levels around that crossing, the value the crossing on the logit scale, linear in
    log F. A collapse is claimed only if H0 "the curve never falls" is rejected: the statistic is the largest
    standardised drop from the maximum to the pooled levels from some one after the crossing on (a cliff at the end and
    a long decline are both seen); its distribution under the non-decreasing curve that fits best comes from a
    parametric bootstrap, which pays for picking the maximum, the crossing and that level. The bracket is the grid's,
    not a confidence interval.
    """

    kind = "collapse"
    groups: tuple[str, ...] = ("infused", "background")

    def find(self, curve: Curve, settings: AnalysisConfig) -> Transition:
        """Returns the collapse of ``curve``."""
        levels, symbol = len(curve.dose), curve.symbol
        if reason := too_few_levels(curve, levels, _FEWEST_LEVELS):
            return make_transition(curve, self.kind, INCONCLUSIVE, reason)
        dispersion = dispersion_of(curve, settings)
        weight, freedom = dispersion.effective(curve.facts, curve.runs), dispersion.freedom
        top = int(np.argmax(curve.rate))
        peak = float(curve.rate[top])
        chance = curve.assumed_chance
        ends = float(weight[top]), float(weight[-1])
        detectable = float(detectable_drop(peak, *ends, settings.alpha, settings.power, freedom))
        found: Found = {"peak": peak, "detectable": detectable}
        if p_above(peak, float(weight[top]), chance, freedom) > settings.alpha / levels:
            return make_transition(curve, self.kind, INCONCLUSIVE, never_known(curve, peak), **found)

        seen = fall(curve.rate, weight, settings)
        last, drop = int(seen.last), float(seen.drop)
        p_value, null = self._p_value(curve, weight, freedom, float(seen.z), settings)
        found = {"peak": peak, "drop": drop, "detectable": detectable, "p_value": p_value}
        largest = count(float(curve.dose[-1]))
        if last == levels - 1 or p_value > settings.alpha:
            return self._no_fall(curve, weight, freedom, last, found, settings)
        low, high = float(curve.dose[last]), float(curve.dose[last + 1])
        critical = critical_value(null, settings.alpha)

        def falls(rates: Array, heavy: Array) -> Array:
            return np.array([fall(one, own, settings).z for one, own in zip(rates, heavy, strict=True)])

        run = run_it_rests_on(curve, dispersion, critical, falls)
        if run is not None:
            flag = f"rests on one run at {symbol} = {count(run)}"
            reason = f"falls by {drop:.2f} up to {symbol} = {largest} (p = {p_value:.2g}), but {flag}"
            return make_transition(curve, self.kind, INCONCLUSIVE, reason, **found | {"flags": flag})
        down = f"falls by {drop:.2f} from {peak:.2f} and stays down from {symbol} = {count(high)} on"
        if last == 0:
            reason = f"{down}: falling from the first level"
            return make_transition(curve, self.kind, LEFT_CENSORED, reason, **found | {"high": high})
        edge = logit(np.array(peak - float(margin(peak, settings))), weight[last])
        value = crossing(curve.dose, logit(curve.rate, weight), float(edge), last)
        return make_transition(curve, self.kind, COLLAPSED, down, **found | {"value": value, "low": low, "high": high})

    def _no_fall(
        self, curve: Curve, weight: Array, freedom: float, last: int, found: Found, settings: AnalysisConfig
    ) -> Transition:
        """Returns the point of a curve that does not reliably fall, and up to where it has certainly kept 1 - r."""
        peak, detectable, p_value = found["peak"] or 0.0, found["detectable"] or 0.0, found["p_value"]
        up = last == len(curve.dose) - 1
        said = "stays within the margin of its maximum" if up else f"no reliable fall (p = {p_value:.2g})"
        said += f" up to {curve.symbol} = {count(float(curve.dose[-1]))}"
        needed = float(needed_drop(peak, curve.assumed_chance, settings))
        if detectable > needed:
            reason = f"{said}, but only a fall of {detectable:.2f} or more would have shown (needed: {needed:.2f})"
            return make_transition(curve, self.kind, INCONCLUSIVE, reason, **found)
        reason = f"{said} (maximum {peak:.2f}); no fall larger than {detectable:.2f} shown"
        one_sided = cut_off(2 * settings.confidence - 1, freedom)
        kept = int(kept_up_to(curve.rate[None], weight, settings.r, one_sided)[0])
        # Levels after `last` may be down without being reliably down: nothing is said about them.
        reached = float(curve.dose[min(last, kept)])
        if reached == 0:
            reason += f", but from {curve.symbol} = 0 on a smaller one is possible"
            return make_transition(curve, self.kind, INCONCLUSIVE, reason, **found)
        return make_transition(curve, self.kind, RIGHT_CENSORED, reason, **found | {"low": reached})

    @staticmethod
    def _p_value(
        curve: Curve, weight: Array, freedom: float, z: float, settings: AnalysisConfig
    ) -> tuple[float, Array]:
        """Returns (p-value, [R] statistics of curves that never fall)."""
        if z <= 0:
            return 1.0, np.array([np.inf])
        null = plateau_fit(curve.rate, weight)
        size = np.maximum(np.rint(weight), 1)
        p = (null * size + 0.5) / (size + 1)  # a fitted rate of 1.0 would leave the null no noise at all
        drawn = draw(generator_of(curve, settings), p, weight, freedom, settings.resamples)
        under_null = fall(drawn, weight, settings).z
        return (1 + int(np.sum(under_null >= z - 1e-12))) / (1 + settings.resamples), under_null
