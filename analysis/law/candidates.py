"""The candidate laws: log F* = a + b log N + c log D with b and c free, tied or absent, each also with an offset.

Where several slices of one axis are fitted together, the value H that each holds (K of curves along F, and F or the
ratio of curves along K) may have a term too: log F* = a + b log N + c log D + d log H.

An offset law is F* = F_inf + exp(a) N^b D^c: F* stays above the floor F_inf, however small the model is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from megatron_kis.analysis.criteria.remembered import remembered
from megatron_kis.analysis.law.bend import Bend, fit_bend
from megatron_kis.analysis.law.regression import SMALLEST_SIGMA, Fit, fit, log_likelihood, weights
from megatron_kis.analysis.runs.curves import Array
from megatron_kis.analysis.runs.slices import Slice
from megatron_kis.common.errors import InputError, nearest


@dataclass(frozen=True)
class Candidate:
    """The form of a law."""

    name: str
    formula: str
    rows: tuple[tuple[float, ...], ...]
    """Each covariate as a combination of (log N, log D) or (log N, log D, log H)."""
    offset: bool = False
    """Whether F* has a floor F_inf."""

    @property
    def size(self) -> int:
        """Number of coefficients, without sigma."""
        return 1 + len(self.rows) + self.offset

    @property
    def in_held(self) -> bool:
        """Whether it has a term in the held value."""
        return any(len(row) > _PLAIN and row[_PLAIN] for row in self.rows)

    def covariates(self, log_n: Array, log_d: Array, log_h: Array | None = None) -> Array:
        """Returns the covariates [n, len(rows)] of n cells; ``log_h`` is needed by a law with a term in H."""
        columns = [log_n, log_d]
        width = _PLAIN
        if self.in_held:
            assert log_h is not None
            columns.append(log_h)
            width += 1
        weights = np.array([(*row, 0.0)[:width] for row in self.rows]).reshape(-1, width)
        covariates: Array = np.column_stack(columns) @ weights.T
        return covariates

    def written(self, one: Slice) -> str:
        """Returns the formula with the symbols of a slice: F* or K*, and K, F or the ratio for H."""
        return self.formula.replace("F", one.symbol).replace("H", one.held_symbol)


_SPARE = 2  # cells beyond the parameters, without which AICc is all correction
_SHORT = 0.5  # by which an offset law's likelihood may fall short of the plain law's, which it contains
_FITS = 256  # that are remembered
_PLAIN = 2  # terms of rows without the held value

AUTO = "auto"
"""Name that leaves the choice of the law to the data."""
CONSTANT = Candidate("constant", "log F* = a", ())
SIZE = Candidate("N", "log F* = a + b log N", ((1, 0),))
SIZE_AND_BUDGET = Candidate("N and D", "log F* = a + b log N + c log D", ((1, 0), (0, 1)))
BUDGET_PER_SIZE = Candidate("D/N", "log F* = a + c log(D/N)", ((-1, 1),))
COMPUTE = Candidate("C", "log F* = a + b log(6 N D)", ((1, 1),))
LINEAR = (CONSTANT, SIZE, SIZE_AND_BUDGET, BUDGET_PER_SIZE, COMPUTE)
SIZE_AND_HELD = Candidate("N and held", "log F* = a + b log N + d log H", ((1, 0, 0), (0, 0, 1)))
ALL = Candidate("N, D and held", "log F* = a + b log N + c log D + d log H", ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
HELD = (SIZE_AND_HELD, ALL)
"""Candidates for several slices together."""


def with_offset(law: Candidate) -> Candidate:
    """Returns the same law with an offset."""
    right = law.formula.removeprefix("log F* = ")
    return replace(law, name=f"{law.name} + offset", formula=f"F* = F_inf + exp({right})", offset=True)


CANDIDATES = {law.name: law for law in (*LINEAR, *(with_offset(law) for law in LINEAR[1:]), *HELD)}

_WITH_HELD = {SIZE.name: SIZE_AND_HELD, SIZE_AND_BUDGET.name: ALL}
_WITHOUT_HELD = {SIZE_AND_HELD.name: SIZE, ALL.name: SIZE_AND_BUDGET}


def check_law(name: str, where: str = "law") -> None:
    """Refuses a name that is neither ``AUTO`` nor a candidate's.

    Raises:
        InputError: an unknown name.
    """
    if name != AUTO and name not in CANDIDATES:
        raise InputError(f"unknown law {name!r}", where=where, remedy=nearest(name, (AUTO, *CANDIDATES)))


def declared(name: str, *, together: bool) -> Candidate:
    """Returns the form of the declared law ``name`` for one slice, or for several ``together``.

    A study declares one name for all its laws. Several slices need the term in H, and one slice cannot have it.
    """
    return (_WITH_HELD if together else _WITHOUT_HELD).get(name, CANDIDATES[name])


@dataclass(frozen=True)
class Cells:
    """The n cells a law is fitted to: log F* is between ``lower`` and ``upper`` (see `analysis.law.regression`)."""

    log_n: Array
    log_d: Array
    lower: Array
    upper: Array
    variance: Array
    log_h: Array | None = None
    """Logarithms of the held values, where cells are of several slices."""

    @property
    def informative(self) -> npt.NDArray[np.bool_]:
        """Whether each cell is closed on both sides, [n]."""
        return np.isfinite(self.lower) & np.isfinite(self.upper)

    def subset(self, chosen: npt.NDArray[np.bool_]) -> Cells:
        """Returns the chosen cells."""
        log_h = None if self.log_h is None else self.log_h[chosen]
        lower, upper, variance = self.lower[chosen], self.upper[chosen], self.variance[chosen]
        return Cells(self.log_n[chosen], self.log_d[chosen], lower, upper, variance, log_h)

    @property
    def several_held(self) -> bool:
        """Whether cells differ in what is held."""
        return self.log_h is not None and len(np.unique(self.log_h)) > 1


@dataclass(frozen=True)
class Fitted:
    """A candidate fitted to cells, in centred covariates; the last parameter of an offset law is log F_inf."""

    law: Candidate
    centre: Array
    """Means of the covariates, [k]."""
    parameters: Array
    """Intercept at the centre, slopes, (log F_inf), [p]."""
    covariance: Array
    sigma: float
    freedom: float
    scatter_freedom: float
    aicc: float | None
    """Akaike's criterion with the small-sample correction; None if there are too few cells for it, or the law does not
    fit."""
    factor: Array | None = None
    """Factor of each cell's variance in the covariance (`regression.Fit`), [n]; None: 1."""

    def mean(self, log_n: Array, log_d: Array, log_h: Array | None = None) -> tuple[Array, Array]:
        """Returns (mean of log F* [m], its variance [m]); the variance is by the delta method."""
        mean, slope = mean_and_slope(self.law, self.centre, self.parameters, log_n, log_d, log_h)
        return mean, np.einsum("mi,ij,mj->m", slope, self.covariance, slope)


