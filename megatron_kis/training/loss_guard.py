"""The guard: what makes a step a bad one, how many are passed over, and what is said of the one that stops a run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_kis.config.run import GuardConfig
from megatron_kis.data.exposure_plan import SequenceLayout
from megatron_kis.data.exposure_store import ExposureStore
from megatron_kis.data.extension import Plan

_MEMORY = 0.98  # of the running mean: about the last 50 steps
_NAMED = 8  # facts that a message names


class Guard:
    """Judges each step before its update. Every rank sees the same numbers and so judges alike."""

    def __init__(self, settings: GuardConfig) -> None:
        """Starts without a memory."""
        self._settings = settings
        self._mean: float | None = None
        self._in_a_row = 0
        self.complaint: str | None = None
        """What was wrong with the last step; None if it was a good one."""
        self.skipped: list[int] = []
        """Steps (from 1) whose update was left out."""

    def accepts(self, loss: float, norm: float) -> bool:
        """Whether a step is a good one; it then counts for the running mean.

        Args:
            loss: nats a token over the global batch.
            norm: of the gradient, before clipping.
        """
        self.complaint = self._problem(loss, norm)
        if self.complaint is None:
            self._mean = loss if self._mean is None else _MEMORY * self._mean + (1 - _MEMORY) * loss
            self._in_a_row = 0
        return self.complaint is None

    def _problem(self, loss: float, norm: float) -> str | None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return f"loss {loss} and gradient norm {norm}, not finite,"
        rise = self._settings.loss_rise
        if rise is not None and self._mean is not None and loss > self._mean + rise:
            return f"loss {loss:.3f}, more than {rise} above its running mean {self._mean:.3f},"
        return None

    def skips(self, step: int) -> bool:
        """Notes a bad step (from 1); whether the rule lets the run pass over it."""
        if self._in_a_row >= self._settings.skip_in_a_row:
            return False
        self._in_a_row += 1
        self.skipped.append(step)
        return True

    def record(self) -> dict[str, Any]:
        """What a checkpoint keeps, in JSON's types."""
        return {"mean": self._mean, "in_a_row": self._in_a_row, "skipped": self.skipped}

    def load(self, record: dict[str, Any]) -> None:
        """Takes over what ``record`` gave."""
        self._mean, self._in_a_row = record["mean"], record["in_a_row"]
        self.skipped = list(record["skipped"])


def exposures_in(layouts: Iterable[SequenceLayout]) -> dict[str, Counter[int]]:
    """How often each fact of each group is exposed in some sequences: group -> fact's row -> count."""
    found: dict[str, Counter[int]] = {}
    for layout in layouts:
        for exposure in layout.exposures:
            found.setdefault(exposure.group, Counter())[exposure.fact] += 1
    return found


def bad_step(
    problem: str, step: int, sequences: range, exposed: Mapping[str, Counter[int]], store: ExposureStore
) -> str:
    """The message about a bad step: which it was, and what it was trained on."""
    parts = []
    for group, counts in exposed.items():
        names = store.ids(group)
        named = [f"{names[fact]} x{count}" for fact, count in counts.most_common(_NAMED)]
        more = f" and {len(counts) - _NAMED} more" if len(counts) > _NAMED else ""
        parts.append(f"{group} facts {', '.join(named)}{more}")
    what = "; ".join(parts) or "no exposures"
    return f"{problem} at step {step} (sequences {sequences[0]} to {sequences[-1]}: {what})"


def differences_without(
    skipped: Iterable[SequenceLayout], received: Mapping[str, NDArray[np.int64]], plan: Plan, store: ExposureStore
) -> list[str]:
    """Facts whose exposures are not those of the plan less those of skipped sequences, one line each."""
    exposed, lines = exposures_in(skipped), []
    for group, counts in received.items():
        due = plan.expected(group).copy()
        for fact, count in exposed.get(group, {}).items():
            due[fact] -= count
        lines += [
            f"{group} fact {store.ids(group)[fact]}: {counts[fact]} exposures received, {due[fact]} planned and trained"
            for fact in np.flatnonzero(due != counts)
        ]
    return lines
