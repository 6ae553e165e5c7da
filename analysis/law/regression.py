"""Censored regression of log F* with a REML-type sigma: the numbers of the law. Pure functions of arrays.

For cell i, y_i = x_i . beta + e_i with e_i ~ Normal(0, sigma^2 + v_i) is between ``lower`` and ``upper``. The two are
equal for a point (v_i is then the variance of its own measurement), neighbouring levels of the grid for a bracket, open
above or below for a censored cell, and open on both sides if nothing is known. Points contribute their density, the
others Phi(u) - Phi(l), which is log-concave in beta, so that Newton's method finds the one maximum. The width of a
bracket therefore never enters v_i as well.

Everything takes leading axes: ``lower``, ``upper`` and ``variance`` may be [R, n] for R resamples of one design [n, p].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy

from megatron_kis.analysis.runs.curves import Array

_LOG_2PI = math.log(2 * math.pi)
_AVOID = 0.75  # weight of the prior that keeps the intervals' sigma away from zero; by simulation (docs/statistics.md)
_LEAST_SCALE = 1e-2  # points on a line by chance still have errors
_LEAST_UNKNOWN = 0.1  # share of the variance that stays unknown, however wide the brackets
_SCATTER_FREEDOM = 4.0
"""Least degrees of freedom of a sigma with the prior; by simulation (docs/statistics.md).

Student's long tails allow for a sigma that is near zero by chance, which the prior already excludes."""
SMALLEST_SIGMA = 1e-3  # a tenth of a percent of F: no measured scatter is smaller


@dataclass(frozen=True)
class Fit:
    """A fitted regression; the leading axes are those of the data."""

    beta: Array
    """Coefficients of the fitted regression, [..., p]."""
    covariance: Array
    """Covariance of the coefficients, Knapp-Hartung scaled, [..., p, p]."""
    sigma: Array
    """Standard deviation between models, [...]."""
    freedom: Array
    """Degrees of freedom, [...]: cells (a censored one counts as much as its information) minus coefficients; more
    where the errors are mostly the widths of brackets, which are known."""
    scatter_freedom: Array
    """Degrees of freedom of sigma, [...], raised by the prior if there are few cells."""
    likelihood: Array
    """Log-likelihood at (beta, sigma), [...]."""
    factor: Array
    """Factor of the variance of each cell in the covariance, [..., n]."""


def log_likelihood(mean: Array, sigma: Array, lower: Array, upper: Array, variance: Array) -> tuple[Array, ...]:
    """Returns each cell's log-likelihood with its derivatives, all [..., n].

    Args:
        mean: [..., n] x . beta.
        sigma: [...] standard deviation between models.
        lower: [..., n] lower ends of y, -inf where open.
        upper: [..., n] upper ends.
        variance: [..., n] v_i of points.

    Returns:
        (log-likelihood, its derivative by the mean, minus its second derivative by the mean, its derivative by log
        sigma)
    """
    sigma = np.asarray(sigma)[..., None]
    total = np.sqrt(sigma**2 + variance)
    point = lower == upper
    if point.all():
        z = (lower - mean) / total
        value = -0.5 * z**2 - np.log(total) - 0.5 * _LOG_2PI
        information = 1 / total**2
        if information.shape != z.shape:
            information = np.broadcast_to(information, z.shape)
        return value, z / total, information, (z**2 - 1) * sigma**2 / total**2
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        a = (np.where(point, mean, lower) - mean) / total
        b = (np.where(point, mean + total, upper) - mean) / total
        # If both ends are above the mean, the upper tails are subtracted instead, which loses no digits:
        # log(Phi(b) - Phi(a)) = log Phi(b) + log(1 - Phi(a) / Phi(b)).
        swap = a > 0
        low, high = np.where(swap, -b, a), np.where(swap, -a, b)
        log_high, log_low = scipy.special.log_ndtr(high), scipy.special.log_ndtr(low)
        log_mass = log_high + np.log1p(-np.exp(np.minimum(log_low - log_high, -1e-300)))
        at_a = np.where(np.isfinite(a), np.exp(-0.5 * a**2 - 0.5 * _LOG_2PI - log_mass), 0.0)
        at_b = np.where(np.isfinite(b), np.exp(-0.5 * b**2 - 0.5 * _LOG_2PI - log_mass), 0.0)
        a_, b_ = np.where(np.isfinite(a), a, 0.0), np.where(np.isfinite(b), b, 0.0)
        score = (at_a - at_b) / total
        information = score**2 + (b_ * at_b - a_ * at_a) / total**2
        by_total = a_ * at_a - b_ * at_b  # of log total
        z = np.where(point, lower - mean, 0.0) / total
    value = np.where(point, -0.5 * z**2 - np.log(total) - 0.5 * _LOG_2PI, log_mass)
    score = np.where(point, z / total, score)
    information = np.where(point, 1 / total**2, np.maximum(information, 0.0))
    by_log_sigma = np.where(point, z**2 - 1, by_total) * sigma**2 / total**2
    return value, score, information, by_log_sigma