def mean_and_slope(
    law: Candidate, centre: Array, parameters: Array, log_n: Array, log_d: Array, log_h: Array | None = None
) -> tuple[Array, Array]:
    """Returns (log F* [m], its derivatives by the parameters [m, p])."""
    x = design(law, centre, log_n, log_d, log_h)
    return _with_floor(x, parameters) if law.offset else (x @ parameters, x)


def _with_floor(x: Array, parameters: Array) -> tuple[Array, Array]:
    """Returns log F* = log(F_inf + exp(eta)) and its derivatives: by eta and log F_inf, the shares of the two terms."""
    eta, floor = x @ parameters[:-1], parameters[-1]
    mean = np.logaddexp(floor, eta)
    return mean, np.column_stack([x * np.exp(eta - mean)[:, None], np.exp(floor - mean)])


def design(law: Candidate, centre: Array, log_n: Array, log_d: Array, log_h: Array | None = None) -> Array:
    """Returns the design [m, 1 + k]: an intercept and the centred covariates."""
    log_n, log_d = np.atleast_1d(log_n), np.atleast_1d(log_d)
    return np.column_stack([np.ones(len(log_n)), law.covariates(log_n, log_d, log_h) - centre])


def fit_candidate(law: Candidate, cells: Cells, *, aicc: bool = True) -> Fitted | None:
    """Fits a candidate; returns None if the cells cannot separate its coefficients or leave no error to estimate.

    Without ``aicc`` the fit has none: it takes another fit.
    """
    informative = int(cells.informative.sum())
    if law.in_held and not cells.several_held:
        return None
    centre = law.covariates(cells.log_n, cells.log_d, cells.log_h).mean(axis=0)
    x = design(law, centre, cells.log_n, cells.log_d, cells.log_h)
    if informative <= law.size or np.linalg.matrix_rank(x[cells.informative]) < x.shape[1]:
        return None
    # That of the maximum of the likelihood itself, not of the restricted one.
    likelihood = float(_regression(x, cells, "ml").likelihood) if aicc else math.nan
    if law.offset:
        found = _fit_offset(law, centre, cells)
        return found and replace(found[0], aicc=found[0].aicc if found[1] > likelihood - _SHORT else None)
    linear = _regression(x, cells, "reml")
    return Fitted(
        law,
        centre,
        linear.beta,
        linear.covariance,
        float(linear.sigma),
        float(linear.freedom),
        float(linear.scatter_freedom),
        _aicc(likelihood, law.size, len(cells.log_n)) if aicc else None,
        linear.factor,
    )


