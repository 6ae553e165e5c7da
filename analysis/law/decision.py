"""How much to infuse into a model that was not trained: the largest dose at which nothing is lost, with confidence.

Nothing is lost at a dose if the collapse of every group that has a law has not begun there, and the loss on general
text is within its tolerance. Each law gives the probability that its transition is beyond a dose (`law.new_model`):
from the draws of a likelihood of all curves, or by Student's t of points. The probabilities are multiplied. This takes
the laws as independent; where models that lose one thing early also lose another early, the product is too small, and
the dose errs towards caution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from megatron_kis.analysis.law.choice import NOTHING, Choice, own_first
from megatron_kis.analysis.law.law import Law
from megatron_kis.analysis.law.new_model import NewModel
from megatron_kis.analysis.law.predict import LARGEST, predict
from megatron_kis.analysis.law.prediction import Prediction
from megatron_kis.analysis.law.utility import Best, Weights, best_dose
from megatron_kis.analysis.runs.curves import Array, Curve
from megatron_kis.analysis.runs.groups import base_group
from megatron_kis.analysis.runs.slices import RATIO, USUAL, Slice
from megatron_kis.common.errors import InputError, first_of
from megatron_kis.common.files import fingerprint

SCHEMA = "kis.decision/1"
CONFIDENCE = 0.95
INDEPENDENT = (
    "the laws are treated as independent; if models that lose one thing early also lose another early, the dose is "
    "cautious"
)
NOT_RECOMMENDED = "kis law predict recommends nothing from this law"
USED_UP = "all tokens of the budget"
"""What limits a dose that takes all tokens."""
_SHOWN = 12
"""Most slices that an error lists."""


@dataclass(frozen=True)
class Amounts:
    """What a dose is in other units, as far as it is known."""

    infusion_ratio: float | None
    tokens: float | None
    """Tokens of domain data."""
    exposures: float | None
    """Exposures of all facts."""
    bits: float | None


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What one law says of a dose."""

    kind: str
    group: str
    probability: float
    """Probability that its transition is beyond the chosen dose; 1 without one."""
    alone: float
    """Largest dose by this law alone."""
    lost: float | None
    """Share of what was known that is lost at the transition; None where the law does not say."""
    method: str
    """`Prediction.interval_method`."""
    law: str
    """Fingerprint of the law."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What the law of the onset says of a dose."""

    probability: float
    """Probability that the chosen dose is beyond the onset; 0 without one."""
    dose: float
    """Smallest dose that is beyond the onset with the wanted confidence."""
    share: float | None
    """Share of their plateau to which facts are learned there; None where the law does not say."""
    law: str
    """Fingerprint of the law."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """How much to infuse at one (N, D)."""

    params: int
    tokens: int
    slice: Slice = USUAL
    """What the dose is, and what is held."""
    confidence: float
    dose: float | None
    """Largest dose, a whole number, at which nothing is lost with at least ``confidence``; None: not even 1."""
    probability: float | None
    """Probability that nothing is lost there."""
    limited_by: str
    """``collapse of background facts``, ``loss``, ... : what is lost first; or ``all tokens of the budget``."""
    amounts: Amounts | None
    """What the dose is in other units."""
    most: float | None
    """Dose that takes all tokens of the budget; None where that is not known, or the infusion ratio is held."""
    limits: tuple[Limit, ...]
    learned: Learned | None
    """None without a law of the onset."""
    best: Best | None = None
    """Dose of the largest expected utility; None where no utility was stated."""
    warnings: tuple[str, ...] = ()
    models: tuple[NewModel, ...] = field(repr=False, compare=False)
    """The laws of the limits, asked about this model, in the order of ``limits``."""
    onset: NewModel | None = field(default=None, repr=False, compare=False)

    def kept(self, x: Array) -> Array:
        """Returns the probability that nothing is lost at log doses ``x``."""
        return together(self.models)(x)

    def record(self) -> dict[str, Any]:
        """Returns JSON-ready values."""
        content = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("models", "onset")}
        for name in ("amounts", "learned", "best"):
            content[name] = None if content[name] is None else asdict(content[name])
        content["limits"] = [asdict(limit) for limit in self.limits]
        content["warnings"] = list(self.warnings)
        content["assumed"] = INDEPENDENT
        del content["slice"]
        return content | self.slice.record()


def decide(
    laws: Sequence[Law],
    params: float,
    tokens: float | None = None,
    *,
    axis: str | None = None,
    held_by: str | None = None,
    held: float | None = None,
    confidence: float = CONFIDENCE,
    weights: Weights | None = None,
    curves: Sequence[Curve] | None = None,
    where: str = "laws",
) -> Decision:
    """Decides how much to infuse at N = ``params`` and D = ``tokens`` (None: the budget of the laws).

    Args:
        laws: of a study.
        params: N.
        tokens: D.
        axis: what the dose is, where the laws are of several axes.
        held_by: what is held, ``nothing`` for nothing, where laws hold several things.
        held: the held value, where there are several.
        confidence: probability with which nothing is to be lost.
        weights: a utility, whose largest expectation is sought as well.
        curves: the study's, for a utility with a price of the loss.
        where: names the laws in errors.

    Raises:
        InputError: no law of a collapse or of the loss; laws of several slices to choose from; a part of the utility
            that the laws do not have.
    """
    asked, one = _chosen(laws, axis, held_by, held, where)
    if tokens is None:
        tokens = predict(asked[0][0], params, None, held=asked[0][1]).tokens
    models = [NewModel(law, params, tokens, own) for law, own in asked]
    limits = tuple(model for model in models if model.law.kind != "onset")
    onset = next((model for model in models if model.law.kind == "onset" and model.law.group == "infused"), None)
    reference = next((m.prediction for m in limits if m.prediction.infusion_ratio), limits[0].prediction)
    most = _most(reference)
    kept = together(limits)
    dose = _largest(kept, confidence, most)
    at = math.log(dose) if dose else -LARGEST
    probabilities = [float(model.beyond(np.array(at))) for model in limits]
    first = limits[int(np.argmin([float(m.beyond(np.array(max(at, 0.0)))) for m in limits]))]
    used_up = most is not None and dose is not None and dose + 1 > most
    found = Decision(
        params=round(params),
        tokens=round(tokens),
        slice=one,
        confidence=confidence,
        dose=dose,
        probability=None if dose is None else float(kept(np.array(at))),
        limited_by=USED_UP if used_up else words_of(first.law),
        amounts=None if dose is None else amounts_at(reference, dose),
        most=most,
        limits=tuple(_limit(m, p, confidence) for m, p in zip(limits, probabilities, strict=True)),
        learned=None if onset is None else _learned(onset, at if dose else None, confidence),
        warnings=tuple(_warnings(models, reference, most)),
        models=limits,
        onset=onset,
    )
    if weights is None:
        return found
    best = best_dose(models, weights, curves, most=most, confidence=confidence, where=where)
    return replace(found, best=best, warnings=(*found.warnings, *best.warnings))


def words_of(law: Law) -> str:
    """Names the subject of a law within a sentence."""
    if law.kind == "tolerance":
        return "loss on general text beyond its tolerance"
    return f"{law.kind} of {law.group} facts"


def together(models: Sequence[NewModel]) -> Callable[[Array], Array]:
    """Returns the probability that no transition has begun, as a function of the log dose."""

    def kept(x: Array) -> Array:
        return np.asarray(np.prod([model.beyond(x) for model in models], axis=0))

    return kept


def amounts_at(prediction: Prediction, dose: float) -> Amounts:
    """Returns what a dose is in other units, by what a prediction's law knows of them."""
    of_dose = dose / prediction.centre
    fixed = prediction.slice.held_by == RATIO
    ratio = prediction.infusion_ratio
    if ratio is not None and not fixed:
        ratio *= of_dose
    exposures, bits = prediction.exposures, prediction.bits
    if exposures is not None and (prediction.exposures_interval is not None or not fixed):
        exposures *= of_dose
    if bits is not None and prediction.bits_interval is not None:
        bits *= of_dose
    return Amounts(ratio, None if ratio is None else ratio * prediction.tokens, exposures, bits)