def weights(sigma: Array, lower: Array, upper: Array, variance: Array, information: Array) -> tuple[Array, Array]:
    """Returns (weights for the covariance, shares of a whole cell), both [..., n].

    A bracket has the weight of a point with the standard deviation width / sqrt(12): its observed information vanishes
    with sigma, but its information about the mean does not.
    """
    sigma = np.asarray(sigma)[..., None]
    closed = np.isfinite(lower) & np.isfinite(upper)
    with np.errstate(invalid="ignore"):
        width = np.where(closed, upper - lower, 0.0)
    weight = np.where(closed, 1 / (sigma**2 + variance + width**2 / 12), information)
    share = np.where(closed, 1.0, np.clip(information * sigma**2, 0.0, 1.0))
    return weight, share


def fit(x: Array, lower: Array, upper: Array, variance: Array, *, method: str = "reml") -> Fit:
    """Fits the regression.

    Args:
        x: [n, p] design; full column rank.
        lower: [..., n], see `log_likelihood`.
        upper: [..., n].
        variance: [..., n].
        method: ``reml`` (sigma accounts for the estimated coefficients) or ``ml``.
    """
    shape = np.broadcast_shapes(lower.shape, upper.shape, variance.shape)

    def rows(values: Array) -> Array:
        """Returns values as [R, n]."""
        return np.broadcast_to(values, shape).reshape(-1, shape[-1])

    lower, upper, variance = rows(lower), rows(upper), rows(variance)
    n, p = x.shape
    plain = bool((lower == upper).all() and (variance == 0).all())
    start = _midpoints(lower, upper)
    beta: Array = np.linalg.lstsq(x, start.T, rcond=None)[0].T.astype(float)
    if plain:
        residual = lower - beta @ x.T
        squares = (residual**2).sum(-1)
        sigma = np.sqrt(squares / (n - p if method == "reml" else n))
        floor = np.maximum(sigma, 1e-150)
    else:
        sigma, beta = _profile(x, lower, upper, variance, beta, method)
        floor = sigma
    value, _, information, _ = log_likelihood(beta @ x.T, floor, lower, upper, variance)
    weight, share = weights(floor, lower, upper, variance, information)
    freedom = np.maximum(share.sum(-1) - p, 0.0)
    inverse: Array = np.linalg.inv(np.einsum("ni,rn,nj->rij", x, weight, x)).astype(float)
    scatter_freedom, factor = freedom, np.ones(shape).reshape(-1, n)
    if not plain and method == "reml":
        closed = np.isfinite(lower) & np.isfinite(upper)
        with np.errstate(invalid="ignore"):
            residual = np.where(closed, (lower + upper) / 2, 0.0) - np.where(closed, beta @ x.T, 0.0)
            bracket = np.where(closed, weight * (upper - lower) ** 2 / 12, 0.0)  # share of a cell's variance
        scale = np.maximum((weight * residual**2).sum(-1) / np.maximum(freedom, 1e-9), _LEAST_SCALE)
        # Knapp and Hartung (2003). Their factor is often kept at one or above. Here it may be smaller, to correct for
        # the prior on sigma and for intervals wider than their errors, which Student's t would count a second time.
        # What is due to brackets is not made smaller: cells of one grid agree by construction, however wide it is.
        factor = scale[:, None] * (1 - bracket) + np.maximum(scale, 1.0)[:, None] * bracket
        inverse = inverse @ np.einsum("ni,rn,nj->rij", x, weight * factor, x) @ inverse
        scatter_freedom = np.maximum(freedom, _SCATTER_FREEDOM)
        # How wide a bracket is need not be estimated (as Satterthwaite counts variances that are known in part).
        known = (bracket / np.maximum(scale, 1.0)[:, None]).sum(-1) / np.maximum(closed.sum(-1), 1)
        freedom = freedom / np.maximum(1 - known, _LEAST_UNKNOWN) ** 2
    lead = shape[:-1]
    return Fit(
        beta.reshape(*lead, p),
        inverse.reshape(*lead, p, p),
        sigma.reshape(lead),
        freedom.reshape(lead),
        scatter_freedom.reshape(lead),
        value.sum(-1).reshape(lead),
        factor.reshape(shape),
    )


