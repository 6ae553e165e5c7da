"""What one size more would tell of the target, where more runs of the sizes at hand would tell little.

How much models of one law differ from it (sigma) is learnt from models, not from runs: a prediction interval that is
wide because of few sizes narrows with a size, whose curve is one point and one degree of freedom more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pandas as pd

from megatron_kis.analysis.criteria import Transition, find_transitions
from megatron_kis.analysis.design.next_runs import group_of, variance_of, variances
from megatron_kis.analysis.law.fit import Law, LawRefused, fit_law
from megatron_kis.analysis.law.predict import half_width
from megatron_kis.config.analysis import AnalysisConfig


@dataclass(frozen=True)
class NewSize:
    """A size that the study does not have."""

    params: int
    """N."""
    tokens: int
    """D, the study's budget that is nearest to the target's."""
    frequency: float
    """F* that the law expects there: its levels should lie on both sides."""
    runs: int
    """As many as the study's sizes have on average."""
    flops: float
    """6 N D of these runs."""
    narrower: float
    """Expected relative fall of the logarithmic width of the prediction interval at the target."""


def new_sizes(
    table: pd.DataFrame, params: float, tokens: float, settings: AnalysisConfig | None = None, *,
    largest_ratio: float = 0.95, points: Sequence[Transition] | None = None,
) -> list[NewSize]:  # fmt: skip
    """Sizes between those of the study and one step beyond either end, the smallest first; none where no law is known.

    Left out are sizes where the law expects F* beyond ``largest_ratio``: their curves would not show it.

    Args:
        table: the curves so far.
        params: N of the target.
        tokens: D of the target.
        settings: the declared choices.
        largest_ratio: the infusion ratio that no run goes beyond.
        points: the table's transitions, where they are known already.
    """
    settings = settings or AnalysisConfig()
    points = points or find_transitions(table, settings)
    try:
        law = fit_law(points, "collapse", group_of(points), law=settings.law, compare_laws=False, brief=True)
    except LawRefused:
        return []
    mine = [p for p in points if p.kind == law.kind and p.group == law.group and p.informative]
    cells = [(p.params, p.tokens, variance_of(p)) for p in mine]
    known = [variance for _, _, variance in cells if math.isfinite(variance)]
    if not known:
        return []
    budget = min({p.tokens for p in mine}, key=lambda own: (abs(math.log(own / tokens)), own))
    runs = _runs_a_size(table[table["group"] == law.group], budget)
    expected = float(np.median(known))
    freedom = law.degrees_of_freedom + 1
    freer = replace(
        law, degrees_of_freedom=freedom, scatter_degrees_of_freedom=max(freedom, law.scatter_degrees_of_freedom)
    )

    def half(law: Law, cells: Sequence[tuple[int, int, float]]) -> float:
        mean, scatter = variances(law, cells, params, tokens)
        return half_width(law, math.sqrt(mean), math.sqrt(scatter))

    now = half(law, cells)
    found = []
    for size in _sizes(sorted({p.params for p in mine})):
        frequency = math.exp(law.at(size, budget)[0])
        if law.tokens_per_frequency and frequency * law.tokens_per_frequency > largest_ratio * budget:
            continue
        narrower = 1 - half(freer, [*cells, (size, budget, expected)]) / now
        found.append(NewSize(size, budget, frequency, runs, 6.0 * size * budget * runs, narrower))
    return found


def _sizes(sizes: Sequence[int]) -> list[int]:
    """The middles of neighbours, and one usual step below and above, by ratio."""
    steps = [b / a for a, b in pairwise(sizes)]
    step = float(np.median(steps)) if steps else 2.0
    middles = [math.sqrt(a * b) for a, b in pairwise(sizes)]
    return [round(size) for size in (sizes[0] / step, *middles, sizes[-1] * step)]


def _runs_a_size(rows: pd.DataFrame, budget: int) -> int:
    runs = rows.loc[rows["tokens"] == budget, ["params", "frequency", "seed"]].drop_duplicates()
    return math.ceil(len(runs) / runs["params"].nunique())
