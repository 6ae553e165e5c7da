"""Scoring rules: from token log-likelihoods to one score per option. Pure numpy.

| rule | score of an option | source |
|---|---|---|
| ``statement`` | log-likelihood of the whole statement, the object anywhere in it | LM-Pub-Quiz, reduction "sum" |
| ``sum`` | log-likelihood of the answer's tokens given what precedes them | lm-evaluation-harness ``acc`` |
| ``mean_token`` | ``sum`` / tokens of the answer | common variant |
| ``mean_char`` | ``sum`` / characters of the answer | lm-evaluation-harness ``acc_norm`` |
| ``mean_byte`` | ``sum`` / UTF-8 bytes of the answer | common variant |
| ``pmi`` | ``sum`` - log-likelihood of the answer's tokens at the start of a document | lm-eval ``acc_mutual_info`` |

``pmi`` does not apply to an answer with which its statement begins: there the two terms are the same.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megatron_kis.common.terms import SCORING_RULES

RULES = SCORING_RULES


def score_rules(
    log_probs: ArrayLike,
    *,
    lengths: ArrayLike,
    spans: ArrayLike,
    characters: ArrayLike,
    byte_counts: ArrayLike,
    neutral: ArrayLike,
) -> NDArray[np.float64]:
    """Returns the scores of options, [options, rules]; larger is likelier; rules are in the order of ``RULES``.

    Args:
        log_probs: float [options, T] of each token of the statement, nats; beyond ``lengths`` ignored.
        lengths: int [options] number of tokens of the statement.
        spans: int [options, 2] half-open token range of the answer within the statement.
        characters: int [options] number of characters of the answer.
        byte_counts: int [options] number of UTF-8 bytes of the answer.
        neutral: float [options] log-likelihood of the answer without a prompt, nats; used by ``pmi`` alone.
    """
    values = np.asarray(log_probs, dtype=np.float64)
    ends = np.asarray(lengths, dtype=np.int64)
    span = np.asarray(spans, dtype=np.int64)
    # cumulated[i, t] is the log-likelihood of the first t tokens: a range's is a difference of two.
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
