"""Simulated studies through the product's own functions, and how often their intervals hold the truth.

Every study is simulated from a known truth (`analysis.simulate`): curves are drawn, collapse points found (test, hinge,
interval, censoring), the law fitted, its intervals compared with the truth. For speed the chain is run on all studies
of a design at once; the critical values of the fall test, the profile cut-off and the level of the errors are those of
the true curve instead of each simulated one's. `nested` goes through the product's own calls with every bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from megatron_kis.analysis.criteria import HingeCollapse, find_transitions
from megatron_kis.analysis.criteria.counts import Evidence, draw
from megatron_kis.analysis.criteria.hinge_fit import COARSE, fit_hinges
from megatron_kis.analysis.criteria.tests import cut_off
from megatron_kis.analysis.criteria.unimodal import critical_value, fall_test
from megatron_kis.analysis.law.bootstrap import SimulatedCell, bootstrap_law, measure, rescaled
from megatron_kis.analysis.law.bootstrap_points import bootstrap_points
from megatron_kis.analysis.law.candidates import SIZE_AND_BUDGET, design
from megatron_kis.analysis.law.fit import LawRefused, fit_law
from megatron_kis.analysis.law.predict import predict
from megatron_kis.analysis.law.regression import fit, half_width
from megatron_kis.analysis.runs.curves import Array, Dispersion, curves
from megatron_kis.analysis.simulate import Truth, simulate_curve, simulate_table
from megatron_kis.config.analysis import AnalysisConfig

Bools = npt.NDArray[np.bool_]

SETTINGS = AnalysisConfig(criterion="hinge", resamples=199)
REFERENCE = (100_000_000, 2_000_000_000)
_FREEDOM = 40.0
DESIGNS = {6: (3, 2), 9: (3, 3), 12: (4, 3)}  # cells: sizes x budgets
TRUTH = Truth(size_exponent=0.3, budget_exponent=0.2, facts=200)


@dataclass(frozen=True)
class Chain:
    """Coverage of a whole chain, from counts to predictions."""

    cells: int
    censored: float
    noise: str
    simulations: int
    refused: int
    """Studies in addition to them that could not carry the law."""
    seen_censored: float
    """Share of cells that were found censored."""
    inconclusive: float
    """Share of cells that were found inconclusive, and left out."""
    tau: float
    b: float
    c: float
    at_4: float
    at_10: float
    bias_in_errors: float
    """|bias of b| in units of its median standard error."""
    dropped_bias: float
    """The same where censored cells are dropped."""
    width: float
    """Median width of log of the prediction interval at 4 times the largest N."""


def chain(
    cells: int,
    censored: float,
    noise: str,
    simulations: int,
    *,
    seed: int = 0,
    truth: Truth | None = None,
    levels: int = 12,
    seeds: int = 3,
) -> Chain:
    """Simulates studies of ``cells`` cells whose grid ends where ``censored`` of them lie beyond it.

    As many as it takes for ``simulations`` of them to carry the law.
    """
    generator = np.random.default_rng([seed, cells, round(100 * censored), len(noise)])
    truth = replace(truth or TRUTH, noise=noise)
    sizes, budgets = DESIGNS[cells]
    grid_n = [int(25e6 * 4**i) for i in range(sizes)]
    grid_d = [int(1e9 * 4**i) for i in range(budgets)]
    where = [(n, d) for n in grid_n for d in grid_d]
    means = np.log([truth.collapse_point(*place) for place in where])
    log_n, log_d = np.log(np.array(where, dtype=float)).T
    top = np.quantile(means, 1 - censored) + (0.0 if censored else 1.0)
    x = np.concatenate([[-np.inf], np.linspace(means.min() - 1.6, top, levels - 1)])
    facts = np.full((levels, seeds), float(truth.facts))
    simulated = [true_cell(truth, x, facts, math.exp(mean), generator) for mean in means]
    centre = np.array([log_n.mean(), log_d.mean()])
    design_ = design(SIZE_AND_BUDGET, centre, log_n, log_d)

    rounds: list[Array] = []  # of [lower, upper, variance, tau], each [4, simulations, cells]
    usable = np.zeros(0, dtype=bool)
    while usable.sum() < simulations:
        tau = means + np.array([truth.scatters(generator, len(where)) for _ in range(simulations)])
        data = np.empty((3, simulations, len(where)))
        for index, cell in enumerate(simulated):
            p = np.array([truth.rates(np.exp(x), math.exp(t)) for t in tau[:, index]])
            drawn = draw(generator, p, cell.seen.weight, np.inf, simulations)
            data[:, :, index] = seen_cells(cell, drawn, tau[:, index])
        rounds.append(np.concatenate([data, tau[None]]))
        usable = np.concatenate([usable, _identified(design_, np.isfinite(data[0]) & np.isfinite(data[1]))])
        assert usable.any(), "no study could carry the law"
    last = int(np.flatnonzero(usable)[simulations - 1]) + 1
    lower, upper, variance, tau = np.concatenate(rounds, axis=1)[:, :last]
    usable, closed = usable[:last], np.isfinite(lower) & np.isfinite(upper)
    found = fit(design_, lower[usable], upper[usable], variance[usable])

    def covered(row: Array, value: Array | float, sigma: Array | float = 0.0) -> tuple[float, Array]:
        error = np.sqrt(np.einsum("i,rij,j->r", row, found.covariance, row))
        half = half_width(error, sigma, found.freedom, found.scatter_freedom)
        return float((np.abs(found.beta @ row - value) <= half).mean()), 2 * half

    at: dict[int, float] = {}
    width = math.nan
    for factor in (4, 10):
        n = grid_n[-1] * factor
        row = design(SIZE_AND_BUDGET, centre, np.log([n]), np.log([grid_d[-1]]))[0]
        new = math.log(truth.collapse_point(n, grid_d[-1])) + truth.scatters(generator, int(usable.sum()))
        at[factor], widths = covered(row, new, found.sigma)
        width = float(np.median(widths)) if factor == 4 else width
    slope_error = float(np.median(np.sqrt(found.covariance[:, 1, 1])))
    tau_cover = _tau_coverage(lower, upper, variance, closed, tau)
    return Chain(
        cells=cells,
        censored=censored,
        noise=noise,
        simulations=simulations,
        refused=int((~usable).sum()),
        seen_censored=float((np.isfinite(lower) != np.isfinite(upper)).mean()),
        inconclusive=float((np.isinf(lower) & np.isinf(upper)).mean()),
        tau=tau_cover,
        b=covered(np.array([0.0, 1, 0]), truth.size_exponent)[0],
        c=covered(np.array([0.0, 0, 1]), truth.budget_exponent)[0],
        at_4=at[4],
        at_10=at[10],
        bias_in_errors=abs(float(np.mean(found.beta[:, 1])) - truth.size_exponent) / slope_error,
        dropped_bias=abs(_dropped(design_, lower, upper, closed) - truth.size_exponent) / slope_error,
        width=width,
    )


@dataclass(frozen=True)
class EndToEnd:
    """Fitted on at most 1B parameters, asked about 7B and 70B."""

    curvature: float
    simulations: int
    at_7b: float
    at_70b: float
    error_7b: float
    """Median |log ratio|."""
    error_70b: float
    flagged: float
    """Share of studies whose lack-of-fit test rejects the straight law at 5%."""


def end_to_end(simulations: int, curvature: float, *, seed: int = 0) -> EndToEnd:
    """Six sizes from 1M to 1B at one budget, 12 levels, 3 seeds; then models too large for a sweep."""
    generator = np.random.default_rng([seed, 77, round(1e4 * abs(curvature))])
    truth = Truth(size_exponent=0.3, facts=200, reference=(30_000_000, 2_000_000_000), curvature=curvature)
    sizes = np.geomspace(1e6, 1e9, 6)
    means = np.log([truth.collapse_point(n, truth.reference[1]) for n in sizes])
    tau = means + np.array([truth.scatters(generator, len(sizes)) for _ in range(simulations)])
    facts = np.full((12, 3), float(truth.facts))
    data = np.empty((3, simulations, len(sizes)))
    for index, mean in enumerate(means):
        x = np.concatenate([[-np.inf], np.linspace(mean - 1.6, mean + 1.0, 11)])
        cell = true_cell(truth, x, facts, math.exp(mean), generator)
        p = np.array([truth.rates(np.exp(x), math.exp(t)) for t in tau[:, index]])
        data[:, :, index] = seen_cells(cell, draw(generator, p, cell.seen.weight, np.inf, simulations), tau[:, index])
    lower, upper, variance = data
    log_n = np.log(sizes)
    straight = np.column_stack([np.ones(len(sizes)), log_n - log_n.mean()])
    bend = (log_n - log_n.mean()) ** 2
    bent = np.column_stack([straight, bend - bend.mean()])
    closed = np.isfinite(lower) & np.isfinite(upper)
    usable = closed.sum(axis=1) > 3
    lower, upper, variance = lower[usable], upper[usable], variance[usable]
    found, curved = fit(straight, lower, upper, variance), fit(bent, lower, upper, variance)
    covered, errors = [], []
    for n in (7e9, 70e9):
        row = np.array([1.0, math.log(n) - log_n.mean()])
        new = math.log(truth.collapse_point(n, truth.reference[1])) + truth.scatters(generator, int(usable.sum()))
        error = np.sqrt(np.einsum("i,rij,j->r", row, found.covariance, row))
        miss = np.abs(found.beta @ row - new)
        covered.append(float((miss <= half_width(error, found.sigma, found.freedom, found.scatter_freedom)).mean()))
        errors.append(float(np.median(miss)))
    z = np.abs(curved.beta[:, 2]) / np.sqrt(curved.covariance[:, 2, 2])
    flagged = float(np.mean(2 * stats.t.sf(z, np.maximum(curved.freedom, 1e-3)) < 0.05))
    (at_7b, at_70b), (error_7b, error_70b) = covered, errors
    return EndToEnd(curvature, simulations, at_7b, at_70b, error_7b, error_70b, flagged)


@dataclass(frozen=True)
class Whole:
    """A design whose studies go through the product's own calls, every bootstrap included."""

    name: str
    sizes: int
    budgets: int = 1
    seeds: int = 3
    noise: str = "gaussian"
    beyond: float = 0.0
    """Share of cells whose F* lies beyond the largest F."""

    @property
    def cells(self) -> list[tuple[int, int]]:
        """Sizes two apart, budgets four apart."""
        return [(int(25e6 * 2**i), int(2e9 * 4**j)) for i in range(self.sizes) for j in range(self.budgets)]


