"""The runs to train next, and how far each would narrow the prediction at the target.

Runs are added one at a time to one (N, D) cell: the level that halves the widest bracket that may contain F*, or one
beyond a censored end, in the cell with the largest width per cost (`bisect`). The gain of a run is simulated: curves
with that run are drawn from the cell's fitted hinge, tau is found again, and its expected variance enters the law's
prediction variance at the target. Each run is chosen as if the ones before it had given the expected results.

Choosing by the simulated gain itself, among seeds and levels, was tried and needed more compute for the same interval
(docs/LOG.md): with a few cells the gain of one run is small compared with the noise of its own estimate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count as numbers
from itertools import pairwise

import numpy as np
import pandas as pd

from megatron_kis.analysis.criteria import find_transitions
from megatron_kis.analysis.criteria.counts import Evidence, draw
from megatron_kis.analysis.criteria.hinge import FEWEST_LEVELS
from megatron_kis.analysis.criteria.hinge_fit import Precision
from megatron_kis.analysis.law.bootstrap import SimulatedCell, measure, simulated_cell
from megatron_kis.analysis.law.candidates import SIZE, SIZE_AND_BUDGET, design
from megatron_kis.analysis.law.fit import Law, LawRefused, fit_law
from megatron_kis.analysis.runs.curves import Array, Curve, curves, primary_rows
from megatron_kis.analysis.runs.transitions import INCONCLUSIVE, LEFT_CENSORED, RIGHT_CENSORED, Transition
from megatron_kis.common.errors import InputError
from megatron_kis.config.analysis import AnalysisConfig

_STEP = 1.5  # factor between a censored end and the level beyond it
_WIDTH_95 = 3.92  # width of a two-sided 95% interval of a normal distribution, in standard deviations
_NEAR = 1.1  # levels closer than this factor count as one: a run between them would only be another seed
_DRAWS = 64  # number of simulated curves over which the gain of a run is averaged


@dataclass(frozen=True)
class Proposal:
    """One run to train."""

    params: int
    tokens: int
    frequency: float
    seed: int
    flops: float
    """Cost of the run, 6 N D."""
    gain: float | None
    """Expected relative fall of the prediction variance at the target; None if no law can be fitted yet."""
    reason: str
    facts: int | None = None
    """Number K of infused facts that the run shows; None: all."""
    infusion_ratio: float | None = None
    """Infusion ratio to ask for in place of ``frequency``; None: ask for the frequency."""


@dataclass
class _Cell:
    curve: Curve
    point: Transition
    source: SimulatedCell | None
    variance: float
    """Variance of log F*, with the runs proposed so far."""
    seeds: dict[float, set[int]]
    """Seeds of each level, including those proposed so far."""

    @property
    def flops(self) -> float:
        return 6.0 * self.curve.params * self.curve.tokens


def propose(
    table: pd.DataFrame,
    params: float,
    tokens: float,
    settings: AnalysisConfig | None = None,
    *,
    group: str | None = None,
    count: int = 6,
    largest_ratio: float = 0.95,
    points: Sequence[Transition] | None = None,
) -> list[Proposal]:
    """Proposes the next ``count`` runs for the prediction at N = ``params``, D = ``tokens``.

    Args:
        table: the curves so far.
        params: N of the target.
        tokens: D of the target.
        settings: the declared settings of the analysis.
        group: fact group whose collapse is predicted; the first one with a collapse, background last, if None.
        count: runs to propose.
        largest_ratio: the largest infusion ratio of a proposal, if the table has infusion ratios.
        points: the table's transitions, if they are known already.

    Raises:
        InputError: no curve of that group.
    """
    settings = settings or AnalysisConfig()
    points = [p for p in points or find_transitions(table, settings) if p.kind == "collapse"]
    group = group or group_of(points)
    runs = bisect(table, settings, group=group, count=count, largest_ratio=largest_ratio, points=points)
    try:
        law = fit_law(points, "collapse", group, law=settings.law, compare_laws=False, brief=True)
    except LawRefused:
        return runs
    cells = {
        (c.params, c.tokens): _cell(c, p, settings, seeds) for c, p, seeds in _cells(table, settings, group, points)
    }
    proposals: list[Proposal] = []
    for run in runs:
        proposal, variance = _with_gain(cells, run, law, params, tokens, settings)
        proposals.append(proposal)
        cells[run.params, run.tokens] = _with_run(cells[run.params, run.tokens], run, variance)
    return proposals


def bisect(
    table: pd.DataFrame,
    settings: AnalysisConfig | None = None,
    *,
    group: str,
    count: int = 6,
    largest_ratio: float = 0.95,
    points: Sequence[Transition] | None = None,
) -> list[Proposal]:
    """Proposes the same runs without their gains: repeatedly halves the bracket that is widest for its cost.

    Raises:
        InputError: no curve of that group.
    """
    settings = settings or AnalysisConfig()
    points = points or find_transitions(table, settings)
    cells = [_Cell(curve, point, None, 0.0, seeds) for curve, point, seeds in _cells(table, settings, group, points)]
    found: list[Proposal] = []
    for _ in range(count):
        best = _bisect(cells, largest_ratio)
        if best is None:
            break
        run, index = best
        found.append(run)
        cells[index] = _with_run(cells[index], run, 0.0)
    return found


def _cells(
    table: pd.DataFrame, settings: AnalysisConfig, group: str, points: Sequence[Transition]
) -> list[tuple[Curve, Transition, dict[float, set[int]]]]:
    """Returns the group's curve of each (N, D), its collapse point, and the seeds of its levels."""
    primary = primary_rows(table, settings)
    by_cell = {(p.params, p.tokens): p for p in points if p.kind == "collapse" and p.group == group}
    seeds = _seeds(primary[primary["group"] == group])
    mine = [c for c in curves(primary) if c.group == group]
    if not mine:
        raise InputError(f"no curve of group {group!r}", where="group", remedy="infused or background")
    return [(c, by_cell[c.params, c.tokens], seeds[c.params, c.tokens]) for c in mine]