@remembered(_FITS)
def _regression(x: Array, cells: Cells, method: str) -> Fit:
    """Returns the regression of cells: a law and the same with an offset, a backtest and a held-out N share them."""
    return fit(x, cells.lower, cells.upper, cells.variance, method=method)


def bend_of_cells(fitted: Fitted, cells: Cells, spread: float) -> Bend:
    """Returns the bend of a fitted law, in the cells that it was fitted to."""
    mean, slope = mean_and_slope(fitted.law, fitted.centre, fitted.parameters, cells.log_n, cells.log_d, cells.log_h)
    factor = np.ones(len(mean)) if fitted.factor is None else fitted.factor
    residuals = cells.lower - mean, cells.upper - mean, cells.variance
    return fit_bend(spread, slope, cells.log_n, residuals, np.array(fitted.sigma), factor)


def _aicc(likelihood: float, parameters: int, n: int) -> float | None:
    k = parameters + 1  # sigma
    if n - k - 1 < _SPARE or not math.isfinite(likelihood):
        return None
    return -2 * likelihood + 2 * k + 2 * k * (k + 1) / (n - k - 1)


@remembered(_FITS)
def _fit_offset(law: Candidate, centre: Array, cells: Cells) -> tuple[Fitted, float] | None:
    """Fits an offset law by Fisher scoring with shortened steps; keeps the best fit from several initial floors.

    Returns it with its log-likelihood; None if it is the plain law.
    """
    x = design(law, centre, cells.log_n, cells.log_d, cells.log_h)
    linear = _regression(x, cells, "reml")
    closed = cells.informative
    middle = np.where(closed, (cells.lower + cells.upper) / 2, np.nan)
    smallest = float(np.nanmin(middle))
    data = (cells.lower, cells.upper, cells.variance)
    best: tuple[float, Array, float] | None = None
    for below in (0.1, 0.5, 1.5, 4.0):
        theta = np.append(linear.beta, smallest - below)
        sigma = max(float(linear.sigma), SMALLEST_SIGMA)
        value = -math.inf
        for _ in range(60):
            mean, slope = _with_floor(x, theta)
            cell, score, information, by_sigma = log_likelihood(mean, np.array(sigma), *data)
            value = float(cell.sum())
            normal = slope.T @ (information[:, None] * slope)
            step = np.linalg.solve(normal + 1e-8 * np.trace(normal) * np.eye(len(theta)), slope.T @ score)
            step = np.clip(step, -1.0, 1.0)
            size, gained = 1.0, 0.0
            while size > 1e-6:
                trial = theta + size * step
                mean = np.logaddexp(trial[-1], x @ trial[:-1])
                gained = float(log_likelihood(mean, np.array(sigma), *data)[0].sum()) - value
                if gained >= 0:
                    theta = trial
                    break
                size /= 4
            # d log L / d log sigma = 0 at the optimum; 2n is its expected slope for points.
            change = np.clip(by_sigma.sum() / (2 * len(cell)), -1.0, 1.0)
            sigma = float(np.clip(sigma * np.exp(change), SMALLEST_SIGMA, 10.0))
            if gained < 1e-10 and abs(float(by_sigma.sum())) < 1e-6:
                break
        if best is None or value > best[0]:
            best = value, theta, sigma
    assert best is not None
    value, theta, sigma = best
    if theta[-1] < smallest - 12 or theta[-1] > smallest + 1:
        return None  # a floor at zero is the plain law
    n = int(closed.sum())
    k = len(theta)
    sigma *= math.sqrt(n / max(n - k, 1))  # as REML does for points
    mean, slope = _with_floor(x, theta)
    _, _, information, _ = log_likelihood(mean, np.array(sigma), *data)
    weight, share = weights(np.array(sigma), *data, information)
    normal = slope.T @ (weight[:, None] * slope)
    if np.linalg.cond(normal) > 1e12:
        return None
    freedom = float(share.sum()) - k
    covariance = np.linalg.inv(normal).astype(float)
    aicc = _aicc(value, law.size, len(mean))
    return Fitted(law, centre, theta, covariance, sigma, freedom, freedom, aicc), value