def student(freedom: Array | float, confidence: float = 0.95) -> Array:
    """Returns Student's quantile of a two-sided interval, with the shape of ``freedom``."""
    return np.asarray(scipy.special.stdtrit(np.maximum(freedom, 1e-3), 0.5 + confidence / 2))


def half_width(
    error: Array | float,
    sigma: Array | float,
    freedom: Array | float,
    scatter_freedom: Array | float,
    confidence: float = 0.95,
) -> Array:
    """Returns half of the interval of a new y, [...]; with a sigma of zero, of the mean.

    The part of the mean has the degrees of freedom of the coefficients, the part of the scatter those of sigma. If both
    are the same, this is Student's interval of a new observation.

    Args:
        error: standard error of the mean.
        sigma: standard deviation between models.
        freedom: degrees of freedom of the coefficients.
        scatter_freedom: degrees of freedom of sigma.
        confidence: level.
    """
    half: Array = np.hypot(student(freedom, confidence) * error, student(scatter_freedom, confidence) * sigma)
    return half


def _midpoints(lower: Array, upper: Array) -> Array:
    """Returns a finite initial value of each cell, [R, n]; 0 for a cell that is open on both sides."""
    low, high = np.isfinite(lower), np.isfinite(upper)
    ends = np.where(low, lower, 0.0) + np.where(high, upper, 0.0)
    middle: Array = ends / np.maximum(low.astype(float) + high, 1.0)
    return middle


def newton(
    x: Array,
    beta: Array,
    sigma: Array,
    lower: Array,
    upper: Array,
    variance: Array,
    *,
    rounds: int = 12,
    tolerance: float = 1e-12,
) -> tuple[Array, Array, Array]:
    """Returns the maximum for given sigma [R]; shortens steps that overshoot.

    Returns:
        (beta [R, p], log-likelihood [R], information [R, n] of each cell about its mean)
    """
    if (lower == upper).all():  # weighted least squares: one step, from anywhere
        weight = 1 / (np.asarray(sigma)[:, None] ** 2 + variance)
        weighted = weight[:, :, None] * x
        right = (lower[:, None, :] @ weighted).swapaxes(1, 2)
        beta = np.linalg.solve(x.T @ weighted, right)[..., 0].astype(np.float64)
        value, _, information, _ = log_likelihood(beta @ x.T, sigma, lower, upper, variance)
        return beta, value.sum(-1), information
    value, score, information, _ = log_likelihood(beta @ x.T, sigma, lower, upper, variance)
    best = value.sum(-1)
    ridge = 1e-10 * np.eye(x.shape[1])
    for _ in range(rounds):
        gradient = score @ x
        hessian = np.einsum("ni,rn,nj->rij", x, information, x)
        scale = np.trace(hessian, axis1=1, axis2=2)[:, None, None] + 1e-12
        step = np.linalg.solve(hessian + ridge * scale, gradient[..., None])[..., 0]
        size = np.ones(len(beta))
        for _ in range(4):
            trial = beta + size[:, None] * step
            value, score, information, _ = log_likelihood(trial @ x.T, sigma, lower, upper, variance)
            worse = ~(value.sum(-1) >= best - 1e-12)
            if not worse.any():
                break
            size = np.where(worse, size / 4, size)
        if worse.any():
            beta = np.where(worse[:, None], beta, trial)
            value, score, information, _ = log_likelihood(beta @ x.T, sigma, lower, upper, variance)
        else:
            beta = trial  # whose likelihood is known
        before, best = best, value.sum(-1)
        if not (best - before >= tolerance).any():
            break
    return beta, best, information