def group_of(points: Sequence[Transition]) -> str:
    """Returns the group whose collapse is predicted: the first one with a collapse, background last."""
    found = {p.group for p in points if p.kind == "collapse" and p.informative}
    return "background" if "background" in found and "infused" not in found else "infused"


def _seeds(rows: pd.DataFrame) -> dict[tuple[int, int], dict[float, set[int]]]:
    """Returns the seeds trained at each level of each (N, D)."""
    found: dict[tuple[int, int], dict[float, set[int]]] = {}
    for params, tokens, frequency, seed in rows[["params", "tokens", "frequency", "seed"]].itertuples(index=False):
        found.setdefault((int(params), int(tokens)), {}).setdefault(float(frequency), set()).add(int(seed))
    return found


def _cell(curve: Curve, point: Transition, settings: AnalysisConfig, seeds: dict[float, set[int]]) -> _Cell:
    source = None
    if point.informative and len(curve.frequency) >= FEWEST_LEVELS:
        source = simulated_cell(curve, point, point.steepness or 4.0, settings, 99)
    error = source.error if source is not None and point.interval == "profile" else None
    return _Cell(curve, point, source, error**2 if error else variance_of(point), seeds)


def variance_of(point: Transition) -> float:
    """Returns the variance of log F* implied by its interval: normal for a profile interval, uniform for a bracket."""
    if not point.informative or not point.high or not point.value:
        return math.inf
    low = math.log(point.low) if point.low else 2 * math.log(point.value) - math.log(point.high)
    width = math.log(point.high) - low
    return width**2 / 12 if point.interval == "bracket" else (width / _WIDTH_95) ** 2


def prediction_variance(law: Law, cells: Sequence[tuple[int, int, float]], params: float, tokens: float) -> float:
    """Returns the variance of log F* of a new model at the target.

    Args:
        law: the fitted law.
        cells: (N, D, variance of log F*) of each cell; infinite for censored ones.
        params: N of the target.
        tokens: D of the target.
    """
    mean, scatter = variances(law, cells, params, tokens)
    return mean + scatter


def variances(law: Law, cells: Sequence[tuple[int, int, float]], params: float, tokens: float) -> tuple[float, float]:
    """Returns the two parts of `prediction_variance`: of the law's mean at the target, and of models around it."""
    known = [(n, d, v) for n, d, v in cells if math.isfinite(v)]
    log_n, log_d = np.log([[n, d] for n, d, _ in known]).T
    form = law.candidate if not law.candidate.offset else (SIZE_AND_BUDGET if law.in_tokens else SIZE)
    centre = form.covariates(log_n, log_d).mean(axis=0)
    x = design(form, centre, log_n, log_d)
    sigma = max(law.sigma, 0.02)
    weight = 1 / (sigma**2 + np.array([v for _, _, v in known]))
    row = design(form, centre, np.log([params]), np.log([tokens]))[0]
    return float(row @ np.linalg.solve((x * weight[:, None]).T @ x, row)), sigma**2


