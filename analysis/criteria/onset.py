"""Onset: the smallest F at which the infused facts are reliably above chance."""

from __future__ import annotations

import numpy as np

from megatron_kis.analysis.criteria.dispersion import dispersion_of
from megatron_kis.analysis.criteria.tests import p_above, p_greater
from megatron_kis.analysis.runs.curves import Curve
from megatron_kis.analysis.runs.transitions import (
    INCONCLUSIVE,
    LEFT_CENSORED,
    OBSERVED,
    RIGHT_CENSORED,
    Transition,
    count,
    make_transition,
)
from megatron_kis.config.analysis import AnalysisConfig


class Onset:
    """Criterion of the onset: the first level that is reliably above chance.

    A level is above chance when it beats the chance level (exact binomial) *and*, where a run with F = 0 exists, that
    run's rate: an untrained preference for frequent objects can beat 1/k, and is not memory. The levels share alpha
    (Bonferroni). The interval is the bracket (last level before, first level above]; the value its geometric mean.
    """

    kind = "onset"
    groups: tuple[str, ...] = ("infused",)

    def find(self, curve: Curve, settings: AnalysisConfig) -> Transition:
        """Returns the onset of ``curve``."""
        infused = curve.dose > 0
        chance = curve.mean_chance
        if not infused.any():
            return make_transition(curve, self.kind, INCONCLUSIVE, "no run with F > 0")
        if chance is None:
            return make_transition(curve, self.kind, INCONCLUSIVE, "the chance level is not known")
        dispersion = dispersion_of(curve, settings)
        weight, freedom = dispersion.effective(curve.facts, curve.runs), dispersion.freedom
        baseline = 0 if curve.dose[0] == 0 else None
        alpha = settings.alpha / int(infused.sum())

        def p_value(rate: float, n_eff: float) -> float:
            against_chance = float(p_above(rate, n_eff, chance, freedom))
            if baseline is None:
                return against_chance
            without = float(curve.rate[baseline]), float(weight[baseline])
            return max(against_chance, p_greater(rate, n_eff, *without, freedom))

        p = [p_value(r, n) if f > 0 else 1.0 for f, r, n in zip(curve.dose, curve.rate, weight, strict=True)]
        above = [index for index, value in enumerate(p) if value <= alpha]
        peak = float(curve.rate.max())
        if not above:
            largest, last = float(curve.dose[-1]), len(p) - 1
            # Would a model that half knows the facts have been noticed at the largest F?
            floor = chance if baseline is None else max(chance, float(curve.rate[baseline]))
            known = floor + settings.reference_loss * (1 - floor)
            if p_value(known, float(weight[last])) > alpha:
                reason = f"too few facts to tell a rate of {known:.2f} from chance ({chance:.2f})"
                return make_transition(curve, self.kind, INCONCLUSIVE, reason, peak=peak, p_value=min(p))
            reason = f"not reliably above chance ({chance:.2f}) up to the largest F, {count(largest)}"
            return make_transition(curve, self.kind, RIGHT_CENSORED, reason, low=largest, peak=peak, p_value=min(p))
        first = above[0]
        high = float(curve.dose[first])
        seen = f"first reliably above chance ({chance:.2f}) at F = {count(high)}: rate {curve.rate[first]:.2f}"
        if first == 0 or curve.dose[first - 1] == 0:
            return make_transition(
                curve, self.kind, LEFT_CENSORED, f"{seen}, the smallest F tried", high=high, peak=peak, p_value=p[first]
            )
        low = float(curve.dose[first - 1])
        return make_transition(
            curve,
            self.kind,
            OBSERVED,
            f"{seen}; not yet at F = {count(low)}",
            value=float(np.sqrt(low * high)),
            low=low,
            high=high,
            peak=peak,
            p_value=p[first],
        )
