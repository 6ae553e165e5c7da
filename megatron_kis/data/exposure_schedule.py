"""When exposures come: schedules over a run, as piecewise linear maps between its time and the share that was shown.

Time and share both run from 0 to 1. ``uniform`` is the diagonal; a window is flat outside of it; a burst is steep. The
general text that remains next to a schedule (``displaced`` background facts are in it) has the same kind of map.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_kis.common.errors import InputError, nearest
from megatron_kis.common.files import fingerprint

FloatArray = NDArray[np.float64]

_LAST_MOMENT = np.nextafter(1.0, 0.0)
_STEPS = 16  # equal steps in which a loaded schedule's density falls or rises
_MOST_BURSTS, _NARROWEST = 10_000, 1e-6  # beyond these the edges of bursts would meet in rounding
_SETTINGS: dict[str, tuple[str, ...]] = {
    "uniform": (),
    "window": ("start", "end"),
    "front_loaded": (),
    "back_loaded": (),
    "final": ("share",),
    "bursts": ("count", "width"),
}
KINDS = tuple(_SETTINGS)
_WHERE = "infusion.schedule"


@dataclass(frozen=True)
class Schedule:
    """The share of exposures shown by each time, as knots of a piecewise linear map."""

    times: tuple[float, ...]
    """Times of the knots, rising strictly from 0 to 1."""

    shares: tuple[float, ...]
    """Shares of all exposures shown by these times, not falling, from 0 to 1."""

    description: str = "uniform"
    """The schedule as in a configuration."""

    @cached_property
    def _times(self) -> FloatArray:
        return np.array(self.times)

    @cached_property
    def _shares(self) -> FloatArray:
        return np.array(self.shares)

    @property
    def is_uniform(self) -> bool:
        """Whether the schedule is uniform: the share of exposures equals the share of time."""
        return len(self.times) == 2

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the knots; descriptions of different schedules may read alike."""
        return fingerprint([self.times, self.shares])

    @property
    def peak(self) -> float:
        """Largest density, relative to that of a uniform schedule."""
        return float((np.diff(self._shares) / np.diff(self._times)).max())

    def time(self, shares: FloatArray) -> FloatArray:
        """Returns the times by which ``shares`` (in [0, 1)) are shown; they rise with the shares, which keeps order."""
        if self.is_uniform:
            return shares
        return _between(shares, self._shares, self._times)

    def share(self, times: FloatArray) -> FloatArray:
        """Returns the shares shown by times in [0, 1]."""
        if self.is_uniform:
            return times
        inside = np.minimum(times, _LAST_MOMENT)
        return np.where(times >= 1.0, 1.0, _between(inside, self._times, self._shares))

    def split(self, at: float) -> tuple[float, Schedule, Schedule]:
        """Cuts the schedule in two at a time in (0, 1).

        Returns:
            The share that is shown by then, and the schedules of the time before and after, each of its own exposures.
        """
        cut = float(self.share(np.array([at]))[0])
        knots = list(zip(self.times, self.shares, strict=True))
        first = [(t / at, s / cut) for t, s in knots if t < at] if cut > 0.0 else []
        last = [((t - at) / (1 - at), (s - cut) / (1 - cut)) for t, s in knots if t > at] if cut < 1.0 else []
        return (
            cut,
            _of_knots([*first, (1.0, 1.0)], f"{self.description} until {at:g}") if first else UNIFORM,
            _of_knots([(0.0, 0.0), *last[:-1], (1.0, 1.0)], f"{self.description} from {at:g}") if last else UNIFORM,
        )

    def general(self, ratio: float) -> Schedule:
        """Returns the map of general text where exposures of this schedule take ``ratio`` of the tokens.

        By time t exposures of the share s(t) have taken ratio s(t) of all tokens, and general text the rest of t:
        (t - ratio s(t)) / (1 - ratio) of its own.

        Raises:
            InputError: at some time the exposures would take more than all tokens.
        """
        if self.is_uniform or not ratio:
            return UNIFORM
        if ratio >= 1.0 or ratio * self.peak > 1.0 + 1e-9:
            raise InputError(
                f"{self.description} takes {ratio * self.peak:.3f} of the tokens where it is densest",
                where=_WHERE,
                remedy=f"at most {1 / self.peak:.4f} of all tokens can be infused under it",
            )
        shares = np.maximum.accumulate((self._times - ratio * self._shares) / (1.0 - ratio))
        return Schedule(self.times, (0.0, *map(float, shares[1:-1]), 1.0), f"general text next to {self.description}")