def _with_gain(
    cells: dict[tuple[int, int], _Cell],
    run: Proposal,
    law: Law,
    params: float,
    tokens: float,
    settings: AnalysisConfig,
) -> tuple[Proposal, float]:
    """Returns the run with its gain, and the variance of log F* that its cell is expected to have with it."""
    own = run.params, run.tokens
    expected = _expected(cells[own], run.frequency, law, settings)
    variances_now = {cell: c.variance for cell, c in cells.items()}
    variances_then = variances_now | {own: expected}
    now = prediction_variance(law, [(*cell, v) for cell, v in variances_now.items()], params, tokens)
    then = prediction_variance(law, [(*cell, v) for cell, v in variances_then.items()], params, tokens)
    return replace(run, gain=1 - then / now), expected


def _expected(cell: _Cell, frequency: float, law: Law, settings: AnalysisConfig) -> float:
    """Returns the expected variance of log F* of a cell with one more run."""
    point, curve = cell.point, cell.curve
    if point.status in (RIGHT_CENSORED, INCONCLUSIVE) and point.low:
        mean, error = law.at(curve.params, curve.tokens)
        total = math.hypot(error, law.sigma)
        # Probability that the new level is beyond F*, so that the cell gets a bracket of this width.
        reached = 0.5 * (1 + math.erf((math.log(frequency) - 0.2 - mean) / (total * math.sqrt(2))))
        return math.log(frequency / point.low) ** 2 / 12 / max(reached, 1e-3)
    if cell.source is None or not point.value:
        return cell.variance
    generator = np.random.default_rng([settings.seed, curve.params % (1 << 32)])
    tau = math.log(point.value) + math.sqrt(cell.variance) * generator.standard_normal(_DRAWS)
    rates = _drawn(generator, cell.source, tau)
    now = _expected_variance(cell.source, rates, settings)
    extended = _extended(cell.source, frequency)
    then = _expected_variance(extended, _with_drawn(generator, extended, tau, cell.source, rates), settings)
    # A run cannot make the estimate worse: a ratio above one is noise of the few simulated curves.
    return cell.variance * min(then / now, 1.0)


def _drawn(generator: np.random.Generator, source: SimulatedCell, tau: Array) -> Array:
    """Draws rates [R, L, S] of curves with the hinge at each ``tau``."""
    return draw(generator, source.rates(tau), source.facts, float(source.seen.icc), len(tau))


def _with_drawn(
    generator: np.random.Generator, extended: SimulatedCell, tau: Array, source: SimulatedCell, rates: Array
) -> Array:
    """Adds the extended source's further run to the curves ``rates`` of ``source``; the other runs stay as they are."""
    more = _drawn(generator, extended, tau)
    there = np.zeros(extended.facts.shape, dtype=bool)
    levels = np.searchsorted(extended.x, source.x - 1e-9)
    there[levels, : source.facts.shape[1]] = source.facts > 0
    more[:, there] = rates[:, source.facts > 0]
    return more


def _expected_variance(source: SimulatedCell, rates: Array, settings: AnalysisConfig) -> float:
    """Returns the mean variance of log F* implied by the intervals of simulated curves."""
    lower, upper, variance = measure(replace(source, critical=-1.0), rates, settings, Precision(2, 6))
    closed = np.isfinite(lower) & np.isfinite(upper)
    width = np.where(closed, np.where(closed, upper, 0.0) - np.where(closed, lower, 0.0), 1.5)
    return float(np.mean(np.where(closed & (variance > 0), variance, width**2 / 12)))


