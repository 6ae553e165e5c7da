"""A fitted law: what it says about a model, and its record."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from megatron_kis.analysis.law.bend import bend_of
from megatron_kis.analysis.law.candidates import CANDIDATES, Candidate, Fitted, mean_and_slope
from megatron_kis.analysis.law.coefficients import Coefficient
from megatron_kis.analysis.law.surface import Surface, surface_of
from megatron_kis.analysis.runs.slices import USUAL, Slice
from megatron_kis.common.files import fingerprint

SCHEMA = "kis.law/1"


@dataclass(frozen=True, kw_only=True)
class Law:
    """A fitted law. ``centre``, ``parameters`` and ``covariance`` belong to the centred fit."""

    kind: str
    group: str
    slice: Slice = USUAL
    """What the dose is (F* stands for K* where it is the number of facts), and what is held."""
    selected_law: str
    """Formula, with natural logarithms."""
    law: str
    """Name of the candidate."""
    selection: str
    """Reason for the choice of the form."""
    coefficients: dict[str, Coefficient | None]
    """Coefficients a, b_log_params, c_log_tokens (None: not in this law), and log_f_inf of a law with an offset."""
    sigma: float
    """Standard deviation of log F* between models, beyond what each curve's own interval explains."""
    degrees_of_freedom: float
    """Degrees of freedom of the coefficients and of the law's mean."""
    scatter_degrees_of_freedom: float
    """Degrees of freedom of sigma, which also rests on the prior that keeps it away from zero."""
    confidence: float
    """Level of the intervals."""
    unvalidated: bool
    """Whether there are too few informative points to rely on the law."""
    centre: list[float]
    """Means of the covariates."""
    parameters: list[float]
    """Intercept at the centre, slopes, (log F_inf)."""
    covariance: list[list[float]]
    """Covariance of the parameters, Knapp-Hartung scaled."""
    range_params: tuple[int, int]
    range_tokens: tuple[int, int]
    range_held: tuple[float, float] | None = None
    """Smallest and largest held value of a law of several slices (``slice`` holds none); None of a law of one."""
    tokens_per_frequency: float | None
    """Tokens that one unit of the dose costs (of F: facts times mean exposure length); None if the points disagree, or
    the ratio is held."""
    amounts: dict[str, float] = field(default_factory=dict)
    """What else the points agree on: ``exposures_per_dose``, ``tokens_per_exposure``, ``bits_per_dose`` (along the
    number of facts) and ``bits`` (along F)."""
    points: list[dict[str, Any]]
    """Every cell that was fitted, censored ones too (residual None)."""
    excluded: list[dict[str, Any]]
    """Inconclusive cells with their reason."""
    candidates: list[dict[str, Any]] = field(default_factory=list)
    """Candidate laws with AICc and leave-the-largest-N-out log score."""
    lack_of_fit: dict[str, Any] | None = None
    """Test of a curvature in log N: coefficient, p_value, flag. None if there are too few cells."""
    equivalents: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The same law of the infusion ratio and of the exposure tokens."""
    sensitivity: dict[str, Any] = field(default_factory=dict)
    """The same law with N counted without embeddings."""
    calibration: dict[str, Any] | None = None
    """Critical values from a bootstrap through both stages (`megatron_kis.analysis.law.bootstrap`) or of the points
    (`megatron_kis.analysis.law.bootstrap_points`), a check of Student's t; None if no bootstrap was run."""
    bend: dict[str, Any] | None = None
    """The law as it may bend in log N (`megatron_kis.analysis.law.bend`), from the points; None if it was taken to be
    straight."""
    surface: dict[str, Any] | None = None
    """The likelihood of all curves together (`megatron_kis.analysis.law.surface`), from which predictions are made;
    None where only points are known, or the curves cannot carry it."""
    warnings: list[str] = field(default_factory=list)

    @cached_property
    def all_curves(self) -> Surface | None:
        """The likelihood in ``surface``, to ask about models."""
        return None if self.surface is None else surface_of(self.surface)

    @property
    def candidate(self) -> Candidate:
        """Form of the law."""
        return CANDIDATES[self.law]

    @property
    def in_tokens(self) -> bool:
        """Whether the law has a term in D."""
        return any(row[1] for row in self.candidate.rows)

    def at(self, params: float, tokens: float, held: float | None = None) -> tuple[float, float]:
        """Returns (mean of log F*, its standard error) at one (N, D), and at one held value for several slices."""
        fitted = Fitted(
            self.candidate,
            np.array(self.centre),
            np.array(self.parameters),
            np.array(self.covariance),
            self.sigma,
            self.degrees_of_freedom,
            self.scatter_degrees_of_freedom,
            None,
        )
        log_h = None if held is None else np.log([float(held)])
        mean, variance = fitted.mean(np.log([float(params)]), np.log([float(tokens)]), log_h)
        return float(mean[0]), math.sqrt(max(float(variance[0]), 0.0))

    def bent_at(self, params: float, tokens: float, held: float | None = None) -> tuple[float, tuple[float, float]]:
        """Returns (mean of log F* of the law that may bend, its standard errors: due to the points, to the prior)."""
        mean, slope = mean_and_slope(
            self.candidate,
            np.array(self.centre),
            np.array(self.parameters),
            np.log([float(params)]),
            np.log([float(tokens)]),
            None if held is None else np.log([float(held)]),
        )
        assert self.bend is not None
        shift, of_points, of_prior = bend_of(self.bend).at(slope[0], math.log(params))
        return float(mean[0] + shift), (float(of_points), float(of_prior))

    def record(self) -> dict[str, Any]:
        """Returns the law as JSON-ready values; what older laws do not have is left out where it says nothing."""
        content = asdict(self)
        del content["slice"]
        for name in ("amounts", "range_held", "bend", "surface"):
            if not content[name]:
                del content[name]
        return {"schema": SCHEMA, **content, **self.slice.record()}

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the record; a figure of a law predicts from it at many sizes.

        The reason of the selection counts in the words of older versions: predictions name their law by it.
        """
        return fingerprint(self.record() | {"selection": self.selection.replace("predicts", "foretells")})