WHOLE = (
    Whole("6 sizes", 6),
    Whole("6 sizes, one seed", 6, seeds=1),
    Whole("6 sizes, t4 scatter", 6, noise="t4"),
    Whole("8 sizes, 25% beyond the grid", 8, beyond=0.25),
    Whole("4 sizes x 3 budgets", 4, budgets=3),
)


def nested(design_: Whole, simulations: int, *, seed: int = 0, resamples: int = 199) -> dict[str, Any]:
    """Whole studies of one design: coverage and log widths of the intervals of a new model at 4 times the largest N.

    ``used``: what `predict` says of a straight law (Student's t); ``bent``: of one that may bend; ``bootstrap``: the
    check of the first by the critical values of the two-stage bootstrap; ``points``: the same check with the curves
    thrown away; ``mean``: the interval of the law's mean, which may bend.
    """
    generator = np.random.default_rng([seed, 5, design_.sizes, design_.budgets, design_.seeds, len(design_.noise)])
    truth = Truth(
        size_exponent=0.3, budget_exponent=0.2 if design_.budgets > 1 else 0.0, facts=200, noise=design_.noise
    )
    cells = design_.cells
    means = [truth.collapse_point(*cell) for cell in cells]
    top = float(np.quantile(means, 1 - design_.beyond)) if design_.beyond else 2.7 * max(means)
    grid = [0.0, *np.geomspace(min(means) / 5, top, 9).round()]
    target, budget = 4 * cells[-1][0], cells[-1][1]
    hits: dict[str, list[bool]] = {name: [] for name in ("used", "bent", "bootstrap", "points", "mean")}
    widths: dict[str, list[float]] = {name: [] for name in hits}
    for _ in range(simulations):
        table, _ = simulate_table(truth, cells, grid, design_.seeds, generator, groups=("background",))
        centre = math.log(truth.collapse_point(target, budget))
        new = centre + float(truth.scatters(generator, 1)[0])
        points = find_transitions(table, SETTINGS)
        try:
            name = "N" if design_.budgets == 1 else "N and D"
            law = fit_law(points, "collapse", "background", law=name, compare_laws=False)
        except LawRefused:
            continue
        drawn = bootstrap_law(law, curves(table), points, SETTINGS, resamples=resamples)
        told = predict(drawn, target, budget)
        alone = predict(bootstrap_points(law, points, SETTINGS, resamples=resamples), target, budget)
        intervals = {
            "used": told.straight_interval or told.prediction_interval,
            "bent": told.prediction_interval,
            "bootstrap": told.bootstrap_interval or told.prediction_interval,
            "points": alone.bootstrap_interval or alone.prediction_interval,
            "mean": told.confidence_interval,
        }
        ends = {name: (math.log(low), math.log(high)) for name, (low, high) in intervals.items()}
        for name, (low, high) in ends.items():
            hits[name].append(low <= (centre if name == "mean" else new) <= high)
            widths[name].append(high - low)
    return {
        "studies": len(hits["used"]),
        "refused": simulations - len(hits["used"]),
        "covered": {name: sum(found) for name, found in hits.items()},
        "width": {name: float(np.mean(w)) for name, w in widths.items()},
    }


