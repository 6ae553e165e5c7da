"""The dose of the largest expected utility, over draws of the behaviour of a model that was not trained.

    U(dose) = w recall - p loss + v retention

recall is the share of the infused facts that the model knows (chance-corrected), retention the share of what it knew of
the background facts that it still knows, and loss the percent by which its loss on general text exceeds that without
infusion. Recall and retention are whole curves from the likelihoods of all curves (`law.surface.Surface.curves`): the
rise of the infused facts, times what their own collapse leaves. A draw is one possible model. The dose that
is named has the largest mean utility; each draw also has a best dose of its own, whose spread is the interval; and the
difference of their utilities is the regret of not knowing which draw is true.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_kis.analysis.law.loss_rise import loss_rise
from megatron_kis.analysis.law.new_model import NewModel
from megatron_kis.analysis.law.predicted_curve import EARLY, REPEATS, kept, known
from megatron_kis.analysis.runs.curves import Array, Curve
from megatron_kis.common.errors import InputError

STEP = 1.5
"""Factor of a step of the dose."""
_GRID = 240  # doses that are tried
_REACH = 4.0  # factor beyond the transitions up to which doses are tried


@dataclass(frozen=True)
class Weights:
    """The worth of each outcome; utilities are compared, so that only the ratios of the three matter."""

    recall: float = 0.0
    """Of all infused facts known."""
    retention: float = 0.0
    """Of all background knowledge kept."""
    loss_price: float = 0.0
    """Of one percent of loss on general text."""

    def __post_init__(self) -> None:
        """Refuses weights that are negative, or all zero."""
        for name, value in (
            ("--recall", self.recall),
            ("--retention", self.retention),
            ("--loss-price", self.loss_price),
        ):
            if not 0 <= value < math.inf:
                raise InputError(f"is {value:g}", where=name, remedy="a number of at least 0")
        if not (self.recall or self.retention or self.loss_price):
            remedy = "state at least one weight above 0"
            raise InputError("every weight is 0", where="--recall, --retention, --loss-price", remedy=remedy)


@dataclass(frozen=True, kw_only=True)
class Best:
    """The dose of the largest expected utility."""

    dose: float
    interval: tuple[float, float]
    """Middle quantiles of the best dose of each draw, at the decision's confidence."""
    utility: float
    """Expected utility at the dose."""
    without: float
    """Expected utility without infusion."""
    recall: float | None
    """Expected parts at the dose; None where they have no weight."""
    retention: float | None
    loss_percent: float | None
    regret: float
    """Expected loss of utility against a dose chosen in knowledge of the draw."""
    step: float
    """Factor of the next two."""
    lower: float | None
    """Expected loss of utility at a dose lower by one step; None where none is."""
    higher: float | None
    """The same one step higher; None where the budget has no tokens for it."""
    draws: int
    weights: Weights
    warnings: tuple[str, ...] = ()


def best_dose(
    models: Sequence[NewModel],
    weights: Weights,
    curves: Sequence[Curve] | None,
    *,
    most: float | None,
    confidence: float,
    where: str,
    seed: int = 0,
) -> Best:
    """Returns the dose of the largest expected utility.

    Args:
        models: the laws of one slice, asked about the model.
        weights: the utility.
        curves: the study's, which tell how the loss rises; needed for a price of it.
        most: largest dose that the budget has tokens for; None where that is not known.
        confidence: of the interval.
        where: names the laws in errors.
        seed: of the draws.

    Raises:
        InputError: a weight of something that the laws do not say.
    """
    parts = _parts(models, weights, where, priced=curves is not None)
    generator = np.random.default_rng([seed, 17])
    x = _doses(list(parts.values()), most)
    count = REPEATS * min((len(m.surface.bent) for m in parts.values() if m.surface is not None), default=500)
    utility, means = np.zeros((count, len(x))), {}
    if "onset" in parts:
        recall = known(parts["onset"], x, count, generator)
        if "collapse of infused" in parts:
            recall = recall * kept(parts["collapse of infused"], x, count, generator)
        utility, means["recall"] = utility + weights.recall * recall, recall.mean(axis=0)
    if "collapse of background" in parts:
        retention = kept(parts["collapse of background"], x, count, generator)
        utility, means["retention"] = utility + weights.retention * retention, retention.mean(axis=0)
    if "loss" in parts:
        rise = loss_rise(curves or (), parts["loss"].law, where="--curves")
        percent = 100 * rise.excesses(x, parts["loss"].draws(count, generator), generator)
        utility, means["loss_percent"] = utility - weights.loss_price * percent, percent.mean(axis=0)
    return _best(utility, means, x, weights, confidence, most)


