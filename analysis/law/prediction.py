"""A prediction for a model that was not trained, and its dated, hashed record."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatron_kis.analysis.runs.slices import USUAL, Slice
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import fingerprint, read_json

SCHEMA = "kis.prediction/1"
_LATER = (
    "recommended_note",
    "exposures",
    "exposures_interval",
    "bits",
    "bits_interval",
    "straight_interval",
    "points_interval",
)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """F* (or K*) of one (N, D): intervals at the law's level of confidence, F in exposures per fact.

    ``slice`` says whether the dose is F or the number of facts K, and what is held.
    """

    kind: str
    group: str
    slice: Slice = USUAL
    params: int
    tokens: int
    centre: float
    confidence_interval: tuple[float, float]
    """Interval of the law's mean at this (N, D)."""
    prediction_interval: tuple[float, float]
    """Interval of a new model: the headline."""
    recommended: float | None
    """Lower end of the prediction interval: overshooting collapses, undershooting only under-specialises. For an onset
    the upper end: facts shown more often are learnt. Not more than all tokens allow with the study's facts. None from
    an unvalidated law, or one that the points do not fit."""
    recommended_note: str | None = None
    """Why nothing is recommended, or not the end of the interval."""
    confidence: float
    """Level of the intervals."""
    extrapolation_factor: float
    """Factor by which N (or D) is beyond the fitted range; 1 inside it."""
    extrapolation: dict[str, float]
    """The same for ``params`` and ``tokens`` separately, and for ``held`` of a law of several slices."""
    infusion_ratio: float | None
    """Infusion ratio at the centre, if facts cost as many tokens as in the study."""
    exposure_tokens: float | None
    """Tokens of domain data at the centre: copies of each fact times what one copy of all facts costs."""
    exposure_tokens_interval: tuple[float, float] | None
    """The same at the ends of the prediction interval."""
    exposures: float | None = None
    """Exposures of all facts at the centre: K * F."""
    exposures_interval: tuple[float, float] | None = None
    """The same at the ends of the prediction interval; None where they do not depend on the dose."""
    bits: float | None = None
    """Bits of the facts at the centre."""
    bits_interval: tuple[float, float] | None = None
    """The same at the ends of the prediction interval; None where they do not depend on the dose."""
    domain: dict[str, float | None] | None
    """Meaning for other facts than the study's: ``copies_per_fact`` and ``tokens`` at the recommended end if the limit
    applies to each fact (F), ``copies_per_fact_by_tokens`` if it applies to their tokens together (the study's exposure
    tokens shared by these facts; None if the cost of F is unknown), and ``copies_safe``, the smaller one. None
    where nothing is recommended."""
    interval_method: str
    """``surface``: from the likelihood of all curves (`law.surface`), with a law that may bend; ``t``: from the points,
    Student's t of the law's mean and of the scatter (`half_width`), with a REML-type sigma and Knapp-Hartung
    scaling; ``t and bend``: the same of a law that may bend (`law.bend`)."""
    straight_interval: tuple[float, float] | None = None
    """Interval of a new model if the law is as straight up to there as it is over the sizes that were trained."""
    points_interval: tuple[float, float] | None = None
    """Interval of a new model from the points alone, a check of one that is from all curves."""
    bootstrap_interval: tuple[float, float] | None
    """Interval of a new model by the bootstrap's critical values, a check of the headline; None if none was run."""
    bootstrap_method: str | None
    """Kind of bootstrap: of curves through both stages, or of points from their own intervals."""
    baselines: dict[str, float]
    """Predictions of the constant law (geometric mean) and of the largest model's value."""
    unvalidated: bool
    """Whether the law has too few informative points to rely on."""
    warnings: tuple[str, ...]
    law: dict[str, Any]
    """The law's formula, coefficients and fingerprint."""

    @property
    def bits_per_param(self) -> float | None:
        """Bits of the facts at the centre for each parameter."""
        return None if self.bits is None else self.bits / self.params

    @property
    def bits_per_param_interval(self) -> tuple[float, float] | None:
        """The same at the ends of the prediction interval."""
        if self.bits_interval is None:
            return None
        return self.bits_interval[0] / self.params, self.bits_interval[1] / self.params

    def record(self) -> dict[str, Any]:
        """Returns JSON-ready values; what older predictions do not have is left out where it says nothing."""
        content = {key: value for key, value in asdict(self).items() if key not in _LATER or value is not None}
        del content["slice"]
        for name in ("bits_per_param", "bits_per_param_interval"):
            if getattr(self, name) is not None:
                content[name] = getattr(self, name)
        return content | self.slice.record()


def prediction_record(prediction: Prediction, created: datetime | None = None) -> dict[str, Any]:
    """Returns the prediction as written to a file: its content, the date it was made, and the hash of both."""
    content: dict[str, Any] = {"schema": SCHEMA, **prediction.record()}
    # As JSON will read it back, so that the hash does not depend on tuples and lists.
    content = {key: list(value) if isinstance(value, tuple) else value for key, value in content.items()}
    content["created"] = (created or datetime.now(UTC)).isoformat(timespec="seconds")
    return content | {"hash": fingerprint(content)}


def load_predictions(path: Path | str) -> list[dict[str, Any]]:
    """Reads a prediction file (one prediction, or a list of them under ``predictions``) and checks every hash.

    Raises:
        InputError: not a prediction file, or one that was changed after it was written.
    """
    record = read_json(Path(path), SCHEMA)
    items = record.get("predictions", [record])
    if not isinstance(items, list) or not items:
        raise InputError("holds no prediction", where=str(path))
    for index, item in enumerate(items):
        where = str(path) if len(items) == 1 else f"{path} prediction {index + 1}"
        if not isinstance(item, dict) or "hash" not in item:
            raise InputError(
                "a prediction without a hash", where=where, remedy="write it with kis law predict --output"
            )
        if fingerprint({key: value for key, value in item.items() if key != "hash"}) != item["hash"]:
            raise InputError("was changed after it was written: its hash does not fit", where=where)
    return items
