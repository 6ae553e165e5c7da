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
from megatron_kis.analysis.criteria.counts import draw
from megatron_kis.analysis.criteria.dispersion import with_dispersion
from megatron_kis.analysis.criteria.hinge import FEWEST_LEVELS
from megatron_kis.analysis.criteria.hinge_fit import Precision
from megatron_kis.analysis.law.bootstrap import SimulatedCell, measure, simulated_cell
from megatron_kis.analysis.law.candidates import SIZE, SIZE_AND_BUDGET, design
from megatron_kis.analysis.law.fit import Law, LawRefused, fit_law
from megatron_kis.analysis.runs.curves import Array, Curve, curves, primary_rows
from megatron_kis.analysis.runs.slices import FREQUENCY, RATIO, USUAL, Slice, rows_of_slice
from megatron_kis.analysis.runs.transitions import INCONCLUSIVE, LEFT_CENSORED, RIGHT_CENSORED, Transition, amount_at
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
    """F; where an infusion ratio is held, the F that it gives (NaN if that is not known)."""
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


@dataclass(frozen=True)
class _Step:
    """A run to train, by its dose."""

    params: int
    tokens: int
    dose: float
    seed: int
    flops: float
    reason: str


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
    along: Slice | None = None,
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
        along: axis and what is held; the slice of which most collapses are known, if None.
        count: runs to propose.
        largest_ratio: the largest infusion ratio of a proposal, if the table has infusion ratios.
        points: the table's transitions, if they are known already.

    Raises:
        InputError: no curve of that group.
    """
    settings = settings or AnalysisConfig()
    points = [p for p in points or find_transitions(table, settings) if p.kind == "collapse"]
    group = group or group_of(points)
    along = along or slice_to_extend(points, group)
    found = _cells(table, settings, group, along, points)
    steps = _steps(found, count, largest_ratio, _pool(table))
    curve_of = {(curve.params, curve.tokens): curve for curve, _, _ in found}
    try:
        law = fit_law(points, "collapse", group, along=along, law=settings.law, compare_laws=False, brief=True)
    except LawRefused:
        return [_proposal(step, curve_of[step.params, step.tokens], None) for step in steps]
    cells = {(c.params, c.tokens): _cell(c, p, settings, seeds) for c, p, seeds in found}
    proposals: list[Proposal] = []
    for step in steps:
        own = step.params, step.tokens
        gain, variance = _gain(cells, step, law, params, tokens, settings)
        proposals.append(_proposal(step, curve_of[own], gain))
        cells[own] = _with_run(cells[own], step, variance)
    return proposals


def bisect(
    table: pd.DataFrame,
    settings: AnalysisConfig | None = None,
    *,
    group: str,
    along: Slice | None = None,
    count: int = 6,
    largest_ratio: float = 0.95,
    points: Sequence[Transition] | None = None,
) -> list[Proposal]:
    """Proposes the same runs without their gains: repeatedly halves the bracket that is widest for its cost.

    Raises:
        InputError: no curve of that group.
    """
    settings = settings or AnalysisConfig()
    points = [p for p in points or find_transitions(table, settings) if p.kind == "collapse"]
    found = _cells(table, settings, group, along or slice_to_extend(points, group), points)
    curve_of = {(curve.params, curve.tokens): curve for curve, _, _ in found}
    steps = _steps(found, count, largest_ratio, _pool(table))
    return [_proposal(step, curve_of[step.params, step.tokens], None) for step in steps]


_Known = tuple[Curve, Transition, dict[float, set[int]]]
"""The curve of an (N, D), its collapse point, and the seeds of its levels."""


def _steps(known: Sequence[_Known], count: int, largest_ratio: float, pool: float) -> list[_Step]:
    cells = [_Cell(curve, point, None, 0.0, seeds) for curve, point, seeds in known]
    found: list[_Step] = []
    for _ in range(count):
        best = _bisect(cells, largest_ratio, pool)
        if best is None:
            break
        step, index = best
        found.append(step)
        cells[index] = _with_run(cells[index], step, 0.0)
    return found


def _cells(
    table: pd.DataFrame, settings: AnalysisConfig, group: str, along: Slice, points: Sequence[Transition]
) -> list[_Known]:
    """Returns what is known of each (N, D) of a group and slice."""
    primary = primary_rows(table, settings)
    mine = primary[primary["group"] == group]
    by_cell = {(p.params, p.tokens): p for p in points if p.group == group and p.slice == along}
    seeds = _seeds(rows_of_slice(mine, along))
    found = with_dispersion(curves(mine, [along]), settings)
    if not found:
        raise InputError(f"no curve of group {group!r}", where="group", remedy="infused or background")
    return [(c, by_cell[c.params, c.tokens], seeds[c.params, c.tokens]) for c in found]


def slice_to_extend(points: Sequence[Transition], group: str) -> Slice:
    """Returns the slice of a group in which most collapses are known; of several the first."""
    mine = [p for p in points if p.kind == "collapse" and p.group == group]
    slices = sorted({p.slice for p in mine}, key=lambda one: one.key)
    return max(slices, key=lambda one: sum(p.informative for p in mine if p.slice == one), default=USUAL)


def _pool(table: pd.DataFrame) -> float:
    """Returns the number of facts that there are to infuse; inf if it is not known.

    A run without infusion is asked about all of them. In the table of another trainer it may have any K: a smaller one
    than was infused says nothing.
    """
    if "infused_facts" not in table:
        return math.inf
    base = table["frequency"] == 0
    there, most = table.loc[base, "infused_facts"].max(), table.loc[~base, "infused_facts"].max()
    return float(there) if there >= most else math.inf


def group_of(points: Sequence[Transition]) -> str:
    """Returns the group whose collapse is predicted: the first one with a collapse, background last."""
    found = {p.group for p in points if p.kind == "collapse" and p.informative}
    return "background" if "background" in found and "infused" not in found else "infused"


def _seeds(rows: pd.DataFrame) -> dict[tuple[int, int], dict[float, set[int]]]:
    """Returns the seeds trained at each dose of each (N, D)."""
    found: dict[tuple[int, int], dict[float, set[int]]] = {}
    for params, tokens, dose, seed in rows[["params", "tokens", "dose", "seed"]].itertuples(index=False):
        found.setdefault((int(params), int(tokens)), {}).setdefault(float(dose), set()).add(int(seed))
    return found


def _cell(curve: Curve, point: Transition, settings: AnalysisConfig, seeds: dict[float, set[int]]) -> _Cell:
    source = None
    if point.informative and len(curve.dose) >= FEWEST_LEVELS and settings.criterion != "half_margin":
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


def _gain(
    cells: dict[tuple[int, int], _Cell],
    step: _Step,
    law: Law,
    params: float,
    tokens: float,
    settings: AnalysisConfig,
) -> tuple[float, float]:
    """Returns the gain of a run, and the variance of log F* that its cell is expected to have with it."""
    own = step.params, step.tokens
    expected = _expected(cells[own], step.dose, law, settings)
    variances_now = {cell: c.variance for cell, c in cells.items()}
    variances_then = variances_now | {own: expected}
    now = prediction_variance(law, [(*cell, v) for cell, v in variances_now.items()], params, tokens)
    then = prediction_variance(law, [(*cell, v) for cell, v in variances_then.items()], params, tokens)
    return 1 - then / now, expected


def _expected(cell: _Cell, dose: float, law: Law, settings: AnalysisConfig) -> float:
    """Returns the expected variance of log F* of a cell with one more run."""
    point, curve = cell.point, cell.curve
    if point.status in (RIGHT_CENSORED, INCONCLUSIVE) and point.low:
        mean, error = law.at(curve.params, curve.tokens)
        total = math.hypot(error, law.sigma)
        # Probability that the new level is beyond F*, so that the cell gets a bracket of this width.
        reached = 0.5 * (1 + math.erf((math.log(dose) - 0.2 - mean) / (total * math.sqrt(2))))
        return math.log(dose / point.low) ** 2 / 12 / max(reached, 1e-3)
    if settings.criterion == "half_margin" and point.informative:
        return cell.variance / 4  # margins are not simulated: the run halves a bracket
    if cell.source is None or not point.value:
        return cell.variance
    generator = np.random.default_rng([settings.seed, curve.params % (1 << 32)])
    tau = math.log(point.value) + math.sqrt(cell.variance) * generator.standard_normal(_DRAWS)
    rates = _drawn(generator, cell.source, tau)
    now = _expected_variance(cell.source, rates, settings)
    extended = _extended(cell.source, dose)
    then = _expected_variance(extended, _with_drawn(generator, extended, tau, cell.source, rates), settings)
    # A run cannot make the estimate worse: a ratio above one is noise of the few simulated curves.
    return cell.variance * min(then / now, 1.0)


def _drawn(generator: np.random.Generator, source: SimulatedCell, tau: Array) -> Array:
    """Draws rates [R, L] of curves with the hinge at each ``tau``."""
    return draw(generator, source.rates(tau), source.seen.weight, source.seen.freedom, len(tau))


def _with_drawn(
    generator: np.random.Generator, extended: SimulatedCell, tau: Array, source: SimulatedCell, rates: Array
) -> Array:
    """Adds the extended source's further run to the curves ``rates`` of ``source``; the other runs stay as they are."""
    before = np.zeros(len(extended.x))
    levels = np.searchsorted(extended.x, source.x - 1e-9)
    before[levels] = source.seen.weight
    after = extended.seen.weight
    there = np.zeros((len(rates), len(after)))
    there[:, levels] = rates
    added = np.maximum(after - before, 1e-9)
    more = draw(generator, extended.rates(tau), added, extended.seen.freedom, len(tau))
    return np.where(after > before + 1e-9, (there * before + more * added) / after, there)