def _profile(x: Array, lower: Array, upper: Array, variance: Array, beta: Array, method: str) -> tuple[Array, Array]:
    """Returns (sigma [R], beta [R, p]) by a golden-section search over log sigma with the best beta for each sigma.

    If the points' own errors explain their scatter, sigma would be zero, as if the next model had no scatter (12 cells:
    89% of 400 next models in their 95% interval). A weak form of Chung et al.'s prior (2013) keeps sigma above zero. It
    makes the intervals cautious and must not affect the coefficients: with too large a sigma a one-sided cell pulls at
    a law that is well within its bound, and with 30% of the models beyond the grid the slope of six cells was off by
    0.7 of its standard errors (docs/LOG.md). If there are one-sided cells, beta is therefore taken at the sigma of REML
    alone.
    """
    resamples, p = beta.shape
    one_sided = (np.isfinite(lower) != np.isfinite(upper)).any(axis=1) & (method == "reml")
    row = np.concatenate([np.arange(resamples), np.flatnonzero(one_sided)])
    prior = np.where(np.arange(len(row)) < resamples, _AVOID if method == "reml" else 0.0, 0.0)

    def objective(log_sigma: Array, beta: Array, lower: Array, upper: Array, variance: Array) -> tuple[Array, Array]:
        sigma = np.exp(log_sigma)
        tolerance = 1e-12 if resamples == 1 else 1e-7
        beta, value, information = newton(x, beta, sigma, lower, upper, variance, tolerance=tolerance)
        if method == "reml":
            weight, _ = weights(sigma, lower, upper, variance, information)
            value = value - 0.5 * np.linalg.slogdet(np.einsum("ni,rn,nj->rij", x, weight, x))[1]
        return value, beta

    grid = np.linspace(math.log(SMALLEST_SIGMA), math.log(10.0), 19 if resamples == 1 else 11)
    values = np.empty((len(grid), resamples))
    betas = np.empty((len(grid), resamples, p))
    for index in range(len(grid) - 1, -1, -1):  # from flat likelihoods to peaked ones, each a start for the next
        values[index], beta = objective(np.full(resamples, grid[index]), beta, lower, upper, variance)
        betas[index] = beta
    # From here on, rows with one-sided cells are present twice: with the prior for sigma, without it for beta.
    best = (values[:, row] + prior * grid[:, None]).argmax(axis=0)
    data = (lower[row], upper[row], variance[row])
    low, high = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, len(grid) - 1)]
    beta = betas[best, row]
    share = (math.sqrt(5) - 1) / 2

    def at(log_sigma: Array) -> tuple[Array, Array]:
        value, found = objective(log_sigma, beta, *data)
        return value + prior * log_sigma, found

    left, right = high - share * (high - low), low + share * (high - low)
    (at_left, _), (at_right, _) = at(left), at(right)
    for _ in range(36 if resamples == 1 else 9):
        up = at_right > at_left
        low, high = np.where(up, left, low), np.where(up, high, right)
        new = np.where(up, low + share * (high - low), high - share * (high - low))
        at_new, beta = at(new)
        left, right = np.where(up, right, new), np.where(up, new, left)
        at_left, at_right = np.where(up, at_right, at_new), np.where(up, at_new, at_left)
    sigma = np.exp((low + high) / 2)
    sigma_for_beta, start = sigma[:resamples].copy(), beta[:resamples].copy()
    sigma_for_beta[row[resamples:]], start[row[resamples:]] = sigma[resamples:], beta[resamples:]
    beta, _, _ = newton(x, start, sigma_for_beta, lower, upper, variance, rounds=30)
    return sigma[:resamples], beta
