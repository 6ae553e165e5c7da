"""The law: log F* = a + b log N (+ c log D), by least squares on logs, with t-based intervals.

A first, plain form: transitions that were not bracketed (censored, inconclusive) do not enter, are listed with their
reason, and are warned about, because leaving them out can bias the slope. The covariates are centred for the fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from analysis.collapse.base import KINDS, Transition
from analysis.curves import Array
from megatron_kis.errors import InputError, nearest
from megatron_kis.files import read_json

SCHEMA = "kis.law/1"
LAW_N, LAW_ND = "log F* = a + b log N", "log F* = a + b log N + c log D"
_FEWEST_SIZES = 3  # a line through two sizes cannot be wrong
_VALIDATED_CELLS = 5  # below it a law is a point estimate (labelled unvalidated)
_COLLINEAR = 0.999  # |correlation| of log N and log D beyond which b and c cannot be told apart


class LawRefused(InputError):
    """The points cannot support a law. ``code`` says why: one_size, few_points, collinear, no_points, not_finite."""

    def __init__(self, code: str, problem: str, *, remedy: str | None = None) -> None:
        super().__init__(problem, where="law", remedy=remedy)
        self.code = code


@dataclass(frozen=True)
class Coefficient:
    """An estimate with its standard error and confidence interval."""

    value: float
    standard_error: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Law:
    """A fitted law. ``centre`` and ``covariance`` belong to the centred fit: [intercept, log N, (log D)]."""

    kind: str
    group: str
    selected_law: str
    coefficients: dict[str, Coefficient | None]
    """a, b_log_params, c_log_tokens (None: D is not in this law). Natural logarithms."""
    sigma: float
    """Residual standard deviation of log F*, n - p degrees of freedom."""
    degrees_of_freedom: int
    confidence: float
    unvalidated: bool
    centre: list[float]
    """Means of the covariates [log N, (log D)]."""
    intercept: float
    """Mean of log F* of the points: the intercept of the centred fit."""
    covariance: list[list[float]]
    """Covariance of the centred fit's coefficients."""
    range_params: tuple[int, int]
    range_tokens: tuple[int, int]
    tokens_per_frequency: float | None
    """Tokens that one unit of F costs (facts times mean exposure length); None where the points disagree."""
    points: list[dict[str, Any]]
    excluded: list[dict[str, Any]]
    warnings: list[str] = field(default_factory=list)

    @property
    def in_tokens(self) -> bool:
        """Whether the law has a term in D."""
        return len(self.centre) == 2

    def slopes(self) -> Array:
        """The centred fit's coefficients [intercept, b, (c)]."""
        names = ("b_log_params", "c_log_tokens")[: len(self.centre)]
        return np.array([self.intercept, *(self.coefficients[name].value for name in names)])  # type: ignore[union-attr]

    def record(self) -> dict[str, Any]:
        """The law as JSON-ready values."""
        return {"schema": SCHEMA, **asdict(self)}


def fit_law(
    points: Iterable[Transition], kind: str = "collapse", group: str | None = None, *, confidence: float = 0.95
) -> Law:
    """Fits the law to the informative points of one kind and group.

    Args:
        points: transitions, in any order.
        kind: onset, collapse or tolerance.
        group: infused, background or general; may be left out if the points of that kind have one group only.
        confidence: level of the intervals.

    Raises:
        LawRefused: the points cannot support a law; nothing is fitted.
        InputError: unknown kind, or several groups and none named.
    """
    if kind not in KINDS:
        raise InputError(f"unknown kind {kind!r}", where="kind", remedy=nearest(kind, KINDS))
    of_kind = [point for point in points if point.kind == kind]
    groups = sorted({point.group for point in of_kind})
    if group is None:
        if len(groups) > 1:
            raise InputError(
                f"{kind} points of several groups", where="group", remedy="name one of " + ", ".join(groups)
            )
        group = groups[0] if groups else ""
    chosen = sorted((p for p in of_kind if p.group == group), key=_identity)
    used = [point for point in chosen if point.informative]
    if not used:
        listed = ", ".join(sorted({point.status for point in chosen})) or "none at all"
        raise LawRefused("no_points", f"no {kind} point of group {group!r} was bracketed (statuses: {listed})")
    values = np.array([[p.params, p.tokens, p.value] for p in used], dtype=float)
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise LawRefused("not_finite", "N, D and F of every point must be finite and positive")

    log_n, log_d, y = np.log(values).T
    columns, name = _design(log_n, log_d)
    centre = columns.mean(axis=1)
    x = np.vstack([np.ones(len(y)), columns - centre[:, None]]).T
    n, p = x.shape
    if n <= p:
        remedy = f"at least {p + 1} bracketed (N, D)"
        raise LawRefused("few_points", f"{n} points for {p} coefficients leave no error to estimate", remedy=remedy)
    beta, *_ = np.linalg.lstsq(x, y, rcond=None)
    residual = y - x @ beta
    freedom = n - p
    sigma = math.sqrt(float(residual @ residual) / freedom)
    covariance = np.linalg.inv(x.T @ x) * sigma**2
    quantile = float(stats.t.ppf(0.5 + confidence / 2, freedom))

    def coefficient(value: float, variance: float) -> Coefficient:
        error = math.sqrt(max(variance, 0.0))
        return Coefficient(value, error, value - quantile * error, value + quantile * error)

    origin = np.concatenate([[1.0], -centre])  # log N = log D = 0
    excluded = [
        _listed(point, reason=f"{point.status}: {point.reason}".rstrip(": "))
        for point in chosen
        if not point.informative
    ]
    return Law(
        kind=kind,
        group=group,
        selected_law=name,
        coefficients={
            "a": coefficient(float(origin @ beta), float(origin @ covariance @ origin)),
            "b_log_params": coefficient(float(beta[1]), float(covariance[1, 1])),
            "c_log_tokens": coefficient(float(beta[2]), float(covariance[2, 2])) if p == 3 else None,
        },
        sigma=sigma,
        degrees_of_freedom=freedom,
        confidence=confidence,
        unvalidated=n < _VALIDATED_CELLS,
        centre=[float(value) for value in centre],
        intercept=float(beta[0]),
        covariance=[[float(value) for value in row] for row in covariance],
        range_params=(int(values[:, 0].min()), int(values[:, 0].max())),
        range_tokens=(int(values[:, 1].min()), int(values[:, 1].max())),
        tokens_per_frequency=_tokens_per_frequency(used),
        points=[_listed(point, residual=float(r)) for point, r in zip(used, residual, strict=True)],
        excluded=excluded,
        warnings=_warnings(n, excluded),
    )


