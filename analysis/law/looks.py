"""The level of intervals that are looked at several times while a study is extended.

A study that is extended until its interval is narrow ends more often where the interval came out too narrow by chance.
The error that may be made, alpha = 1 - confidence, is therefore shared by the looks.

- Where the number of looks was declared (`AnalysisConfig.looks`): each look has the level of a group-sequential design
  with that many (Pocock, Biometrika 64, 1977). It is exact where each look adds as much as the first one, and
  cautious where it adds less.
- Otherwise look j has the level 1 - alpha_j with alpha_j = alpha * 6 / (pi^2 j^2), j = 1, 2, 3, ... These sum to alpha,
  so that, by Bonferroni's inequality, all intervals of all looks hold together with probability 1 - alpha, whatever
  decides when to stop (alpha spending: Lan and DeMets, Biometrika 70, 1983). The price is a level that rises with every
  look.

A study that was not extended, and did not declare looks, has one look by which nothing was decided: the whole of alpha.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import scipy

from megatron_kis.analysis.runs.curves import Array

_STEP = 0.05  # width of a cell of the sums, in standard deviations of one look


def level_at_look(confidence: float, look: int, planned: int = 0) -> float:
    """Returns the level of the interval at look number ``look`` (1, 2, ...), by which it is decided to continue or not.

    Args:
        confidence: what is to hold over all looks.
        look: which one.
        planned: number of looks that was declared; 0: none. Later looks have no narrower intervals.
    """
    alone = 1 - (1 - confidence) * 6 / (math.pi * look) ** 2
    if not planned:
        return alone
    together = group_sequential(confidence, planned)
    return together if look <= planned else max(alone, together)


def level_after(confidence: float, looked: int, planned: int = 0) -> float:
    """Returns the level of a study's intervals after it was extended ``looked`` times because of what they showed."""
    return level_at_look(confidence, looked + 1, planned) if looked or planned else confidence


def said_of(confidence: float, looked: int, planned: int = 0) -> str:
    """Says at which level intervals are, and why; empty where it is the usual one."""
    if not (looked or planned):
        return ""
    over = f"over all looks the study keeps {percent(confidence)}"
    level = percent(level_after(confidence, looked, planned))
    which = f"look {looked + 1}" + (f" of {planned} declared" if planned else "")
    beyond = ", more than were declared" if planned and looked >= planned else ""
    return f"{which}{beyond}: intervals of the law and its predictions are at {level}, so that {over}"


def percent(level: float) -> str:
    """Formats a level with two digits of its distance from 100%: ``95%``, ``98.4%``, ``99.76%``."""
    digits = max(1 - math.floor(math.log10(100 * (1 - level))), 0)
    text = f"{100 * level:.{digits}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + "%"


@cache
def group_sequential(confidence: float, looks: int) -> float:
    """Returns Pocock's level: ``looks`` intervals of it, of equal growth, all hold with probability ``confidence``."""

    def held(z: float) -> float:
        return _inside(z, looks) - confidence

    single = float(scipy.special.ndtri(0.5 + confidence / 2))
    bonferroni = float(scipy.special.ndtri(1 - (1 - confidence) / (2 * looks)))
    from scipy.optimize import brentq  # slow to import, and seldom needed

    return 2 * float(scipy.special.ndtr(brentq(held, single - 1e-2, bonferroni + 1e-2, xtol=1e-6))) - 1


def _inside(z: float, looks: int) -> float:
    """Returns the probability that sums of 1 to ``looks`` standard normal numbers are all within z sqrt(their number).

    By recursion over the looks (Armitage, McPherson and Rowe 1969), on a grid.
    """
    grid, width = _cells(z)
    mass = width * _density(grid)
    for look in range(2, looks + 1):
        new, width = _cells(z * math.sqrt(look))
        mass = width * (_density(new[:, None] - grid) @ mass)
        grid = new
    return float(mass.sum())


def _cells(reach: float) -> tuple[Array, float]:
    """Returns the middles of cells between -reach and reach, and their width."""
    count = math.ceil(2 * reach / _STEP)
    width = 2 * reach / count
    middles: Array = (np.arange(count, dtype=np.float64) + 0.5) * width - reach
    return middles, width


def _density(z: Array) -> Array:
    return np.asarray(np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi))