def decision_record(decision: Decision, created: datetime | None = None) -> dict[str, Any]:
    """Returns the decision as written to a file: its content, the date it was made, and the hash of both."""
    content = {"schema": SCHEMA, **decision.record()}
    content["created"] = (created or datetime.now(UTC)).isoformat(timespec="seconds")
    return content | {"hash": fingerprint(content)}


def _chosen(
    laws: Sequence[Law], axis: str | None, held_by: str | None, held: float | None, where: str
) -> tuple[list[tuple[Law, float | None]], Slice]:
    """Returns the laws of one slice, each with the held value that it is to be asked about, and the slice."""
    losing = [law for law in laws if law.kind in ("collapse", "tolerance")]
    if not losing:
        raise InputError(
            "no law of a collapse or of the loss on general text",
            where=where,
            remedy="a dose is limited by what it loses; kis law fit on runs that show it",
        )
    fitting = list(filter(Choice(axis=axis, held_by=held_by, held=held).fits, losing))
    there = first_of(sorted({_options(law) for law in losing} - {""}), _SHOWN, separator="; ")
    remedy = f"name one of: {there}" if there else "leave out --axis, --held-by and --held"
    if held is None:
        fitting = [law for law in fitting if law.range_held is None] or fitting
    slices = {replace(law.slice, held=law.slice.held if held is None else held) for law in fitting}
    if len(slices) != 1:
        problem = f"laws of {len(slices)} slices to choose from" if fitting else "no law of this slice"
        raise InputError(problem, where=where, remedy=remedy)
    one = slices.pop()
    if held is None and fitting[0].range_held is not None:
        raise InputError(f"the laws depend on the {one.held_by} held", where=where, remedy=remedy)
    of_slice = Choice(axis=one.axis, held_by=one.held_by or NOTHING, held=one.held)
    chosen = {(law.kind, law.group): law for law in own_first(list(filter(of_slice.fits, laws)))}
    # Background facts of one strength are a part of the whole group: they are not lost a second time.
    chosen = {
        (kind, group): law
        for (kind, group), law in chosen.items()
        if base_group(group) == group or (kind, base_group(group)) not in chosen
    }
    return [(law, one.held if law.range_held is not None else None) for law in chosen.values()], one


