"""A law from points that may bend: what a curvature in log N, which the points hardly show, would do beyond them.

    log F* = law + r . s + k q,   q = (log N - mean)^2, orthogonal to the law's own terms r,   k ~ Normal(0, bend^2)

k is fitted together with shifts s of the law's parameters, in the likelihood of `law.regression` with the scatter that
the law without a bend has. Its prior is one more row of that regression. The interval of a new model has what the
points leave open, with Student's quantiles, and what the prior does, with the normal one's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from megatron_kis.analysis.law.regression import newton, student, weights
from megatron_kis.analysis.runs.curves import Array

_ROW = 1e3  # scale of the prior's row, whose variance is to be large compared with sigma^2


@dataclass(frozen=True, kw_only=True)
class Bend:
    """A fitted bend; the leading axes are those of the data, p the law's parameters."""

    spread: float
    """Standard deviation of k before the data."""
    centre: float
    """Mean of log N."""
    projection: Array
    """[p] what of (log N - mean)^2 the law's own terms explain."""
    shift: Array
    """[..., p + 1] s, and k."""
    covariance: Array
    """[..., p + 1, p + 1] of them, what is due to the points."""
    lean: Array
    """[..., p + 1] how they move with a standard deviation of k before the data: the rest of their covariance."""

    def at(self, slope: Array, log_n: float) -> tuple[Array, Array, Array]:
        """Returns (shift of log F*, standard error that is due to the points, that due to the prior), each [...].

        ``slope`` [p] are the derivatives of the law by its parameters at the model.
        """
        row = np.append(slope, (log_n - self.centre) ** 2 - float(slope @ self.projection))
        of_points = np.sqrt(np.maximum(np.einsum("i,...ij,j->...", row, self.covariance, row), 0.0))
        return self.shift @ row, of_points, np.abs(self.lean @ row)


def fit_bend(
    spread: float,
    slope: Array,
    log_n: Array,
    residuals: tuple[Array, Array, Array],
    sigma: Array,
    factor: Array,
) -> Bend:
    """Fits k and the shifts.

    Args:
        spread: standard deviation of k before the data, above 0.
        slope: [n, p] derivatives of the law by its parameters.
        log_n: [n].
        residuals: lower and upper ends of log F* less the law's mean, and variances of points, each [..., n].
        sigma: [...] standard deviation between models.
        factor: [..., n] by which the variance of each cell is scaled (`regression.Fit`).
    """
    lead, (n, p) = residuals[0].shape[:-1], slope.shape
    lower, upper, variance, factor = (np.broadcast_to(v, (*lead, n)).reshape(-1, n) for v in (*residuals, factor))
    sigma = np.maximum(np.reshape(sigma, -1), 1e-6)
    square = (log_n - log_n.mean()) ** 2
    projection = np.linalg.lstsq(slope, square, rcond=None)[0]
    x = np.column_stack([slope, square - slope @ projection])
    rows = np.vstack([x, np.append(np.zeros(p), _ROW)])
    zero = np.zeros((len(lower), 1))
    ends = np.hstack([lower, zero]), np.hstack([upper, zero])
    of_rows = np.hstack([variance, zero + (_ROW * spread) ** 2])
    start = np.zeros((len(lower), p + 1))
    shift, _, information = newton(rows, start, sigma, *ends, of_rows, rounds=30)
    weight, _ = weights(sigma, lower, upper, variance, information[:, :n])
    known = np.diag(np.append(np.zeros(p), spread**-2.0))
    normal = np.einsum("ni,rn,nj->rij", x, weight, x)
    inverse = np.linalg.inv(normal + known)
    points = inverse @ np.einsum("ni,rn,nj->rij", x, weight * factor, x) @ inverse
    return Bend(
        spread=spread,
        centre=float(log_n.mean()),
        projection=projection,
        shift=shift.reshape(*lead, p + 1),
        covariance=points.reshape(*lead, p + 1, p + 1),
        lean=(inverse[..., -1] / spread).reshape(*lead, p + 1),
    )


def half_width(
    errors: tuple[Array | float, Array | float],
    sigma: Array | float,
    freedom: Array | float,
    scatter: Array | float,
    confidence: float,
) -> Array:
    """Returns half of the interval of a new log F*, [...]; with a sigma of zero, of the law's mean.

    Args:
        errors: standard errors of the mean, as of `Bend.at`.
        sigma: standard deviation between models.
        freedom: degrees of freedom of the coefficients.
        scatter: those of sigma.
        confidence: level.
    """
    of_prior = float(scipy.special.ndtri(0.5 + confidence / 2)) * errors[1]
    of_points = np.hypot(student(freedom, confidence) * errors[0], student(scatter, confidence) * sigma)
    half: Array = np.hypot(of_points, of_prior)
    return half


def record_of(bend: Bend) -> dict[str, Any]:
    """Returns a bend of one law as JSON-ready values; `bend_of` reads them."""
    return {
        name: value.tolist() if isinstance(value := getattr(bend, name), np.ndarray) else value
        for name in Bend.__dataclass_fields__
    }


def bend_of(record: dict[str, Any]) -> Bend:
    """Makes a bend of one law from its record."""
    arrays = ("projection", "shift", "covariance", "lean")
    return Bend(**(record | {name: np.array(record[name], dtype=float) for name in arrays}))
