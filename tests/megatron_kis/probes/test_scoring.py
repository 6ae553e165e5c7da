from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_kis.probes import RULES, score_rules

SEARCH = settings(max_examples=60, deadline=None)

# Two statements of 4 and 3 tokens; the answers are "Zürich" (tokens 1 and 2) and "Rom" (token 2).
LOG_PROBS = [[-1.0, -2.0, -4.0, -0.5], [-3.0, -0.25, -6.0, math.nan]]
LENGTHS, SPANS, ANSWERS = [4, 3], [(1, 3), (2, 3)], ["Zürich", "Rom"]


def scores_of(log_probs: Any, lengths: Any, spans: Any, answers: list[str], neutral: Any) -> dict[str, list[float]]:
    """Scores of options by rule."""
    scores = score_rules(
        log_probs,
        lengths=lengths,
        spans=spans,
        characters=[len(answer) for answer in answers],
        byte_counts=[len(answer.encode()) for answer in answers],
        neutral=neutral,
    )
    return {rule: scores[:, column].tolist() for column, rule in enumerate(RULES)}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("statement", [-7.5, -9.25]),
        ("sum", [-6.0, -6.0]),
        ("mean_token", [-3.0, -6.0]),
        ("mean_char", [-1.0, -2.0]),
        ("mean_byte", [-6.0 / 7, -2.0]),  # ü takes two bytes
        ("pmi", [1.0, -4.0]),
    ],
)
def test_each_rule_is_what_its_table_says(rule: str, expected: list[float]) -> None:
    scores = scores_of(LOG_PROBS, LENGTHS, SPANS, ANSWERS, neutral=[-7.0, -2.0])
    assert scores[rule] == pytest.approx(expected)


def test_every_documented_rule_exists() -> None:
    assert set(RULES) == {"statement", "sum", "mean_token", "mean_char", "mean_byte", "pmi"}


@SEARCH
@given(st.data())
def test_scores_are_the_sums_of_the_tokens_they_name(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    options, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9))
    values = -rng.exponential(3.0, size=(options, width))
    lengths = rng.integers(1, width + 1, size=options)
    first = [int(rng.integers(0, length)) for length in lengths]
    spans = [(start, int(rng.integers(start + 1, length + 1))) for start, length in zip(first, lengths, strict=True)]
    answers = ["é" * int(rng.integers(1, 6)) for _ in range(options)]
    neutral = -rng.exponential(3.0, size=options)
    scores = scores_of(values, lengths, spans, answers, neutral)
    for row, (start, stop) in enumerate(spans):
        answer = math.fsum(values[row, start:stop])
        expected = {
            "statement": math.fsum(values[row, : lengths[row]]),
            "sum": answer,
            "mean_token": answer / (stop - start),
            "mean_char": answer / len(answers[row]),
            "mean_byte": answer / (2 * len(answers[row])),
            "pmi": answer - neutral[row],
        }
        assert {rule: of_rule[row] for rule, of_rule in scores.items()} == pytest.approx(expected, abs=1e-9)