def _best(
    utility: Array, means: dict[str, Array], x: Array, weights: Weights, confidence: float, most: float | None
) -> Best:
    """Returns the best dose of utilities [R, L] at log doses [L], of which the first is no infusion."""
    expected = utility.mean(axis=0)
    at = int(expected.argmax())
    dose = np.where(np.arange(len(x)) == 0, 0.0, np.exp(x))
    tail = (1 - confidence) / 2
    low, high = np.quantile(dose[utility.argmax(axis=1)], (tail, 1 - tail), method="nearest")
    steps = round(math.log(STEP) / (x[2] - x[1]))
    warnings = []
    if at == len(x) - 1:
        last = "all tokens of the budget" if most is not None else "the largest dose tried"
        warnings.append(f"utility still rises at {last}: nothing that has a weight is lost before")
    return Best(
        dose=float(dose[at]),
        interval=(float(low), float(high)),
        utility=float(expected[at]),
        without=float(expected[0]),
        recall=_at(means.get("recall"), at),
        retention=_at(means.get("retention"), at),
        loss_percent=_at(means.get("loss_percent"), at),
        regret=float((utility.max(axis=1) - utility[:, at]).mean()),
        step=STEP,
        lower=float(expected[at] - expected[at - steps]) if at - steps >= 1 else None,
        higher=float(expected[at] - expected[at + steps]) if at >= 1 and at + steps < len(x) else None,
        draws=len(utility),
        weights=weights,
        warnings=tuple(warnings),
    )


def _at(values: Array | None, index: int) -> float | None:
    return None if values is None else float(values[index])


def _parts(models: Sequence[NewModel], weights: Weights, where: str, *, priced: bool) -> dict[str, NewModel]:
    """Returns the laws that a utility needs, by what they predict."""
    by_key = {(model.law.kind, model.law.group): model for model in models}
    found = {}
    if weights.recall:
        found["onset"] = _curves(by_key.get(("onset", "infused")), "the onset of infused facts", "--recall", where)
        if ("collapse", "infused") in by_key:
            collapse = by_key["collapse", "infused"]
            found["collapse of infused"] = _curves(collapse, "the collapse of infused facts", "--recall", where)
    if weights.retention:
        collapse_of = by_key.get(("collapse", "background"))
        what = "the collapse of background facts"
        found["collapse of background"] = _curves(collapse_of, what, "--retention", where)
    if weights.loss_price:
        loss = by_key.get(("tolerance", "general"))
        if loss is None:
            raise InputError(
                f"{where} has no law of the loss tolerance",
                where="--loss-price",
                remedy="runs with a validation loss, some beyond the tolerance; or leave it out",
            )
        if not priced:
            raise InputError(
                "how the loss rises with the dose is not in a law file",
                where="--loss-price",
                remedy="add --curves, the study's curves.csv; or leave it out",
            )
        found["loss"] = loss
    return found


def _curves(model: NewModel | None, what: str, option: str, where: str) -> NewModel:
    """Returns a law that can predict whole curves."""
    if model is None:
        raise InputError(f"{where} has no law of {what}", where=option, remedy="fit one from runs that show it")
    if model.surface is None:
        raise InputError(
            f"the law of {what} in {where} is from points alone, which contain no rates",
            where=option,
            remedy="fit it from runs or curves (kis law fit SOURCE) in which three sizes show it on both sides, with "
            "criterion: retention; or leave it out",
        )
    return model


def _doses(models: Sequence[NewModel], most: float | None) -> Array:
    """Returns log doses from none over 1 to where all transitions have passed, or all tokens are used."""
    ends = [end for model in models for end in model.prediction.prediction_interval]
    last = _REACH * max(ends) if most is None else min(most, _REACH * max(ends))
    first = min(1.0, last / STEP**2)
    return np.concatenate([[EARLY], np.linspace(math.log(first), math.log(last), _GRID)])
