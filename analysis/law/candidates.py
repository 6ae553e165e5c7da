"""The laws that compete: log F* = a + b log N + c log D with b and c free, tied or absent, each also with an offset.

An offset law is F* = F_inf + exp(a) N^b D^c: a floor that no shrinking of the model undercuts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from megatron_kis.analysis.law.regression import SMALLEST_SIGMA, Fit, fit, log_likelihood, weights
from megatron_kis.analysis.runs.curves import Array


@dataclass(frozen=True)
class Candidate:
    """A law's form. ``rows`` are its covariates as combinations of (log N, log D)."""

    name: str
    formula: str
    rows: tuple[tuple[float, float], ...]
    offset: bool = False

    @property
    def size(self) -> int:
        """Coefficients, sigma not counted."""
        return 1 + len(self.rows) + self.offset

    def covariates(self, log_n: Array, log_d: Array) -> Array:
        """[n, len(rows)] the covariates of n cells."""
        weights = np.array(self.rows).reshape(-1, 2)
        return np.column_stack([log_n, log_d]) @ weights.T


CONSTANT = Candidate("constant", "log F* = a", ())
SIZE = Candidate("N", "log F* = a + b log N", ((1, 0),))
SIZE_AND_BUDGET = Candidate("N and D", "log F* = a + b log N + c log D", ((1, 0), (0, 1)))
RATIO = Candidate("D/N", "log F* = a + c log(D/N)", ((-1, 1),))
COMPUTE = Candidate("C", "log F* = a + b log(6 N D)", ((1, 1),))
LINEAR = (CONSTANT, SIZE, SIZE_AND_BUDGET, RATIO, COMPUTE)


def with_offset(law: Candidate) -> Candidate:
    """The same law with an offset."""
    right = law.formula.removeprefix("log F* = ")
    return replace(law, name=f"{law.name} + offset", formula=f"F* = F_inf + exp({right})", offset=True)


CANDIDATES = {law.name: law for law in (*LINEAR, *(with_offset(law) for law in LINEAR[1:]))}


@dataclass(frozen=True)
class Cells:
    """What the law is fitted to: n cells, log F* between ``lower`` and ``upper`` (see `analysis.law.regression`)."""

    log_n: Array
    log_d: Array
    lower: Array
    upper: Array
    variance: Array

    @property
    def informative(self) -> npt.NDArray[np.bool_]:
        """[n] whether a cell is closed on both sides."""
        return np.isfinite(self.lower) & np.isfinite(self.upper)

    def at(self, chosen: npt.NDArray[np.bool_]) -> Cells:
        """The chosen cells."""
        return Cells(*(getattr(self, name)[chosen] for name in Cells.__dataclass_fields__))


@dataclass(frozen=True)
class Fitted:
    """A candidate fitted to cells, in centred covariates; the last parameter of an offset law is log F_inf."""

    law: Candidate
    centre: Array
    """[k] means of the covariates."""
    parameters: Array
    """[p] intercept at the centre, slopes, (log F_inf)."""
    covariance: Array
    sigma: float
    freedom: float
    scatter_freedom: float
    aicc: float | None
    """None where cells are too few for it."""

    def mean(self, log_n: Array, log_d: Array) -> tuple[Array, Array]:
        """(mean of log F* [m], its variance [m])."""
        mean, slope = mean_and_slope(self.law, self.centre, self.parameters, log_n, log_d)
        return mean, np.einsum("mi,ij,mj->m", slope, self.covariance, slope)


def mean_and_slope(law: Candidate, centre: Array, parameters: Array, log_n: Array, log_d: Array) -> tuple[Array, Array]:
    """(log F* [m], its derivatives by the parameters [m, p])."""
    x = design(law, centre, log_n, log_d)
    if not law.offset:
        return x @ parameters, x
    eta, floor = x @ parameters[:-1], parameters[-1]
    mean = np.logaddexp(floor, eta)
    return mean, np.column_stack([x * np.exp(eta - mean)[:, None], np.exp(floor - mean)])


def design(law: Candidate, centre: Array, log_n: Array, log_d: Array) -> Array:
    """[m, 1 + k] an intercept and the centred covariates."""
    log_n, log_d = np.atleast_1d(log_n), np.atleast_1d(log_d)
    return np.column_stack([np.ones(len(log_n)), law.covariates(log_n, log_d) - centre])


def fit_candidate(law: Candidate, cells: Cells) -> Fitted | None:
    """The fit, or None where the cells cannot tell its coefficients apart or leave no error to estimate."""
    informative = int(cells.informative.sum())
    centre = law.covariates(cells.log_n, cells.log_d).mean(axis=0)
    x = design(law, centre, cells.log_n, cells.log_d)
    if informative <= law.size or np.linalg.matrix_rank(x[cells.informative]) < x.shape[1]:
        return None
    data = (cells.lower, cells.upper, cells.variance)
    linear, ml = fit(x, *data), fit(x, *data, method="ml")
    if not law.offset:
        return _fitted(law, centre, linear, float(ml.likelihood), len(cells.log_n))
    return _fit_offset(law, centre, cells, linear)