def true_cell(truth: Truth, x: Array, facts: Array, collapse: float, generator: np.random.Generator) -> SimulatedCell:
    """Returns a cell with the criterion's critical value and cut-off for its true curve."""
    p = truth.rates(np.exp(x), collapse)
    total = facts.sum(axis=1)
    # Several curves with several seeds know it about as well as this.
    scale = 1 + (truth.facts - 1) * truth.correlation
    dispersion = Dispersion(scale, 0.0, _FREEDOM, "the truth")
    seen = Evidence(p, dispersion.effective(total, np.full(len(total), facts.shape[1])), _FREEDOM)
    _, null = fall_test(seen, 499, generator)
    again = draw(generator, p, seen.weight, _FREEDOM, 299)
    fits = fit_hinges(x, again, seen.weight, truth.chance, COARSE)
    ratios = [float(np.interp(math.log(collapse), fits.taus, row)) for row in fits.ratio]
    return SimulatedCell(
        x=x,
        seen=seen,
        chance=truth.chance,
        kappa=0,
        plateau=0.0,
        gamma=truth.steepness,
        facts=total,
        runs=(facts > 0).sum(axis=1),
        dispersion=dispersion,
        critical=critical_value(null, SETTINGS.alpha),
        cut=max(float(np.quantile(ratios, 0.95)), cut_off(0.95, _FREEDOM)),
    )