def _expected_variance(source: SimulatedCell, rates: Array, settings: AnalysisConfig) -> float:
    """Returns the mean variance of log F* implied by the intervals of simulated curves."""
    lower, upper, variance = measure(replace(source, critical=-1.0), rates, settings, Precision(2, 6))
    closed = np.isfinite(lower) & np.isfinite(upper)
    width = np.where(closed, np.where(closed, upper, 0.0) - np.where(closed, lower, 0.0), 1.5)
    return float(np.mean(np.where(closed & (variance > 0), variance, width**2 / 12)))


def _extended(source: SimulatedCell, dose: float) -> SimulatedCell:
    """Returns the source with one more run: another seed of one of its levels, or a new level."""
    x, runs = math.log(dose), source.runs
    at = int(np.searchsorted(source.x, x - 1e-9))
    known = at < len(source.x) and abs(source.x[at] - x) < 1e-9
    per_run = float((source.facts / runs).max())
    seen = source.seen
    if known:
        facts = source.facts.copy()
        facts[at] += per_run
        runs = runs + (np.arange(len(runs)) == at)
        return replace(source, facts=facts, runs=runs, seen=replace(seen, weight=source.dispersion.effective(facts)))
    facts = np.insert(source.facts, at, per_run)
    rate = np.insert(seen.rate, at, seen.rate[min(at, len(seen.rate) - 1)])
    return replace(
        source,
        x=np.insert(source.x, at, x),
        facts=facts,
        runs=np.insert(runs, at, 1),
        seen=replace(seen, rate=rate, weight=source.dispersion.effective(facts)),
        kappa=source.kappa + (at < source.kappa),
    )


