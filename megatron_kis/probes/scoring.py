"""Scoring rules: from token log-likelihoods to a score an option, and from scores to what is right. Pure numpy.

| rule | score of an option | whose |
|---|---|---|
| ``statement`` | log-likelihood of the whole statement, the object anywhere in it | LM-Pub-Quiz, reduction "sum" |
| ``sum`` | log-likelihood of the answer's tokens given what precedes them | lm-evaluation-harness ``acc`` |
| ``mean_token`` | ``sum`` / tokens of the answer | common variant |
| ``mean_char`` | ``sum`` / characters of the answer | lm-evaluation-harness ``acc_norm`` |
| ``mean_byte`` | ``sum`` / UTF-8 bytes of the answer | common variant |
| ``pmi`` | ``sum`` - log-likelihood of the answer's tokens at the start of a document | lm-eval ``acc_mutual_info`` |

``pmi`` says nothing of an answer with which its statement begins: there the two terms are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

RULES = ("statement", "sum", "mean_token", "mean_char", "mean_byte", "pmi")


def token_log_probs(logits: ArrayLike, tokens: ArrayLike) -> NDArray[np.float64]:
    """Log-likelihood of each token under the logits before it.

    Args:
        logits: [..., T, vocabulary], position t predicting ``tokens[..., t]``.
        tokens: int [..., T].

    Returns:
        float64 [..., T], nats.
    """
    values = np.asarray(logits, dtype=np.float64)
    ids = np.asarray(tokens, dtype=np.int64)
    top = values.max(axis=-1, keepdims=True)
    normaliser = top[..., 0] + np.log(np.exp(values - top).sum(axis=-1))
    chosen: NDArray[np.float64] = np.take_along_axis(values, ids[..., None], axis=-1)[..., 0] - normaliser
    return chosen


def score_options(
    log_probs: ArrayLike,
    *,
    lengths: ArrayLike,
    spans: ArrayLike,
    answers: Sequence[str],
    rule: str,
    neutral: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """The score of each option under a rule; larger is likelier.

    Args:
        log_probs: float [options, T] of each token of the statement, nats; beyond ``lengths`` ignored.
        lengths: int [options] tokens of the statement.
        spans: int [options, 2] half-open token range of the answer within the statement.
        answers: the answers' texts.
        rule: one of ``RULES``.
        neutral: float [options] log-likelihood of each answer without a prompt, nats; needed by ``pmi`` alone.

    Raises:
        ValueError: an unknown rule, or ``pmi`` without ``neutral``.
    """
    if rule not in RULES:
        raise ValueError(f"no scoring rule {rule!r}; valid: {', '.join(RULES)}")
    if rule == "pmi" and neutral is None:
        raise ValueError("the rule 'pmi' needs the answers' log-likelihoods without a prompt")
    scores = score_rules(
        log_probs,
        lengths=lengths,
        spans=spans,
        characters=[len(answer) for answer in answers],
        byte_counts=[len(answer.encode()) for answer in answers],
        neutral=np.zeros(len(answers)) if neutral is None else neutral,
    )
    chosen: NDArray[np.float64] = scores[:, RULES.index(rule)]
    return chosen


def score_rules(
    log_probs: ArrayLike,
    *,
    lengths: ArrayLike,
    spans: ArrayLike,
    characters: ArrayLike,
    byte_counts: ArrayLike,
    neutral: ArrayLike,
) -> NDArray[np.float64]:
    """[options, rules] scores, rules in the order of ``RULES``.

    Args:
        log_probs: float [options, T] of each token of the statement, nats; beyond ``lengths`` ignored.
        lengths: int [options] tokens of the statement.
        spans: int [options, 2] half-open token range of the answer within the statement.
        characters: int [options] of the answers.
        byte_counts: int [options] UTF-8 bytes of the answers.
        neutral: float [options] log-likelihood of each answer without a prompt, nats.
    """
    values = np.asarray(log_probs, dtype=np.float64)
    ends, span = np.asarray(lengths, dtype=np.int64), np.asarray(spans, dtype=np.int64)
    cumulated = np.zeros((len(values), values.shape[1] + 1))
    np.cumsum(values, axis=1, out=cumulated[:, 1:])
    rows = np.arange(len(values))
    total = cumulated[rows, span[:, 1]] - cumulated[rows, span[:, 0]]
    return np.stack(
        [
            cumulated[rows, ends],
            total,
            total / (span[:, 1] - span[:, 0]),
            total / np.asarray(characters),
            total / np.asarray(byte_counts),
            total - np.asarray(neutral, dtype=np.float64),
        ],
        axis=1,
    )


def grade(scores: NDArray[np.float64], answer: int) -> tuple[bool, float]:
    """Whether the right option alone has the largest score (a tie is wrong), and its margin over the best other."""
    others = np.delete(scores, answer)
    margin = float(scores[answer] - others.max())
    return margin > 0, margin
