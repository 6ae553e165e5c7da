"""Collapse by loss tolerance: the smallest dose whose general validation loss exceeds that of dose 0 by the tolerance.

The companion of the critical mixture ratio (arXiv 2407.17467): it watches general ability, not the facts.
"""

from __future__ import annotations

import numpy as np

from megatron_kis.analysis.runs.curves import Array, Curve
from megatron_kis.analysis.runs.transitions import (
    INCONCLUSIVE,
    LEFT_CENSORED,
    OBSERVED,
    RIGHT_CENSORED,
    Transition,
    count,
    crossing,
    make_transition,
)
from megatron_kis.config.analysis import AnalysisConfig


def loss_excess(curve: Curve) -> Array:
    """Returns [L] loss / loss at dose 0 - 1; NaN where unknown.

    Paired by seed where seeds are shared: runs that differ in the dose alone read the same general text in one order.
    """
    base = curve.seed_losses[0] if curve.dose[0] == 0 else {}
    excess = []
    for losses, mean in zip(curve.seed_losses, curve.loss, strict=True):
        shared = [losses[seed] / base[seed] - 1 for seed in losses if seed in base]
        if shared:
            excess.append(float(np.mean(shared)))
        else:
            excess.append(
                float(mean / np.mean(list(base.values())) - 1) if base and np.isfinite(mean) else float("nan")
            )
    return np.array(excess)


class LossTolerance:
    """Criterion of the loss tolerance: the smallest dose beyond it.

    The bracket is (last level within the tolerance, first level beyond it]; the value is linear in the logarithm of the
    dose between them. One seed has no error bar for its loss; runs that differ in the dose alone read the same general
    text in the same order, which makes the difference far less noisy than a rate.
    """

    kind = "tolerance"
    groups: tuple[str, ...] = ("infused", "background", "control")  # every group's rows carry the loss of their run

    def find(self, curve: Curve, settings: AnalysisConfig) -> Transition:
        """Returns the tolerance point of the runs of ``curve``."""
        excess, symbol = loss_excess(curve), curve.symbol
        known = np.isfinite(excess)
        if not np.isfinite(curve.loss).any():
            return make_transition(curve, self.kind, INCONCLUSIVE, "no validation loss", group="general")
        if not known.any():
            return make_transition(
                curve, self.kind, INCONCLUSIVE, f"no validation loss at {symbol} = 0 to compare with", group="general"
            )
        dose, excess = curve.dose[known], excess[known]
        base, most = float(curve.loss[0]), float(excess.max())
        if len(dose) < 2:
            return make_transition(
                curve, self.kind, INCONCLUSIVE, f"no validation loss at {symbol} > 0", group="general", peak=base
            )
        percent, over = f"{100 * settings.tolerance:g}%", f"over the loss at {symbol} = 0"
        beyond = np.flatnonzero(excess > settings.tolerance)
        if not len(beyond):
            largest = float(dose[-1])
            reason = f"at most {100 * most:+.1f}% {over} up to {count(largest)} (tolerance {percent})"
            return make_transition(
                curve, self.kind, RIGHT_CENSORED, reason, group="general", low=largest, peak=base, drop=most
            )
        first = int(beyond[0])
        high = float(dose[first])
        reason = f"{100 * excess[first]:+.1f}% {over} at {symbol} = {count(high)} (tolerance {percent})"
        low = float(dose[first - 1])
        if low == 0:
            reason += f", the smallest {symbol} tried"
            return make_transition(
                curve, self.kind, LEFT_CENSORED, reason, group="general", high=high, peak=base, drop=most
            )
        value = crossing(dose, excess, settings.tolerance, first - 1)
        return make_transition(
            curve, self.kind, OBSERVED, reason, group="general", value=value, low=low, high=high, peak=base, drop=most
        )