def _extended(source: SimulatedCell, frequency: float) -> SimulatedCell:
    """Returns the source with one more run: another seed of one of its levels, or a new level."""
    x = math.log(frequency)
    per_run = float(source.facts.max())
    at = int(np.searchsorted(source.x, x - 1e-9))
    known = at < len(source.x) and abs(source.x[at] - x) < 1e-9
    facts = source.facts
    if known:
        row = facts[at]
        free = np.flatnonzero(row == 0)
        if len(free):
            facts = facts.copy()
            facts[at, free[0]] = per_run
        else:
            facts = np.column_stack([facts, np.zeros(len(facts))])
            facts[at, -1] = per_run
        return replace(source, facts=facts)
    row = np.zeros((1, facts.shape[1]))
    row[0, 0] = per_run
    seen = source.seen
    more = Evidence(
        np.insert(seen.rate, at, seen.rate[min(at, len(seen.rate) - 1)]),
        np.insert(seen.weight, at, seen.weight.mean()),
        seen.icc,
        seen.spread,
    )
    kappa = source.kappa + (at < source.kappa)
    return replace(
        source, x=np.insert(source.x, at, x), facts=np.insert(facts, at, row, axis=0), seen=more, kappa=kappa
    )


def _with_run(cell: _Cell, run: Proposal, variance: float) -> _Cell:
    """Returns the cell as if the run had given the expected result."""
    frequency = run.frequency
    seeds = cell.seeds | {frequency: cell.seeds.get(frequency, set()) | {run.seed}}
    source = None if cell.source is None else _extended(cell.source, frequency)
    curve = cell.curve
    levels = np.unique(np.append(curve.frequency, frequency))
    if len(levels) > len(curve.frequency):
        at = int(np.searchsorted(curve.frequency, frequency))
        # Only the levels are used from here on; the rates of a run that was not trained are unknown.
        nothing = (np.array([np.nan]), np.array([0.0]))
        curve = replace(
            curve,
            frequency=levels,
            rate=np.insert(curve.rate, at, np.nan),
            chance=np.insert(curve.chance, at, np.nan),
            seed_rates=(*curve.seed_rates[:at], nothing[0], *curve.seed_rates[at:]),
            seed_facts=(*curve.seed_facts[:at], nothing[1], *curve.seed_facts[at:]),
            ratio=np.insert(curve.ratio, at, np.nan),
            loss=np.insert(curve.loss, at, np.nan),
            seed_losses=(*curve.seed_losses[:at], {}, *curve.seed_losses[at:]),
        )
    return _Cell(curve, cell.point, source, variance, seeds)


def _bisect(cells: Sequence[_Cell], largest_ratio: float) -> tuple[Proposal, int] | None:
    """Returns the run with the largest width per cost, in a bracket or beyond a censored end, and the cell's index."""
    best: tuple[tuple[float, float], tuple[Proposal, int]] | None = None
    for index, cell in enumerate(cells):
        point, levels = cell.point, cell.curve.frequency[cell.curve.frequency > 0]
        if not len(levels):
            continue
        if point.informative and point.high:
            low = max(point.low or 0.0, float(levels[0]))
            inner = [(a, b) for a, b in pairwise(levels) if b > low and a < point.high]
            if not inner:
                continue
            a, b = max(inner, key=lambda pair: pair[1] / pair[0])
            frequency, width = float(round(math.sqrt(a * b))), math.log(b / a)
            if frequency < _NEAR * a or b < _NEAR * frequency:
                continue
            reason = "halves a bracket that may hold F*"
        elif point.status == LEFT_CENSORED:
            frequency, width = float(max(round(levels[0] / _STEP), 1)), 1.0
            if levels[0] < _NEAR * frequency:
                continue
            reason = "below the censored end"
        else:
            frequency, width = _capped(cell.curve, float(levels[-1]) * _STEP, largest_ratio), 1.0
            if frequency < _NEAR * levels[-1]:
                continue
            reason = "beyond the largest F"
        # Halving a bracket in a model of four times the cost is only worth it if it is four times as wide.
        rank = (width / cell.flops, width)
        if best is None or rank > best[0]:
            best = rank, (_proposal(cell, frequency, reason), index)
    return best[1] if best else None


def _proposal(cell: _Cell, frequency: float, reason: str) -> Proposal:
    taken = cell.seeds.get(frequency, set())
    seed = next(number for number in numbers() if number not in taken)
    return Proposal(cell.curve.params, cell.curve.tokens, frequency, seed, cell.flops, None, reason)


def _capped(curve: Curve, frequency: float, largest_ratio: float) -> float:
    """Returns ``frequency``, or the largest whole F within ``largest_ratio`` if the curve has infusion ratios."""
    known = np.isfinite(curve.ratio) & (curve.frequency > 0)
    if known.any():
        cost = float(np.max(curve.ratio[known] / curve.frequency[known]))
        if cost > 0:
            frequency = min(frequency, math.floor(largest_ratio / cost))
    return float(round(frequency))
