"""The choices an analysis makes, in one frozen record that is declared before the data are seen."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    ModelWrapValidatorHandler,
    NonNegativeInt,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from megatron_kis.common.complaints import input_error
from megatron_kis.common.configuration import Config
from megatron_kis.common.errors import nearest
from megatron_kis.common.terms import SPLITS

CRITERIA = ("retention", "hinge", "tolerance_rule", "general_loss", "half_margin")

_LATER: dict[str, Any] = {"axis": "auto", "margin_share": 0.5, "outcome": "accuracy", "looks": 0, "looked": 0}
"""Settings that came later, with the value that older versions worked by."""

SECTION = "analysis"
"""Key of these settings in a study file."""


def _criterion(name: str) -> str:
    if name not in CRITERIA:
        msg = f"{name!r} is not a criterion; {nearest(name, CRITERIA)}"
        raise ValueError(msg)
    return name


def _split(name: str) -> str:
    if name not in SPLITS:
        msg = f"{name!r} is not a split of the templates; {nearest(name, SPLITS)}"
        raise ValueError(msg)
    return name


def _enough_resamples(value: int) -> int:
    if value < 99:
        msg = f"{value} resamples cannot resolve a p-value; at least 99"
        raise ValueError(msg)
    return value


def _no_or_enough_resamples(value: int) -> int:
    if value and value < 99:
        msg = f"{value} resamples cannot hold a 95% interval; 0, or at least 99"
        raise ValueError(msg)
    return value


_OpenShare = Annotated[float, Field(gt=0, lt=1)]
_Share = Annotated[float, Field(ge=0, lt=1)]


class AnalysisConfig(Config):
    """Settings of criteria, law and report; they are written into every result."""

    split: Annotated[str, AfterValidator(_split), Field(json_schema_extra={"enum": list(SPLITS)})] = "held_out"
    """Template split that the criteria use. Held-out templates distinguish memory of a fact from memory of a
    sentence."""

    criterion: Annotated[str, AfterValidator(_criterion), Field(json_schema_extra={"enum": list(CRITERIA)})] = (
        "retention"
    )
    """Definition of a collapse: ``retention`` (the dose at which the share r of what was known is lost), ``hinge`` (tau
    of a rise-then-fall model), ``tolerance_rule`` (the last dose within r of the maximum), ``general_loss`` (the dose
    at which the loss on general text leaves its tolerance) or ``half_margin`` (the dose at which the mean margin has
    fallen to margin_share of its highest level)."""

    onset_share: _OpenShare = 0.5
    """Share of the plateau's excess over chance that defines the onset: the dose at which this much is learned."""

    margin_share: _OpenShare = 0.5
    """Share of its highest level to which the mean margin must have fallen, for ``criterion: half_margin``."""

    outcome: Annotated[Literal["accuracy", "pairwise"], Field(json_schema_extra={"enum": ["accuracy", "pairwise"]})] = (
        "accuracy"
    )
    """Rate that the onset and the criteria ``retention``, ``hinge`` and ``tolerance_rule`` use: ``accuracy`` (share of
    questions answered correctly) or ``pairwise`` (share of wrong options that score below the right one; chance
    0.5)."""

    axis: Annotated[
        Literal["auto", "frequency", "facts"], Field(json_schema_extra={"enum": ["auto", "frequency", "facts"]})
    ] = "auto"
    """Dose along which transitions are found: ``frequency`` (F, at each number of facts), ``facts`` (the number K of
    infused facts, at each F or infusion ratio), or ``auto``: facts if the runs vary K, and F if they do not or if some
    K has four doses of it."""

    scoring: str = "statement"
    """Scoring rule that the criteria use: the default is the summed log-likelihood of the whole statement, with the
    object anywhere in it."""

    r: _OpenShare = 0.10
    """Relative fall that marks the collapse point. ``retention``: the share of the plateau's excess over chance that is
    lost. ``tolerance_rule``: the curve stays below (1 - r) of its maximum."""

    delta_min: _Share = 0.05
    """Smallest fall, in rate, that may be called a collapse. A smaller fall is inconclusive, even if it is certain."""

    alpha: _OpenShare = 0.05
    """Level of the tests, for a whole curve. The onset's levels share it, and the collapse test is calibrated for
    it."""

    tolerance: float = Field(0.05, gt=0)
    """Relative excess of the validation loss over that at F = 0 that counts as a collapse by loss tolerance."""

    overdispersion: _Share = 0.01
    """Intraclass correlation of the facts of one run (what a seed moves together) that is expected before the study's
    seeds and curves are seen. It weighs like three degrees of freedom; 0.01 is a seed standard deviation of 0.05 at a
    rate of one half, as two seeds of small trials showed."""

    reference_loss: _Share = 0.5
    """Share of the peak's excess over chance: "no collapse" is only said if the loss of this share would have been
    visible. 0 means the smallest collapse, delta_min, which needs about a thousand facts."""

    power: _OpenShare = 0.8
    """Least probability with which that loss would have been visible. Otherwise the status is inconclusive."""

    resamples: Annotated[int, AfterValidator(_enough_resamples), Field(json_schema_extra={"minimum": 99})] = 999
    """Parametric bootstrap resamples of the test against "no collapse"."""

    law_resamples: Annotated[int, AfterValidator(_no_or_enough_resamples)] = 999
    """Resamples and draws for the law's intervals: of all curves together, and of the bootstrap that checks them; 0:
    intervals from the points alone."""

    bend: float = Field(0.025, ge=0)
    """Standard deviation of the law's curvature, the coefficient of (log N)^2, before the data: a law that is straight
    over the trained sizes may bend beyond them. 0 trusts the straight line. Chinchilla's minima bend by 0.034."""

    law: str = "auto"
    """The law's form: ``auto`` (chosen by the largest N, held out) or a candidate's name, such as ``N and D``.
    Where slices are fitted together, ``N`` and ``N and D`` have a term in what is held."""

    confidence: _OpenShare = 0.95
    """Level of the law's confidence and prediction intervals."""

    looks: NonNegativeInt = 0
    """Number of looks at the results, declared beforehand, before more runs are added; 0: not declared. Intervals then
    hold over all looks together, and are narrower than without a number (``looked``)."""

    looked: NonNegativeInt = 0
    """Number of times that the study was extended because of what its results showed. ``kis study next --write`` counts
    them in the study's folder; intervals are widened so that ``confidence`` holds over all looks."""

    seed: int = 0
    """Seed of the resampling, so that the same input gives the same output."""

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, values: Any, handler: ModelWrapValidatorHandler[AnalysisConfig], info: ValidationInfo) -> Any:
        """Settings made in Python are refused as those of a file are: with the key and what would be right."""
        try:
            return handler(values)
        except ValidationError as error:
            if info.context is not None:  # of a file: its reader names the place
                raise
            raise input_error(error, cls, values, section=SECTION) from None

    def record(self) -> dict[str, Any]:
        """Returns the resolved settings, for JSON; those that came later only where they have another value."""
        return {k: v for k, v in self.model_dump().items() if k not in _LATER or v != _LATER[k]}