def _with_run(cell: _Cell, step: _Step, variance: float) -> _Cell:
    """Returns the cell as if the run had given the expected result."""
    dose = step.dose
    seeds = cell.seeds | {dose: cell.seeds.get(dose, set()) | {step.seed}}
    source = None if cell.source is None else _extended(cell.source, dose)
    curve = cell.curve
    levels = np.unique(np.append(curve.dose, dose))
    if len(levels) > len(curve.dose):
        at = int(np.searchsorted(curve.dose, dose))
        # Only the levels are used from here on; the rates of a run that was not trained are unknown.
        nothing = (np.array([np.nan]), np.array([0.0]))
        curve = replace(
            curve,
            dose=levels,
            rate=np.insert(curve.rate, at, np.nan),
            chance=np.insert(curve.chance, at, np.nan),
            seed_rates=(*curve.seed_rates[:at], nothing[0], *curve.seed_rates[at:]),
            seed_facts=(*curve.seed_facts[:at], nothing[1], *curve.seed_facts[at:]),
            ratio=np.insert(curve.ratio, at, np.nan),
            loss=np.insert(curve.loss, at, np.nan),
            seed_losses=(*curve.seed_losses[:at], {}, *curve.seed_losses[at:]),
        )
    return _Cell(curve, cell.point, source, variance, seeds)


