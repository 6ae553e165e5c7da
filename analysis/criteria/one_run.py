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
        statistic: [M] of rates [M, L] and effective numbers of facts [M, L] of several curves.
    """
    rate, facts = pooled_rates(curve), curve.facts
    weight = dispersion.effective(facts, curve.runs)
    cases: dict[int, list[tuple[float, Array, Array]]] = {}  # by the number of levels that are left
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
            case = float(curve.dose[level]), without[rest], heavy[rest]
            cases.setdefault(int(rest.sum()), []).append(case)
    least, found = critical, None
    for several in cases.values():
        remaining = statistic(np.array([r for _, r, _ in several]), np.array([w for _, _, w in several])) - 1e-9
        place = len(remaining) - 1 - int(np.argmin(remaining[::-1]))
        if remaining[place] <= least:
            least, found = float(remaining[place]), several[place][0]
    return found
