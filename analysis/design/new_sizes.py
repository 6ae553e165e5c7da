"""The gain of a further model size, for studies whose prediction more runs of the same sizes would narrow little.

The scatter of models around the law (sigma) is estimated from models, not from runs. A prediction interval that is wide
because of few sizes narrows with another size, whose curve adds one point and one degree of freedom. The interval is
that of the law from points that may bend (`law.bend`), also where the study's own law rests on all curves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pandas as pd

from megatron_kis.analysis.criteria import Transition, find_transitions
from megatron_kis.analysis.design.gain import variance_of, variances
from megatron_kis.analysis.design.next_runs import group_of, pool_of, slice_to_extend
from megatron_kis.analysis.law.bend import half_width
from megatron_kis.analysis.law.fit import LawRefused, fit_law
from megatron_kis.analysis.law.law import Law
from megatron_kis.analysis.runs.slices import FACTS, USUAL, Slice, rows_of_slice
from megatron_kis.config.analysis import AnalysisConfig


@dataclass(frozen=True)
class NewSize:
    """A model size that the study does not have."""

    params: int
    """N: number of parameters."""
    tokens: int
    """D: the token budget of the study that is nearest to the target's."""
    frequency: float
    """Dose F* (or K*) that the law expects there; the levels of the dose should be on both sides of it."""
    runs: int
    """Number of runs: the average of the study's sizes."""
    flops: float
    """6 N D of these runs."""
    narrower: float
    """Expected relative fall of the logarithmic width of the prediction interval at the target."""
    slice: Slice = USUAL
    """What the dose is, and what is held."""


def new_sizes(
    table: pd.DataFrame,
    params: float,
    tokens: float,
    settings: AnalysisConfig | None = None,
    *,
    along: Slice | None = None,
    largest_ratio: float = 0.95,
    points: Sequence[Transition] | None = None,
) -> list[NewSize]:
    """Returns sizes between those of the study and one step beyond either end, in rising order; none without a law.

    Sizes where the law expects F* beyond ``largest_ratio``, or K* beyond the facts that there are, are left out: their
    curves would not show it.

    Args:
        table: the curves so far.
        params: N of the target.
        tokens: D of the target.
        settings: the declared settings of the analysis.
        along: axis and what is held; the slice of which most collapses are known, if None.
        largest_ratio: the largest infusion ratio of a run.
        points: the table's transitions, if they are known already.
    """
    settings = settings or AnalysisConfig()
    points = points or find_transitions(table, settings)
    group = group_of(points)
    along = along or slice_to_extend(points, group)
    try:
        law = fit_law(points, "collapse", group, along=along, law=settings.law, compare_laws=False, brief=True)
    except LawRefused:
        return []
    mine = [p for p in points if (p.kind, p.group, p.slice) == (law.kind, law.group, along) and p.informative]
    cells = [(p.params, p.tokens, variance_of(p)) for p in mine]
    known = [variance for _, _, variance in cells if math.isfinite(variance)]
    if not known:
        return []
    budget = min({p.tokens for p in mine}, key=lambda own: (abs(math.log(own / tokens)), own))
    runs = _runs_per_size(rows_of_slice(table[table["group"] == law.group], along), budget)
    expected = float(np.median(known))
    freedom = law.degrees_of_freedom + 1
    with_one_more = replace(
        law, degrees_of_freedom=freedom, scatter_degrees_of_freedom=max(freedom, law.scatter_degrees_of_freedom)
    )

    def half(law: Law, cells: Sequence[tuple[int, int, float]]) -> float:
        parts = variances(law, cells, params, tokens, settings.bend)
        errors, sigma = (math.sqrt(parts.points), math.sqrt(parts.prior)), math.sqrt(parts.scatter)
        freedom = law.degrees_of_freedom, law.scatter_degrees_of_freedom
        return float(half_width(errors, sigma, *freedom, law.confidence))

    most = pool_of(table) if along.axis == FACTS else math.inf
    now = half(law, cells)
    found = []
    for size in sizes_between(sorted({p.params for p in mine})):
        dose = math.exp(law.at(size, budget)[0])
        cost = law.tokens_per_frequency or 0.0
        if dose > most or dose * cost > largest_ratio * budget:
            continue
        narrower = 1 - half(with_one_more, [*cells, (size, budget, expected)]) / now
        found.append(NewSize(size, budget, dose, runs, 6.0 * size * budget * runs, narrower, along))
    return found


def sizes_between(sizes: Sequence[int]) -> list[int]:
    """Returns the geometric means of neighbours, and one median step below and above."""
    steps = [b / a for a, b in pairwise(sizes)]
    step = float(np.median(steps)) if steps else 2.0
    middles = [math.sqrt(a * b) for a, b in pairwise(sizes)]
    return [round(size) for size in (sizes[0] / step, *middles, sizes[-1] * step)]


def _runs_per_size(rows: pd.DataFrame, budget: int) -> int:
    runs = rows.loc[rows["tokens"] == budget, ["params", "dose", "seed"]].drop_duplicates()
    return math.ceil(len(runs) / runs["params"].nunique())