def _aicc(likelihood: float, parameters: int, n: int) -> float | None:
    k = parameters + 1  # sigma
    if n - k - 1 <= 0 or not math.isfinite(likelihood):
        return None
    return -2 * likelihood + 2 * k + 2 * k * (k + 1) / (n - k - 1)


def _fitted(law: Candidate, centre: Array, found: Fit, likelihood: float, n: int) -> Fitted:
    return Fitted(
        law, centre, found.beta, found.covariance, float(found.sigma), float(found.freedom),
        float(found.scatter_freedom), _aicc(likelihood, law.size, n),
    )  # fmt: skip


def _fit_offset(law: Candidate, centre: Array, cells: Cells, linear: Fit) -> Fitted | None:
    """Fisher scoring with halved steps from several floors, sigma by its own score; keeps the best likelihood."""
    closed = cells.informative
    middle = np.where(closed, (cells.lower + cells.upper) / 2, np.nan)
    smallest = float(np.nanmin(middle))
    data = (cells.lower, cells.upper, cells.variance)
    best: tuple[float, Array, float] | None = None
    for below in (0.1, 0.5, 1.5, 4.0):
        theta, sigma = np.append(linear.beta, smallest - below), max(float(linear.sigma), SMALLEST_SIGMA)
        value = -math.inf
        for _ in range(60):
            mean, slope = mean_and_slope(law, centre, theta, cells.log_n, cells.log_d)
            cell, score, information, by_sigma = log_likelihood(mean, np.array(sigma), *data)
            value = float(cell.sum())
            normal = slope.T @ (information[:, None] * slope)
            step = np.linalg.solve(normal + 1e-8 * np.trace(normal) * np.eye(len(theta)), slope.T @ score)
            step = np.clip(step, -1.0, 1.0)
            size, gained = 1.0, 0.0
            while size > 1e-6:
                trial = theta + size * step
                mean, _ = mean_and_slope(law, centre, trial, cells.log_n, cells.log_d)
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
    n, k = int(closed.sum()), len(theta)
    sigma *= math.sqrt(n / max(n - k, 1))  # as REML does for points
    mean, slope = mean_and_slope(law, centre, theta, cells.log_n, cells.log_d)
    _, _, information, _ = log_likelihood(mean, np.array(sigma), *data)
    weight, share = weights(np.array(sigma), *data, information)
    normal = slope.T @ (weight[:, None] * slope)
    if np.linalg.cond(normal) > 1e12:
        return None
    freedom = float(share.sum()) - k
    return Fitted(
        law, centre, theta, np.linalg.inv(normal).astype(float), sigma, freedom, freedom,
        _aicc(value, law.size, len(mean)),
    )  # fmt: skip


def log_score(fitted: Fitted, held_out: Cells) -> float:
    """Sum of the log predictive densities (probabilities, for censored cells) of cells that were not fitted."""
    mean, variance = fitted.mean(held_out.log_n, held_out.log_d)
    freedom = max(fitted.freedom, 1.0)
    scale = np.sqrt(np.maximum(variance + fitted.sigma**2 + held_out.variance, 1e-12))
    z_low, z_high = (held_out.lower - mean) / scale, (held_out.upper - mean) / scale
    point = held_out.lower == held_out.upper
    density = stats.t.logpdf(np.where(point, z_low, 0.0), freedom) - np.log(scale)
    mass = np.where(z_low > 0, stats.t.sf(z_low, freedom) - stats.t.sf(z_high, freedom),
                    stats.t.cdf(z_high, freedom) - stats.t.cdf(z_low, freedom))  # fmt: skip
    return float(np.where(point, density, np.log(np.maximum(mass, 1e-300))).sum())


def leave_largest_out(law: Candidate, cells: Cells) -> float | None:
    """The log score of the largest bracketed N under the law fitted to all smaller ones; None where that cannot be.

    Censored cells beyond it are no test of a law: a wide one covers them.
    """
    largest = cells.log_n[cells.informative].max()
    fitted = fit_candidate(law, cells.at(cells.log_n < largest - 1e-9))
    if fitted is None:
        return None
    return log_score(fitted, cells.at(cells.informative & (cells.log_n >= largest - 1e-9)))


def compare(cells: Cells) -> list[dict[str, Any]]:
    """Every candidate the design can hold: name, formula, coefficients, AICc and leave-the-largest-N-out log score."""
    rows = []
    one_budget = len(np.unique(cells.log_d)) == 1
    for law in CANDIDATES.values():
        if one_budget and law.name.removesuffix(" + offset") not in ("constant", "N"):
            continue  # with one D these are the law in N under another name
        if law.offset and len(np.unique(cells.log_n[cells.informative])) < 5:
            continue
        fitted = fit_candidate(law, cells)
        if fitted is not None:
            score = leave_largest_out(law, cells)
            rows.append(
                {"law": law.name, "formula": law.formula, "parameters": law.size, "aicc": fitted.aicc,
                 "sigma": fitted.sigma, "log_score": score}
            )  # fmt: skip
    return rows
