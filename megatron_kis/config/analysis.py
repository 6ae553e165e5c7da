"""The choices an analysis makes, in one frozen record that is declared before the data are seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from megatron_kis.common.errors import InputError, nearest

CRITERIA = ("hinge", "tolerance_rule", "general_loss")


@dataclass(frozen=True, kw_only=True)
class AnalysisSettings:
    """Settings of criteria, law and report; they are written into every result."""

    split: str = "held_out"
    """Template split the criteria look at. Held-out templates tell memory of a fact from memory of a sentence."""
    criterion: str = "hinge"
    """What a collapse is: ``hinge`` (tau of a rise-then-fall model), ``tolerance_rule`` (the last F within r of the
    maximum) or ``general_loss`` (the F at which the loss on general text leaves its tolerance)."""
    scoring: str = "statement"
    """Scoring rule the criteria look at: summed log-likelihood of the whole statement, the object anywhere in it."""
    r: float = 0.10
    """Relative fall below the maximum that marks the collapse point: the curve stays under (1 - r) of its maximum."""
    delta_min: float = 0.05
    """Smallest fall, in rate, that may be called a collapse. Raised to two seed standard deviations where seeds
    allow."""
    alpha: float = 0.05
    """Level of the tests, for a whole curve (the onset's levels share it, the collapse test is calibrated for it)."""
    tolerance: float = 0.05
    """Relative excess of the validation loss over that of F = 0 which counts as collapse by loss tolerance."""
    overdispersion: float = 0.01
    """Least intraclass correlation of the facts of one run (what a seed moves together). With one seed it cannot be
    estimated; 0.01 is a seed standard deviation of 0.05 at a rate of one half, as two seeds of small trials showed."""
    reference_loss: float = 0.5
    """"No collapse" is only said where the loss of this share of the peak's excess over chance would have shown; 0
    asks for the smallest collapse there is, delta_min (which takes a thousand facts)."""
    power: float = 0.8
    """...with at least this probability. Otherwise the status is inconclusive."""
    resamples: int = 999
    """Parametric bootstrap resamples of the test against "no collapse"."""
    law_resamples: int = 999
    """Resamples of the bootstrap that gives points their errors and checks the law's intervals; 0: none."""
    law: str = "auto"
    """The law's form: ``auto`` (chosen by the largest N, held out) or a candidate's name, such as ``N and D``."""
    confidence: float = 0.95
    """Level of the law's confidence and prediction intervals."""
    seed: int = 0
    """Seed of the resampling, so that the same input gives the same output."""

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        if self.criterion not in CRITERIA:
            raise InputError(
                f"{self.criterion!r} is no criterion", where="analysis.criterion",
                remedy=nearest(self.criterion, CRITERIA),
            )  # fmt: skip
        open_unit = ("r", "alpha", "power", "confidence")
        for name in open_unit:
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{getattr(self, name)} is out of range", where=f"analysis.{name}", remedy="0 < x < 1")
        for name in ("delta_min", "overdispersion", "reference_loss"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(
                    f"{getattr(self, name)} is out of range", where=f"analysis.{name}", remedy="0 <= x < 1"
                )
        if not self.tolerance > 0:
            raise InputError(f"{self.tolerance} is not positive", where="analysis.tolerance", remedy="for example 0.05")
        if self.law_resamples and self.law_resamples < 99:
            raise InputError(
                f"{self.law_resamples} resamples cannot hold a 95% interval", where="analysis.law_resamples",
                remedy="0, or at least 99",
            )  # fmt: skip
        if self.resamples < 99:
            raise InputError(
                f"{self.resamples} resamples cannot resolve a p-value", where="analysis.resamples", remedy="at least 99"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> AnalysisSettings:
        """Settings from a study file's ``analysis`` section; an unknown key is an InputError with the nearest one."""
        known: dict[str, Any] = {field.name: field.default for field in fields(cls)}
        for key, value in values.items():
            if key not in known:
                raise InputError("unknown key", where=f"analysis.{key}", remedy=nearest(key, known))
            wanted = type(known[key])
            number = isinstance(value, int | float) and not isinstance(value, bool)
            right = (
                isinstance(value, str) if wanted is str else number and (wanted is float or float(value).is_integer())
            )
            if not right:
                raise InputError(
                    f"{value!r} is no {wanted.__name__}", where=f"analysis.{key}", remedy=f"for example {known[key]}"
                )
        return cls(**{key: type(known[key])(value) for key, value in values.items()})

    def record(self) -> dict[str, Any]:
        """The resolved settings, for JSON."""
        return asdict(self)
