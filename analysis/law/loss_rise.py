"""How the loss on general text rises with the dose, for a utility that has a price of it.

    loss / loss without infusion - 1 = e (dose / dose*)^p

with the dose* of the law of the loss tolerance. e and p are fitted to each (N, D), and vary between models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_kis.analysis.criteria.loss import loss_excess
from megatron_kis.analysis.law.law import Law
from megatron_kis.analysis.runs.curves import Array, Curve
from megatron_kis.common.errors import InputError

_BELOW = 8.0  # factor below dose* up to which levels count: a rise that is smaller is noise
_FEWEST = 3  # (N, D)


@dataclass(frozen=True)
class LossRise:
    """The rise of the loss, over models."""

    excess: float
    """e: relative excess of the loss at dose*, geometric mean."""
    power: float
    """p, mean."""
    scatter: float
    """Standard deviation of p between models, with that of its mean."""
    cells: int
    """Number of (N, D), each of them once for every slice of the law."""

    def excesses(self, x: Array, log_star: Array, generator: np.random.Generator) -> Array:
        """Returns [R, L] relative excesses of models with dose* ``exp(log_star)`` [R], at log doses ``x`` [L]."""
        t = generator.standard_t(max(self.cells - 1, 1), size=len(log_star))
        power = np.maximum(self.power + self.scatter * t, 0.0)
        return np.asarray(self.excess * np.exp(np.minimum(power[:, None] * (x - log_star[:, None]), 50.0)))


def loss_rise(curves: Sequence[Curve], law: Law, *, where: str) -> LossRise:
    """Fits the rise of the loss in a study's curves.

    Args:
        curves: of the study; those of one (N, D) and slice have the same losses.
        law: of the loss tolerance.
        where: names the curves in errors.

    Raises:
        InputError: fewer than three (N, D) show it.
    """
    stars = {(p["params"], p["tokens"], p.get("held")): p["value"] for p in law.points if p["value"]}
    found: dict[tuple[int, int, float | None], tuple[float, float]] = {}
    for curve in curves:
        cell = curve.params, curve.tokens, None if law.range_held is None else curve.slice.held
        star = stars.get(cell)
        if star is None or not _same_slice(curve, law) or cell in found:
            continue
        excess = loss_excess(curve)
        with np.errstate(invalid="ignore"):
            told = (curve.dose > star / _BELOW) & (excess > 0)
        if told.sum() >= 2:
            power, log_excess = np.polyfit(np.log(curve.dose[told] / star), np.log(excess[told]), 1)
            found[cell] = float(log_excess), float(power)
    if len(found) < _FEWEST:
        raise InputError(
            f"{len(found)} models show how the loss rises with the dose",
            where=where,
            remedy=f"a price of the loss needs {_FEWEST} models of the law with two levels above the loss without "
            "infusion; leave out --loss-price",
        )
    log_excess, power = np.array(list(found.values())).T
    spread = float(power.std(ddof=1)) * math.sqrt(1 + 1 / len(found))
    return LossRise(math.exp(float(log_excess.mean())), float(power.mean()), spread, len(found))


def _same_slice(curve: Curve, law: Law) -> bool:
    if law.range_held is not None:
        return (curve.slice.axis, curve.slice.held_by) == (law.slice.axis, law.slice.held_by)
    return curve.slice == law.slice
