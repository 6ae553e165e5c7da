"""The whole curve of a model that was not trained: the share known at every dose, with a band.

A draw is one possible model: where it declines or learns, how steeply, from which plateau
(`law.surface.Surface.curves`). The band holds the stated share of the draws at each dose; it is pointwise. Infused
facts are first learned: their curve is the rise of the onset's law times what their own collapse leaves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from megatron_kis.analysis.law.law import Law
from megatron_kis.analysis.law.new_model import NewModel
from megatron_kis.analysis.runs.curves import Array
from megatron_kis.common.files import atomic_write

EARLY = -50.0
"""Log dose that stands for no infusion."""
REPEATS = 4
"""Models drawn with each draw of the parameters."""
_MODELS = 1920
_DOSES = 60
_REACH = 10.0  # factor below and above the prediction interval


@dataclass(frozen=True)
class PredictedCurve:
    """Rates of answers that are right against the dose, all [L]; the first dose is 0."""

    dose: Array
    rate: Array
    """Median over possible models."""
    low: Array
    """Lower end of the band."""
    high: Array


def predicted_curve(
    model: NewModel, rise: NewModel | None = None, *, confidence: float, seed: int = 0
) -> PredictedCurve:
    """Returns the whole curve of a new model.

    Args:
        model: a law of an onset or a collapse with the likelihood of all curves, asked about the model.
        rise: the onset of the same facts, for a collapse of infused facts.
        confidence: share of the models in the band, at each dose.
        seed: of the draws.
    """
    assert model.surface is not None
    ends = [end for one in (model, rise) if one is not None for end in one.prediction.prediction_interval]
    x = np.concatenate([[EARLY], np.linspace(math.log(min(ends) / _REACH), math.log(max(ends) * _REACH), _DOSES)])
    generator = np.random.default_rng([seed, 19])
    if rise is None:
        shares = known(model, x, _MODELS, generator)
    else:
        shares = known(rise, x, _MODELS, generator) * kept(model, x, _MODELS, generator)
    middle, low, high = band(shares, confidence)
    chance = model.surface.chance
    rates = [chance + (1 - chance) * part for part in (middle, low, high)]
    return PredictedCurve(np.concatenate([[0.0], np.exp(x[1:])]), *rates)


def rises(onset: Law, law: Law) -> bool:
    """Returns whether ``onset`` predicts how the facts are learned whose collapse ``law`` describes."""
    mine = (onset.group, onset.slice, onset.range_held is None) == (law.group, law.slice, law.range_held is None)
    return mine and (onset.kind, law.kind) == ("onset", "collapse") and onset.surface is not None


def band(shares: Array, confidence: float) -> tuple[Array, Array, Array]:
    """Returns the median and both ends of the pointwise band [L] of draws [R, L]."""
    tail = (1 - confidence) / 2
    low, middle, high = np.quantile(shares, (tail, 0.5, 1 - tail), axis=0)
    return middle, low, high


def known(model: NewModel, x: Array, count: int, generator: np.random.Generator) -> Array:
    """Returns [count, L] shares of facts known at log doses ``x``, chance-corrected, of possible models."""
    assert model.surface is not None
    rates = [model.surface.curves(x, *model.at, generator) for _ in range(REPEATS)]
    shares: Array = (np.concatenate(rates)[:count] - model.surface.chance) / (1 - model.surface.chance)
    return shares


def kept(model: NewModel, x: Array, count: int, generator: np.random.Generator) -> Array:
    """Returns [count, L] shares that are kept of what is known without infusion, whose log dose is the first."""
    shares = known(model, x, count, generator)
    return np.asarray(shares / np.maximum(shares[:, :1], 1e-9))


def write_predicted_curve(curve: PredictedCurve, path: Path) -> None:
    """Writes a predicted curve as CSV: dose, rate, low, high."""
    names = [field.name for field in fields(curve)]
    rows = np.column_stack([getattr(curve, name) for name in names])
    with atomic_write(path) as file:
        file.write(",".join(names) + "\n")
        file.writelines(",".join(f"{value:.6g}" for value in row) + "\n" for row in rows)
