"""The probe: all options of all questions through a model, graded and summed up by group, split and rule."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_kis.probes.questions import Question, QuestionSet, lay_out
from megatron_kis.probes.scoring import RULES, grade, score_options

TokenLosses = Callable[[NDArray[np.int64], NDArray[np.int64]], "NDArray[np.float32] | None"]
"""Inputs and labels, int64 [n, T] each, to negative log-likelihoods [n, T], or None on ranks without the loss."""


@dataclass(frozen=True)
class ProbeResult:
    """What one probe found."""

    rows: list[dict[str, Any]]
    """One an entry of group x split x rule, with the keys of probes.jsonl but step and tokens."""

    correct: NDArray[np.bool_]
    """[questions, rules]."""

    margins: NDArray[np.float32]
    """[questions, rules] log-likelihood margins, nats (per token, character or byte for the mean rules)."""


def run_probe(questions: QuestionSet, token_losses: TokenLosses, *, first: int, batch_size: int) -> ProbeResult | None:
    """Scores every option of every question.

    Args:
        questions: what is asked.
        token_losses: the model.
        first: the token before each statement.
        batch_size: options a forward pass.

    Returns:
        The result, or None on ranks without the loss (which take part in the forward passes all the same).
    """
    started = time.perf_counter()
    options = [option for question in questions.questions for option in question.options]
    order = sorted(range(len(options)), key=lambda index: len(options[index].tokens))  # little padding
    scores = np.zeros((len(options), len(RULES)))
    silent = False
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = [options[index] for index in chosen]
        inputs, labels = lay_out(batch, first)
        losses = token_losses(inputs, labels)
        if losses is None:
            silent = True
            continue
        for column, rule in enumerate(RULES):
            scores[chosen, column] = score_options(
                -losses,
                lengths=[len(option.tokens) for option in batch],
                spans=[option.span for option in batch],
                answers=[option.text for option in batch],
                rule=rule,
            )
    if silent:
        return None
    return _grade_all(questions, scores, time.perf_counter() - started)


def _grade_all(questions: QuestionSet, scores: NDArray[np.float64], seconds: float) -> ProbeResult:
    count = len(questions.questions)
    correct = np.zeros((count, len(RULES)), dtype=bool)
    margins = np.zeros((count, len(RULES)), dtype=np.float32)
    start = 0
    for number, question in enumerate(questions.questions):
        stop = start + len(question.options)
        for column in range(len(RULES)):
            correct[number, column], margins[number, column] = grade(scores[start:stop, column], question.answer)
        start = stop
    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, question in enumerate(questions.questions):
        members[question.group, question.split].append(number)
    rows = [
        _row(questions.questions, numbers, correct[:, column], margins[:, column], group, split, rule, seconds)
        for (group, split), numbers in members.items()
        for column, rule in enumerate(RULES)
    ]
    return ProbeResult(rows=rows, correct=correct, margins=margins)


def _row(
    questions: tuple[Question, ...],
    numbers: list[int],
    correct: NDArray[np.bool_],
    margins: NDArray[np.float32],
    group: str,
    split: str,
    rule: str,
    seconds: float,
) -> dict[str, Any]:
    by_template: dict[tuple[str, int], list[bool]] = defaultdict(list)
    for number in numbers:
        by_template[questions[number].relation, questions[number].template].append(bool(correct[number]))
    return {
        "group": group,
        "split": split,
        "scoring": rule,
        "n": len(numbers),
        "facts": len({questions[number].fact for number in numbers}),
        "correct": int(correct[numbers].sum()),
        "chance": float(np.mean([1 / len(questions[number].options) for number in numbers])),
        "margin": float(margins[numbers].mean()),
        "templates": [
            {"relation": relation, "template": template, "n": len(marks), "correct": sum(marks)}
            for (relation, template), marks in sorted(by_template.items())
        ],
        "seconds": round(seconds, 3),
    }