def _design(log_n: Array, log_d: Array) -> tuple[Array, str]:
    """Covariates [k, n] and the law's name; refuses designs that cannot support one."""
    sizes = len(np.unique(log_n))
    if sizes < _FEWEST_SIZES:
        code = "one_size" if sizes == 1 else "few_points"
        noun = "size" if sizes == 1 else "sizes"
        raise LawRefused(
            code, f"bracketed points of {sizes} {noun} N only", remedy=f"at least {_FEWEST_SIZES} distinct N"
        )
    if len(np.unique(log_d)) == 1:
        return log_n[None, :], LAW_N
    if abs(float(np.corrcoef(log_n, log_d)[0, 1])) > _COLLINEAR:
        raise LawRefused(
            "collinear", "N and D grow together in every point, so their effects cannot be told apart",
            remedy="add a size with a second token budget",
        )  # fmt: skip
    return np.vstack([log_n, log_d]), LAW_ND


def _identity(point: Transition) -> tuple[float, ...]:
    return point.params, point.tokens, point.value or 0.0, point.low or 0.0


def _listed(point: Transition, **more: Any) -> dict[str, Any]:
    kept = ("params", "tokens", "status", "value", "low", "high", "infusion_ratio")
    return {name: getattr(point, name) for name in kept} | more


def _tokens_per_frequency(used: list[Transition]) -> float | None:
    costs = [p.exposure_tokens / p.value for p in used if p.exposure_tokens and p.value]
    if not costs or max(costs) > 1.05 * min(costs):
        return None
    return float(np.mean(costs))


def _warnings(n: int, excluded: list[dict[str, Any]]) -> list[str]:
    warnings = []
    if n < _VALIDATED_CELLS:
        warnings.append(f"unvalidated: {n} informative points; a law to rely on needs at least {_VALIDATED_CELLS}")
    censored = sum("censored" in point["status"] for point in excluded)
    if censored:
        warnings.append(
            f"{censored} censored point{'s were' if censored > 1 else ' was'} left out, which can bias the slope"
        )
    return warnings


def load_law(path: Path | str) -> Law:
    """Reads the law at the top of a ``law.json``.

    Raises:
        InputError: not a law file, damaged, or a file that records that no law could be fitted.
    """
    record = read_json(Path(path), SCHEMA)
    if record.get("selected_law") is None:
        reasons = "; ".join(
            f"{item['kind']} of {item['group']}: {item['reason']}" for item in record.get("refused") or []
        )
        raise InputError(f"records that no law could be fitted ({reasons or 'no reason given'})", where=str(path))
    try:
        known = {name: record[name] for name in Law.__dataclass_fields__}
        known["coefficients"] = {
            name: Coefficient(**values) if values else None for name, values in record["coefficients"].items()
        }
        known["range_params"], known["range_tokens"] = tuple(record["range_params"]), tuple(record["range_tokens"])
        return Law(**known)
    except (KeyError, TypeError) as error:
        raise InputError(f"damaged law ({error})", where=str(path), remedy="fit it again with kis law fit") from None
