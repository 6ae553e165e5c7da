"""What happens to single facts over a run: learned, forgotten, learned again; how much an exposure gives and leaves.

Effectivity and retainability are those of Chang et al. 2024, "How Do Large Language Models Acquire Factual Knowledge
During Pretraining?" (arXiv 2406.11813), definitions 1 to 3. They probe after every step, look for the local maximum
among the 50 steps after an exposure (the window over which AdamW's momentum of 0.9 fades), take the log-likelihood of
the target span (rule ``sum``), and remove outliers beyond 1.5 interquartile ranges before they average. Here moments
may be rarer, the window is an argument, nothing is removed, and retainability is NaN where the exposures gave nothing,
in place of a quotient by almost zero.

Learned bits are ours: log2 of the options, corrected for guessing. They count what a multiple-choice probe can tell, at
most log2 k of a fact, and so less than the entropy of the names that Allen-Zhu and Li (2404.05405) count. Pure numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megatron_kis.common.errors import InputError
from megatron_kis.probes.scoring import RULES

NEVER = -1


@dataclass(frozen=True)
class Outcomes:
    """What a run's probes found of each question, moment by moment."""

    steps: NDArray[np.int64]
    """[moments], ascending."""

    correct: NDArray[np.bool_]
    """[moments, questions]."""

    scores: NDArray[np.float32]
    """[moments, questions] of the right option, nats."""


def read_outcomes(folder: Path, rule: str) -> Outcomes:
    """Reads a run's ``outcomes``.

    Args:
        folder: the folder.
        rule: of scoring.

    Raises:
        InputError: there are none, they are of an older version without scores, or the questions changed in between.
    """
    found = {int(path.stem.removeprefix("step-")): path for path in folder.glob("step-*.npz")}
    if not found:
        raise InputError("holds no outcomes", where=str(folder), remedy="give the outcomes folder of a run with probes")
    column, correct, scores = RULES.index(rule), [], []
    for _, path in sorted(found.items()):
        with np.load(path) as content:
            if "scores" not in content or content["scores"].shape[1] <= column:
                raise InputError(f"has no scores of rule {rule!r}", where=str(path), remedy="probe again: kis probe")
            correct.append(content["correct"][:, column])
            scores.append(content["scores"][:, column])
    if len({len(row) for row in correct}) > 1:
        raise InputError("asks another number of questions than the moment before", where=str(folder))
    return Outcomes(np.array(sorted(found), dtype=np.int64), np.array(correct), np.array(scores))


@dataclass(frozen=True)
class Histories:
    """When each fact was known; ``NEVER`` where it did not happen."""

    learned: NDArray[np.int64]
    """[facts] step of the first moment at which it was known."""

    forgotten: NDArray[np.int64]
    """[facts] step of the first moment after that at which it was not."""

    learned_again: NDArray[np.int64]
    """[facts] step of the first moment after that at which it was."""

    changes: NDArray[np.int64]
    """[facts] how often it was learned or forgotten."""


def histories(steps: ArrayLike, known: ArrayLike) -> Histories:
    """Follows facts through the moments.

    Args:
        steps: int [moments], ascending.
        known: bool [moments, facts].
    """
    times, marks = np.asarray(steps, dtype=np.int64), np.asarray(known, dtype=bool)
    after = np.zeros_like(marks[0], dtype=np.int64)  # moments that are settled
    events = []
    for wanted in (True, False, True):
        open_ = np.arange(len(times))[:, None] >= after
        hits = (marks == wanted) & open_
        happened = hits.any(axis=0)
        first = hits.argmax(axis=0)
        events.append(np.where(happened, times[first], NEVER))
        after = np.where(happened, first, len(times))
    before = np.concatenate([np.zeros((1, marks.shape[1]), dtype=bool), marks[:-1]])
    learned, forgotten, again = events
    return Histories(learned, forgotten, again, (marks != before).sum(axis=0))


def local_maximum(steps: ArrayLike, log_probs: ArrayLike, exposure: int, window: int) -> int:
    """Place of the local acquisition maximum: the likeliest moment within ``window`` steps after an exposure.

    Args:
        steps: int [moments], ascending.
        log_probs: float [moments] of a fact, nats.
        exposure: step of the exposure.
        window: steps.

    Raises:
        ValueError: no moment lies in the window.
    """
    times, values = np.asarray(steps), np.asarray(log_probs, dtype=np.float64)
    inside = np.flatnonzero((times > exposure) & (times <= exposure + window))
    if not len(inside):
        msg = f"no moment within {window} steps after step {exposure}"
        raise ValueError(msg)
    return int(inside[values[inside].argmax()])


def effectivity(steps: ArrayLike, log_probs: ArrayLike, exposure: int, window: int) -> float:
    """What one exposure gives: log-likelihood at the local maximum, minus that at the exposure, nats.

    Args:
        steps: int [moments], ascending; one of them the exposure's own, before the update with it.
        log_probs: float [moments] of a fact, nats.
        exposure: step of the exposure.
        window: steps.

    Raises:
        ValueError: no moment at the exposure, or none in the window.
    """
    values = np.asarray(log_probs, dtype=np.float64)
    return float(values[local_maximum(steps, values, exposure, window)] - values[_at(steps, exposure)])


def retainability(
    steps: ArrayLike, log_probs: ArrayLike, exposures: ArrayLike, window: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What is left of all exposures' gain: 1 at the last local maximum, 0 where nothing is left, negative below.

    Args:
        steps: int [moments], ascending; one of them the first exposure's own.
        log_probs: float [moments] of a fact, nats.
        exposures: int [exposures] their steps.
        window: steps.

    Returns:
        Steps since the last local maximum and the share that is left, [moments from there on] each; NaN where the
        exposures gave nothing.

    Raises:
        ValueError: no moment at the first exposure, or none in the window of the last.
    """
    times, values = np.asarray(steps, dtype=np.int64), np.asarray(log_probs, dtype=np.float64)
    shown = np.asarray(exposures)
    top = local_maximum(times, values, int(shown.max()), window)
    before = values[_at(times, int(shown.min()))]
    gain = values[top] - before
    left = (values[top:] - before) / gain if gain > 0 else np.full(len(values) - top, np.nan)
    return times[top:] - times[top], left


def learned_bits(correct: ArrayLike, options: ArrayLike, *, weights: ArrayLike = 1.0) -> float:
    """Bits that a model knows of facts: log2 of the answers to choose from, of each that it knows beyond guessing.

    Among n facts with k options of which c are right, (c / n - 1 / k) / (1 - 1 / k) are taken for known; at chance the
    sum is zero on average, and a sample may lie below.

    Args:
        correct: bool [questions].
        options: int [questions], at least 2 each.
        weights: float [questions] or one for all: where a fact is asked in several ways, the share of each.
    """
    marks, sizes = np.asarray(correct, dtype=np.float64), np.asarray(options, dtype=np.float64)
    return float(((marks - 1 / sizes) / (1 - 1 / sizes) * np.log2(sizes) * np.asarray(weights)).sum())


def bits_per_parameter(correct: ArrayLike, options: ArrayLike, parameters: int) -> float:
    """``learned_bits`` over the parameters of the model: a capacity, where learning has saturated."""
    return learned_bits(correct, options) / parameters


def _at(steps: ArrayLike, step: int) -> int:
    found = np.flatnonzero(np.asarray(steps) == step)
    if not len(found):
        msg = f"no moment at step {step}"
        raise ValueError(msg)
    return int(found[0])
