from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_kis.probes import RULES, grade, score_options, token_log_probs

SEARCH = settings(max_examples=60, deadline=None)

# Two statements of 4 and 3 tokens; the answers are "Zürich" (tokens 1 and 2) and "Rom" (token 2).
LOG_PROBS = [[-1.0, -2.0, -4.0, -0.5], [-3.0, -0.25, -6.0, math.nan]]
LENGTHS, SPANS, ANSWERS = [4, 3], [(1, 3), (2, 3)], ["Zürich", "Rom"]


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
    scores = score_options(LOG_PROBS, lengths=LENGTHS, spans=SPANS, answers=ANSWERS, rule=rule, neutral=[-7.0, -2.0])
    assert scores == pytest.approx(expected)


def test_pmi_without_the_answers_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="'pmi' needs"):
        score_options(LOG_PROBS, lengths=LENGTHS, spans=SPANS, answers=ANSWERS, rule="pmi")


def test_every_documented_rule_exists() -> None:
    assert set(RULES) == {"statement", "sum", "mean_token", "mean_char", "mean_byte", "pmi"}


def test_an_unknown_rule_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(ValueError, match="no scoring rule 'median'; valid: statement, sum"):
        score_options(LOG_PROBS, lengths=LENGTHS, spans=SPANS, answers=ANSWERS, rule="median")


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
    for rule in RULES:
        scores = score_options(values, lengths=lengths, spans=spans, answers=answers, rule=rule, neutral=neutral)
        for row, (start, stop) in enumerate(spans):
            answer = math.fsum(values[row, start:stop])
            expected = {
                "statement": math.fsum(values[row, : lengths[row]]),
                "sum": answer,
                "mean_token": answer / (stop - start),
                "mean_char": answer / len(answers[row]),
                "mean_byte": answer / (2 * len(answers[row])),
                "pmi": answer - neutral[row],
            }[rule]
            assert scores[row] == pytest.approx(expected, abs=1e-9)


@SEARCH
@given(st.integers(0, 2**32 - 1), st.floats(-50, 50))
def test_log_likelihoods_are_those_of_a_softmax(seed: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    logits, tokens = rng.normal(0, 5, size=(3, 4, 7)), rng.integers(0, 7, size=(3, 4))
    found = token_log_probs(logits + shift, tokens)  # a shift of all logits changes nothing
    for row in range(3):
        for at in range(4):
            weights = [math.exp(value) for value in logits[row, at]]
            expected = math.log(weights[tokens[row, at]] / math.fsum(weights))
            assert found[row, at] == pytest.approx(expected, abs=1e-9)


def test_large_logits_do_not_overflow() -> None:
    assert token_log_probs([[1000.0, 0.0], [-1000.0, 0.0]], [0, 0]).tolist() == [0.0, -1000.0]


@pytest.mark.parametrize(
    ("scores", "answer", "right", "margin"),
    [
        ([-1.0, -2.0, -3.0], 0, True, 1.0),
        ([-1.0, -2.0, -3.0], 1, False, -1.0),
        ([-1.0, -1.0, -3.0], 0, False, 0.0),  # a tie is wrong
        ([-2.0, -1.0, -1.0], 0, False, -1.0),
        ([math.nan, -1.0], 0, False, math.nan),
    ],
)
def test_only_the_strictly_largest_score_is_right(scores: list[float], answer: int, right: bool, margin: float) -> None:
    found = grade(np.array(scores), answer)
    assert found[0] is right
    assert found[1] == pytest.approx(margin, nan_ok=True)