def _log_density(z: Array, freedom: float) -> Array:
    """Returns the log density of Student's t."""
    constant = (
        scipy.special.gammaln((freedom + 1) / 2)
        - scipy.special.gammaln(freedom / 2)
        - 0.5 * math.log(math.pi * freedom)
    )
    density: Array = constant - (freedom + 1) / 2 * np.log1p(z**2 / freedom)
    return density


def log_score(fitted: Fitted, held_out: Cells) -> float:
    """Returns the summed log predictive densities (for censored cells: probabilities) of cells that were not fitted."""
    mean, variance = fitted.mean(held_out.log_n, held_out.log_d, held_out.log_h)
    freedom = max(fitted.freedom, 1.0)
    scale = np.sqrt(np.maximum(variance + fitted.sigma**2 + held_out.variance, 1e-12))
    z_low, z_high = (held_out.lower - mean) / scale, (held_out.upper - mean) / scale
    point = held_out.lower == held_out.upper
    density = _log_density(np.where(point, z_low, 0.0), freedom) - np.log(scale)
    # Above the mean from the upper tail, below it from the lower one: neither difference loses its digits.
    upper_tail = scipy.special.stdtr(freedom, -z_low) - scipy.special.stdtr(freedom, -z_high)
    lower_tail = scipy.special.stdtr(freedom, z_high) - scipy.special.stdtr(freedom, z_low)
    mass = np.where(z_low > 0, upper_tail, lower_tail)
    return float(np.where(point, density, np.log(np.maximum(mass, 1e-300))).sum())


def leave_largest_out(law: Candidate, cells: Cells) -> float | None:
    """Returns the log score of the largest bracketed N under the law fitted to all smaller ones; None if it has no fit.

    Censored cells beyond it do not test a law, because a wide predictive distribution covers them.
    """
    largest = cells.log_n[cells.informative].max()
    fitted = fit_candidate(law, cells.subset(cells.log_n < largest - 1e-9), aicc=False)
    if fitted is None:
        return None
    return log_score(fitted, cells.subset(cells.informative & (cells.log_n >= largest - 1e-9)))


def compare(cells: Cells) -> list[dict[str, Any]]:
    """Scores every candidate that the design supports, by AICc and by the log score of the largest N, held out."""
    rows = []
    one_budget = len(np.unique(cells.log_d)) == 1
    for law in CANDIDATES.values():
        if one_budget and law.name.removesuffix(" + offset") not in ("constant", "N", "N and held"):
            continue  # with one D these are the law in N by another name
        if law.offset and len(np.unique(cells.log_n[cells.informative])) < 5:
            continue
        fitted = fit_candidate(law, cells)
        if fitted is not None:
            score = leave_largest_out(law, cells)
            rows.append(
                {
                    "law": law.name,
                    "formula": law.formula,
                    "parameters": law.size,
                    "aicc": fitted.aicc,
                    "sigma": fitted.sigma,
                    "log_score": score,
                }
            )
    return rows