def _bisect(cells: Sequence[_Cell], largest_ratio: float, pool: float) -> tuple[_Step, int] | None:
    """Returns the run with the largest width per cost, in a bracket or beyond a censored end, and the cell's index."""
    best: tuple[tuple[float, float], tuple[_Step, int]] | None = None
    for index, cell in enumerate(cells):
        point, levels = cell.point, cell.curve.dose[cell.curve.dose > 0]
        symbol = cell.curve.symbol
        if not len(levels):
            continue
        if point.informative and point.high:
            low = max(point.low or 0.0, float(levels[0]))
            inner = [(a, b) for a, b in pairwise(levels) if b > low and a < point.high]
            if not inner:
                continue
            a, b = max(inner, key=lambda pair: pair[1] / pair[0])
            dose, width = float(round(math.sqrt(a * b))), math.log(b / a)
            if dose < _NEAR * a or b < _NEAR * dose:
                continue
            reason = f"halves a bracket that may hold {symbol}*"
        elif point.status == LEFT_CENSORED:
            dose, width = float(max(round(levels[0] / _STEP), 1)), 1.0
            if levels[0] < _NEAR * dose:
                continue
            reason = "below the censored end"
        else:
            dose, width = _capped(cell.curve, float(levels[-1]) * _STEP, largest_ratio, pool), 1.0
            if dose < _NEAR * levels[-1]:
                continue
            reason = f"beyond the largest {symbol}"
        # Halving a bracket in a model of four times the cost is only worth it if it is four times as wide.
        rank = (width / cell.flops, width)
        if best is None or rank > best[0]:
            best = rank, (_step(cell, dose, reason), index)
    return best[1] if best else None


def _step(cell: _Cell, dose: float, reason: str) -> _Step:
    taken = cell.seeds.get(dose, set())
    seed = next(number for number in numbers() if number not in taken)
    return _Step(cell.curve.params, cell.curve.tokens, dose, seed, cell.flops, reason)


def _proposal(step: _Step, curve: Curve, gain: float | None) -> Proposal:
    """Returns a step along the slice of its curve as a run: its F, and its K where that varies."""
    one = curve.slice
    if one.axis == FREQUENCY:
        frequency, facts = step.dose, None if one.held is None else round(one.held)
    else:
        frequency, facts = _frequency_at(curve, step.dose), round(step.dose)
    return Proposal(
        step.params,
        step.tokens,
        frequency,
        step.seed,
        step.flops,
        gain,
        step.reason,
        facts=facts,
        infusion_ratio=one.held if one.held_by == RATIO else None,
    )


def _frequency_at(curve: Curve, facts: float) -> float:
    """Returns F at K along the number of facts: the held one, or what the held ratio leaves each fact."""
    one = curve.slice
    if one.held is not None and one.held_by != RATIO:
        return one.held
    exposures = amount_at(curve, curve.exposures, facts, jumps=True)
    return math.nan if exposures is None else exposures / facts


def _capped(curve: Curve, dose: float, largest_ratio: float, pool: float) -> float:
    """Returns ``dose``, or the largest whole one within ``largest_ratio`` and the number of facts that there are.

    The ratio limits it only if the curve has infusion ratios, which grow with the dose.
    """
    if curve.slice.axis != FREQUENCY:
        dose = min(dose, pool)
    known = np.isfinite(curve.ratio) & (curve.dose > 0)
    if known.any() and curve.slice.held_by != RATIO:
        cost = float(np.max(curve.ratio[known] / curve.dose[known]))
        if cost > 0:
            dose = min(dose, math.floor(largest_ratio / cost))
    return float(round(dose))
