"""Points of collapse to fit laws to."""

from __future__ import annotations

import numpy as np

from megatron_kis.analysis.criteria import Transition

SIZES = (1e5, 3e5, 1e6, 4e6, 1e7, 3e7)


def point(params, value, tokens=1_000_000, status="collapsed", kind="collapse", group="infused", **more):
    return Transition(
        params=int(params),
        tokens=int(tokens),
        kind=kind,
        group=group,
        status=status,
        value=None if status.endswith("censored") else float(value),
        **more,
    )


def noisy(seed=0, two_budgets=False):
    generator = np.random.default_rng(seed)
    budgets = (1e6, 1e7) if two_budgets else (1e6,)
    return [
        point(n, np.exp(1.0 + 0.4 * np.log(n) + 0.3 * np.log(d) + 0.2 * generator.normal()), d)
        for n in SIZES
        for d in budgets
    ]
