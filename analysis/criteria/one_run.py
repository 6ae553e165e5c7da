"""Does a fall rest on a single run? Every run of a curve is left out in turn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from megatron_kis.analysis.criteria.counts import pooled_rates
from megatron_kis.analysis.runs.curves import Array, Curve, Dispersion


def run_it_rests_on(
    curve: Curve, dispersion: Dispersion, critical: float, statistic: Callable[[Array, Array], Array]
) -> float | None:
    """Returns the dose of a run without which ``curve`` does not fall reliably; None if there is none.

    Of several it is that without which the least is left.

    Args:
        curve: the measured curve.
        dispersion: how much its rates vary.
        critical: what a statistic must exceed; that of the whole curve serves.
        statistic: of rates [L] and effective numbers of facts [L].
    """
    rate, facts = pooled_rates(curve), curve.facts
    weight = dispersion.effective(facts, curve.runs)
    least, found = critical, None
    for level, (rates, own) in enumerate(zip(curve.seed_rates, curve.seed_facts, strict=True)):
        for one, n in zip(rates, own, strict=True):
            without, heavy = rate.copy(), weight.copy()
            rest = np.ones(len(rate), dtype=bool)
            if len(own) > 1:
                left = np.array([facts[level] - n])
                without[level] = np.clip((rate[level] * facts[level] - one * n) / left[0], 0.0, 1.0)
                heavy[level] = dispersion.effective(left, np.array([len(own) - 1]))[0]
            else:
                rest[level] = False
            remaining = float(statistic(without[rest], heavy[rest])) - 1e-9
            if remaining <= least:
                least, found = remaining, float(curve.dose[level])
    return found
