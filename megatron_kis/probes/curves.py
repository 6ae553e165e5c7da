"""Histories of single facts over a run: learned, forgotten, learned again; and the bits that a model knows.

Learned bits are ours: log2 of the options, corrected for guessing. They count what a multiple-choice probe can show, at
most log2 k per fact, and so less than the entropy of the names that Allen-Zhu and Li (2404.05405) count. Pure numpy.
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
    """Results of a run's probes per question and moment."""

    steps: NDArray[np.int64]
    """[moments] steps of the probes, ascending."""

    correct: NDArray[np.bool_]
    """[moments, questions] whether the answer was right."""

    scores: NDArray[np.float32]
    """[moments, questions] score of the right option, nats."""


def read_outcomes(folder: Path, rule: str) -> Outcomes:
    """Reads a run's ``outcomes``.

    Args:
        folder: the ``outcomes`` folder of a run.
        rule: scoring rule.

    Raises:
        InputError: there are none, they are of an older version without scores, or the questions changed in between.
    """
    found = _files(folder)
    column = RULES.index(rule)
    correct, scores = [], []
    for _, path in found:
        with np.load(path) as content:
            if "scores" not in content or content["scores"].shape[1] <= column:
                raise InputError(f"has no scores of rule {rule!r}", where=str(path), remedy="probe again: kis probe")
            correct.append(content["correct"][:, column])
            scores.append(content["scores"][:, column])
    if len({len(row) for row in correct}) > 1:
        raise InputError("asks another number of questions than the moment before", where=str(folder))
    steps = np.array([step for step, _ in found], dtype=np.int64)
    return Outcomes(steps, np.array(correct), np.array(scores))


@dataclass(frozen=True)
class LastOutcomes:
    """Results of a run's last probe per question, by one rule."""

    step: int
    """Step of the probe."""

    correct: NDArray[np.bool_]
    """[questions] whether the answer was right."""

    margins: NDArray[np.float32]
    """[questions] score of the right option minus the largest other one; NaN where the rule does not apply."""

    mean_margins: NDArray[np.float32]
    """[questions] score of the right option minus the mean of the others; NaN in files of older versions."""


def read_last_outcomes(folder: Path, rule: str) -> LastOutcomes:
    """Reads what a run answered at its last probe.

    Args:
        folder: the ``outcomes`` folder of a run.
        rule: scoring rule.

    Raises:
        InputError: there are none, or they do not have the rule.
    """
    step, path = _files(folder)[-1]
    with np.load(path) as content:
        rules = [str(name) for name in content["rules"]] if "rules" in content else list(RULES)
        if rule not in rules or content["correct"].shape[1] != len(rules):
            raise InputError(f"has no rule {rule!r}", where=str(path), remedy="probe again: kis probe")
        column = rules.index(rule)
        margins = content["margins"][:, column]
        mean = content["mean_margins"][:, column] if "mean_margins" in content else np.full_like(margins, np.nan)
        return LastOutcomes(step, content["correct"][:, column], margins, mean)


def _files(folder: Path) -> list[tuple[int, Path]]:
    """Returns steps and files of a run's outcomes, in their order."""
    found = {int(path.stem.removeprefix("step-")): path for path in folder.glob("step-*.npz")}
    if not found:
        raise InputError("holds no outcomes", where=str(folder), remedy="give the outcomes folder of a run with probes")
    return sorted(found.items())


@dataclass(frozen=True)
class Histories:
    """Steps at which facts were learned and forgotten; ``NEVER`` where it did not happen."""

    learned: NDArray[np.int64]
    """[facts] step of the first moment at which it was known."""

    forgotten: NDArray[np.int64]
    """[facts] step of the first moment after that at which it was not."""

    learned_again: NDArray[np.int64]
    """[facts] step of the first moment after that at which it was."""

    changes: NDArray[np.int64]
    """[facts] number of times it was learned or forgotten."""


def histories(steps: ArrayLike, known: ArrayLike) -> Histories:
    """Follows facts through the moments.

    Args:
        steps: int [moments], ascending.
        known: bool [moments, facts].
    """
    times = np.asarray(steps, dtype=np.int64)
    marks = np.asarray(known, dtype=bool)
    after = np.zeros_like(marks[0], dtype=np.int64)  # [facts] first moment after the last event
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


def learned_bits(correct: ArrayLike, options: ArrayLike, *, weights: ArrayLike = 1.0) -> float:
    """Returns the bits that a model knows of facts: log2 of the number of options for each fact known beyond guessing.

    If c of n questions with k options are right, a share of (c / n - 1 / k) / (1 - 1 / k) counts as known. At chance
    the sum is zero on average, and it may be negative in a sample.

    Args:
        correct: bool [questions].
        options: int [questions] number of options, at least 2 each.
        weights: float [questions] or one for all: where a fact has several questions, the share of each.
    """
    marks = np.asarray(correct, dtype=np.float64)
    sizes = np.asarray(options, dtype=np.float64)
    return float(((marks - 1 / sizes) / (1 - 1 / sizes) * np.log2(sizes) * np.asarray(weights)).sum())