def _options(law: Law) -> str:
    """Returns the options that name a law's slice; empty for the usual one."""
    one = law.slice
    if one == USUAL:
        return f"--axis frequency --held-by {NOTHING}"
    held = law.range_held[0] if law.range_held else one.held
    said = f"--axis {one.axis} --held-by {one.held_by or NOTHING}"
    return said if held is None else f"{said} --held {held:.15g}"


def _most(prediction: Prediction) -> float | None:
    """Returns the dose that takes all tokens of the budget."""
    if prediction.infusion_ratio is None or prediction.slice.held_by == RATIO:
        return None
    return prediction.centre / prediction.infusion_ratio


def _largest(kept: Callable[[Array], Array], confidence: float, most: float | None) -> float | None:
    """Returns the largest whole dose at which ``kept`` is at least ``confidence``; None where 1 is too much."""
    log_dose = _crossing(lambda x: float(kept(np.array(x))) - confidence)
    dose = math.exp(log_dose) if most is None else min(math.exp(log_dose), most)
    whole = math.floor(dose * (1 + 1e-9))
    return float(whole) if whole >= 1 else None


def _limit(model: NewModel, probability: float, confidence: float) -> Limit:
    alone = math.exp(_crossing(lambda x: float(model.beyond(np.array(x))) - confidence))
    return Limit(
        kind=model.law.kind,
        group=model.law.group,
        probability=probability,
        alone=alone,
        lost=None if model.surface is None else model.surface.share,
        method=model.prediction.interval_method,
        law=model.law.fingerprint,
    )


def _learned(onset: NewModel, x: float | None, confidence: float) -> Learned:
    dose = math.exp(_crossing(lambda at: float(onset.beyond(np.array(at))) - (1 - confidence)))
    return Learned(
        probability=0.0 if x is None else 1 - float(onset.beyond(np.array(x))),
        dose=dose,
        share=None if onset.surface is None else 1 - onset.surface.share,
        law=onset.law.fingerprint,
    )


def _warnings(models: Sequence[NewModel], reference: Prediction, most: float | None) -> list[str]:
    """Returns what must be known in addition to the dose: the laws' warnings, each once."""
    found: dict[str, list[str]] = {}
    for model in models:
        said = [warning for warning in model.prediction.warnings if not warning.startswith("cannot be reached")]
        if model.prediction.recommended is None:
            said.append(NOT_RECOMMENDED)
        for warning in said:
            found.setdefault(warning, []).append(words_of(model.law))
    warnings = [f"{', '.join(names)}: {warning}" for warning, names in found.items()]
    if most is None and reference.slice.held_by != RATIO:
        warnings.append("what a dose costs is not known, so that it may take more than all tokens of the budget")
    return warnings


def _crossing(above: Callable[[float], float]) -> float:
    """Returns the log dose at which a falling function crosses zero, between -`LARGEST` and `LARGEST`."""
    from scipy.optimize import brentq  # slow to import, and seldom needed

    if above(-LARGEST) <= 0:
        return -LARGEST
    return LARGEST if above(LARGEST) >= 0 else float(brentq(above, -LARGEST, LARGEST, xtol=1e-9))