UNIFORM = Schedule((0.0, 1.0), (0.0, 1.0))


def _between(values: FloatArray, given: FloatArray, wanted: FloatArray) -> FloatArray:
    """Interpolates linearly; written out, because ``np.interp`` may fuse operations and differ between processors."""
    piece = np.searchsorted(given, values, side="right") - 1
    within = (values - given[piece]) / (given[piece + 1] - given[piece])
    between: FloatArray = wanted[piece] + within * (wanted[piece + 1] - wanted[piece])
    return between


def schedule_of(value: str | Mapping[str, Any] | Schedule) -> Schedule:
    """Returns a schedule from its name, or from its name under ``kind`` with its settings.

    ``uniform``; ``window`` (``start``, ``end``, shares of the run); ``front_loaded`` and ``back_loaded`` (density falls
    to, or rises from, nearly nothing in 16 equal steps); ``final`` (``share``: the last part of the run, as in
    annealing); ``bursts`` (``count``, ``width``: each burst is in the middle of one of ``count`` equal parts of the run
    and takes the share ``width`` of it).

    Raises:
        InputError: an unknown kind or setting, one that is missing, or one out of range.
    """
    if isinstance(value, Schedule):
        return value
    settings = {"kind": value} if isinstance(value, str) else dict(value)
    if "kind" not in settings:
        raise InputError("'kind' is missing", where=_WHERE, remedy=f"give one of {', '.join(KINDS)}")
    kind = settings.pop("kind")
    if kind not in _SETTINGS:
        raise InputError(f"unknown schedule {kind!r}", where=_WHERE, remedy=nearest(str(kind), KINDS))
    wanted = _SETTINGS[kind]
    if set(settings) != set(wanted):
        given = ", ".join(sorted(settings)) or "nothing"
        remedy = f"it needs {' and '.join(wanted)}" if wanted else "it has no settings"
        raise InputError(f"{kind} was given {given}", where=_WHERE, remedy=remedy)
    numbers = {name: _number(f"{_WHERE}.{name}", settings[name]) for name in wanted}
    if kind == "uniform":
        return UNIFORM
    described = kind + (f"({', '.join(f'{name}={numbers[name]:g}' for name in wanted)})" if wanted else "")
    if kind in ("front_loaded", "back_loaded"):
        steps = range(_STEPS) if kind == "back_loaded" else reversed(range(_STEPS))
        shares = list(itertools.accumulate(((2 * step + 1) / _STEPS**2 for step in steps), initial=0.0))
        return Schedule(tuple(step / _STEPS for step in range(_STEPS + 1)), (*shares[:-1], 1.0), described)
    if kind == "bursts":
        return _bursts(numbers["count"], numbers["width"], described)
    start, end = (1.0 - numbers["share"], 1.0) if kind == "final" else (numbers["start"], numbers["end"])
    if kind == "final" and not 0.0 < numbers["share"] <= 1.0:
        remedy = "a share of the run, above 0 and at most 1"
        raise InputError(f"is {numbers['share']:g}", where=f"{_WHERE}.share", remedy=remedy)
    if not 0.0 <= start < end <= 1.0:
        raise InputError(f"{described} is not a part of the run", where=_WHERE, remedy="needs 0 <= start < end <= 1")
    knots = [(0.0, 0.0), (start, 0.0), (end, 1.0), (1.0, 1.0)]
    return _of_knots(knots, described)


def _bursts(count: float, width: float, described: str) -> Schedule:
    if not 1 <= count <= _MOST_BURSTS or count != int(count) or not _NARROWEST <= width <= 1.0:
        remedy = f"needs a whole count from 1 to {_MOST_BURSTS} and {_NARROWEST:.6f} <= width <= 1"
        raise InputError(f"{described} is impossible", where=_WHERE, remedy=remedy)
    number = int(count)
    knots = [(0.0, 0.0)]
    for burst in range(number):
        knots += [((burst + 0.5 + side * width / 2) / number, (burst + (side > 0)) / number) for side in (-1, 1)]
    return _of_knots([*knots, (1.0, 1.0)], described)


def _of_knots(knots: list[tuple[float, float]], described: str) -> Schedule:
    kept = dict(sorted(knots))  # of two knots at one time the later share counts
    kept[0.0] = 0.0
    times, shares = tuple(kept), tuple(kept.values())
    return UNIFORM if times == (0.0, 1.0) else Schedule(times, shares, described)


def _number(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise InputError(f"is {value!r}", where=where, remedy="must be a number")
    return float(value)