def seen_cells(cell: SimulatedCell, rates: Array, tau: Array) -> tuple[Array, Array, Array]:
    """Returns (lower, upper, variance) of the cells' log F*, each [R]; variances as large as the errors."""
    lower, upper, implied = measure(cell, rates, SETTINGS)
    return lower, upper, rescaled(implied, lower, tau)


def _identified(design_: Array, closed: Bools) -> Bools:
    return np.array(
        [row.sum() > design_.shape[1] and np.linalg.matrix_rank(design_[row]) == design_.shape[1] for row in closed]
    )


def _tau_coverage(lower: Array, upper: Array, variance: Array, closed: Bools, tau: Array) -> float:
    half = np.where(variance > 0, 1.959964 * np.sqrt(variance), 0.0)
    inside = (lower - half <= tau + 1e-9) & (tau <= upper + half + 1e-9)
    return float(inside[closed].mean())


def _dropped(design_: Array, lower: Array, upper: Array, closed: Bools) -> float:
    """Mean slope of least squares on the closed cells alone."""
    slopes = []
    for low, high, keep in zip(lower, upper, closed, strict=True):
        if keep.sum() > design_.shape[1] and np.linalg.matrix_rank(design_[keep]) == design_.shape[1]:
            slopes.append(np.linalg.lstsq(design_[keep], (low[keep] + high[keep]) / 2, rcond=None)[0][1])
    return float(np.mean(slopes))


def tau_coverage(simulations: int, *, seed: int = 0) -> Iterator[dict[str, Any]]:
    """The criterion as users call it, calibration of every curve included."""
    designs = ((120, 3, 6.0, 10), (60, 1, 6.0, 8), (300, 3, 20.0, 10), (120, 2, 3.0, 10))
    for facts, seeds, steepness, levels in designs:
        generator = np.random.default_rng([seed, facts, seeds, levels])
        truth = Truth(facts=facts, steepness=steepness)
        grid = [0.0, *np.geomspace(40, 640, levels - 1).round()]
        statuses: dict[str, int] = {}
        inside, widths = 0, []
        for _ in range(simulations):
            collapse = 400 * math.exp(generator.uniform(-0.5, 0.2))
            curve = simulate_curve(truth, REFERENCE, grid, seeds, generator, collapse=collapse)
            point = HingeCollapse().find(curve, SETTINGS)
            statuses[point.status] = statuses.get(point.status, 0) + 1
            if point.informative and point.high is not None:
                inside += (point.low or 0.0) <= collapse <= point.high
                widths.append(math.log(point.high / (point.low or grid[1])))
        n = statuses.get("collapsed", 0)
        yield {
            "facts": facts,
            "seeds": seeds,
            "steepness": steepness,
            "levels": levels,
            "simulations": simulations,
            "collapsed": n,
            "covered": inside / max(n, 1),
            "width": float(np.median(widths)) if widths else math.nan,
        }
