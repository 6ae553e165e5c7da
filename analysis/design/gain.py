"""How far one more run is expected to narrow a prediction.

Curves with that run are drawn from its cell's fitted hinge, and tau is found again: the variance of log F* shrinks as
that of tau does, and enters the law's prediction variance at the target. Under ``retention`` and ``tolerance_rule`` the
hinge stands for the curve too, with its corner at F*; under ``half_margin`` the run is taken to halve a bracket. The
law is that of the points, also where the study's own one rests on all curves; it may bend as that one may
(`AnalysisConfig.bend`), so that what no run of these sizes can tell counts too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy

from megatron_kis.analysis.criteria.counts import draw
from megatron_kis.analysis.criteria.hinge import FEWEST_LEVELS
from megatron_kis.analysis.criteria.hinge_fit import Precision
from megatron_kis.analysis.law.bootstrap import SimulatedCell, measure, simulated_cell
from megatron_kis.analysis.law.candidates import SIZE, SIZE_AND_BUDGET, design
from megatron_kis.analysis.law.law import Law
from megatron_kis.analysis.runs.curves import Array, Curve
from megatron_kis.analysis.runs.transitions import INCONCLUSIVE, RIGHT_CENSORED, Transition
from megatron_kis.config.analysis import AnalysisConfig

_DRAWS = 64  # number of simulated curves over which the gain of a run is averaged


@dataclass(frozen=True)
class Step:
    """A run to train, by its dose."""

    params: int
    tokens: int
    dose: float
    """F or K: what the axis of its slice is."""
    seed: int
    flops: float
    """Cost of the run, 6 N D."""
    reason: str


@dataclass
class Cell:
    """What is known of an (N, D), and is expected with the runs proposed so far."""

    curve: Curve
    """Its curve; levels of proposed runs have no rates."""
    point: Transition
    """Its collapse point, without the proposed runs."""
    source: SimulatedCell | None
    """Source of simulated curves; None where nothing is simulated."""
    variance: float
    """Variance of log F*, with the runs proposed so far."""
    seeds: dict[float, set[int]]
    """Seeds of each level, including those proposed so far."""

    @property
    def flops(self) -> float:
        """Cost of a run, 6 N D."""
        return 6.0 * self.curve.params * self.curve.tokens


def cell_of(curve: Curve, point: Transition, settings: AnalysisConfig, seeds: dict[float, set[int]]) -> Cell:
    """Returns what is known of the (N, D) of a curve; ``seeds`` are those of its levels."""
    source = None
    if point.informative and len(curve.dose) >= FEWEST_LEVELS and settings.criterion != "half_margin":
        source = simulated_cell(curve, point, point.steepness or 4.0, settings, 99)
    error = None
    if source is not None and settings.criterion == "hinge" and point.interval == "profile":
        error = source.error  # of tau, which is F* by this criterion alone
    return Cell(curve, point, source, error**2 if error else variance_of(point), seeds)


def variance_of(point: Transition) -> float:
    """Returns the variance of log F* implied by its interval: normal for a profile interval, uniform for a bracket."""
    if not point.informative or not point.high or not point.value:
        return math.inf
    low = math.log(point.low) if point.low else 2 * math.log(point.value) - math.log(point.high)
    width = math.log(point.high) - low
    deviations = 2 * float(scipy.special.ndtri(0.5 + point.confidence / 2))
    return width**2 / 12 if point.interval == "bracket" else (width / deviations) ** 2


@dataclass(frozen=True)
class Variances:
    """Parts of the variance of log F* of a new model."""

    points: float
    """Of the law's mean, due to the points."""
    prior: float
    """Of the law's mean, due to a bend that the points leave open."""
    scatter: float
    """Of models around the law."""

    @property
    def total(self) -> float:
        """Their sum."""
        return self.points + self.prior + self.scatter


def variances(
    law: Law, cells: Sequence[tuple[int, int, float]], params: float, tokens: float, bend: float = 0.0
) -> Variances:
    """Returns the variance of log F* of a new model at the target.

    Args:
        law: the fitted law.
        cells: (N, D, variance of log F*) of each cell; infinite for censored ones.
        params: N of the target.
        tokens: D of the target.
        bend: standard deviation of the law's curvature in log N before the data (`law.bend`); 0: a straight law.
    """
    known = [(n, d, v) for n, d, v in cells if math.isfinite(v)]
    log_n, log_d = np.log([[n, d] for n, d, _ in known]).T
    form = law.candidate if not law.candidate.offset else (SIZE_AND_BUDGET if law.in_tokens else SIZE)
    centre = form.covariates(log_n, log_d).mean(axis=0)
    x = design(form, centre, log_n, log_d)
    row = design(form, centre, np.log([params]), np.log([tokens]))[0]
    sigma = max(law.sigma, 0.02)
    weight = 1 / (sigma**2 + np.array([v for _, _, v in known]))
    if bend > 0:
        square = (log_n - log_n.mean()) ** 2
        projection = np.linalg.lstsq(x, square, rcond=None)[0]
        row = np.append(row, (math.log(params) - log_n.mean()) ** 2 - row @ projection)
        x = np.column_stack([x, square - x @ projection])
    before = np.zeros(len(row))
    before[-1] = bend**-2.0 if bend > 0 else 0.0
    moved = np.linalg.solve((x * weight[:, None]).T @ x + np.diag(before), row)
    prior = float(before[-1] * moved[-1] ** 2)
    return Variances(max(float(row @ moved) - prior, 0.0), prior, sigma**2)


def gain_of(
    cells: dict[tuple[int, int], Cell],
    step: Step,
    law: Law,
    params: float,
    tokens: float,
    settings: AnalysisConfig,
) -> tuple[float, float]:
    """Returns the gain of a run, and the variance of log F* that its cell is expected to have with it.

    The gain is the expected relative fall of the prediction variance at the target.

    Args:
        cells: what is known by (N, D).
        step: the run.
        law: the law of the points so far.
        params: N of the target.
        tokens: D of the target.
        settings: the declared settings of the analysis.
    """
    own = step.params, step.tokens
    expected = _expected(cells[own], step.dose, law, settings)
    variances_now = {cell: c.variance for cell, c in cells.items()}
    variances_then = variances_now | {own: expected}
    now, then = (
        variances(law, [(*cell, v) for cell, v in each.items()], params, tokens, settings.bend).total
        for each in (variances_now, variances_then)
    )
    return 1 - then / now, expected


def _expected(cell: Cell, dose: float, law: Law, settings: AnalysisConfig) -> float:
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
        again = replace(seen, weight=source.dispersion.effective(facts, runs), single=runs == 1)
        return replace(source, facts=facts, runs=runs, seen=again)
    facts = np.insert(source.facts, at, per_run)
    rate, runs = np.insert(seen.rate, at, seen.rate[min(at, len(seen.rate) - 1)]), np.insert(runs, at, 1)
    return replace(
        source,
        x=np.insert(source.x, at, x),
        facts=facts,
        runs=runs,
        seen=replace(seen, rate=rate, weight=source.dispersion.effective(facts, runs), single=runs == 1),
        kappa=source.kappa + (at < source.kappa),
    )


def with_run(cell: Cell, step: Step, variance: float) -> Cell:
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
    return Cell(curve, cell.point, source, variance, seeds)
