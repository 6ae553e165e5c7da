"""Whether a model is causal, and whether it may be asked in prefix trees: found out on the questions themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_kis.common.errors import InputError, JobError
from megatron_kis.huggingface.scorer import CausalScorer, in_one_line
from megatron_kis.probes.prefix_tree import PackedPrefixTrees, build_prefix_trees
from megatron_kis.probes.ragged import Ragged

_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}
"""Largest mean difference of a token's log-likelihood, nats. A wrong mask or position makes several times as much in a
trained model; in bfloat16 a logit of 16 is rounded to 0.06."""

_LEAK = {torch.float64: 1e-4, torch.float32: 1e-4}
"""The same where only tokens of other branches have changed. Shapes are equal then, and so is rounding; for shorter
types 0.01, as experts share their work."""

_SHORTEST = 8
"""Tokens of the shortest statement on which it is tried whether a model is causal."""

_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")
"""Settings of ``config.json`` that limit how far back a token sees."""

_WITH_MASKS = ("eager", "sdpa")
"""Implementations of attention that take a 4-D mask."""

_REFUSALS = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError, JobError)
"""Exceptions of models that get arguments which they do not support."""


def check_causal(scorer: CausalScorer, statement: NDArray[np.int32], bos_id: int) -> None:
    """Refuses a model that sees tokens after the one it predicts.

    Args:
        scorer: of the model.
        statement: tokens of a statement.
        bos_id: the token before it.

    Raises:
        InputError: other tokens at the end of a statement change the scores at its beginning.
    """
    tokens = np.tile(statement, -(-_SHORTEST // len(statement)))
    half = len(tokens) // 2
    other = tokens.copy()
    other[half:] = (tokens[half:] + 1) % scorer.vocabulary
    plain = build_prefix_trees(
        Ragged.of([tokens.tolist(), other.tolist()]), bos_id=bos_id, width=len(tokens), branching=False
    )
    found = scorer.score(plain, quiet=True).log_probs
    one, two = (found[plain.paths[path]][:half] for path in plain.path_of.tolist())
    if np.abs(one - two).mean() > _TOLERANCE.get(scorer.dtype, _TOLERANCE[torch.bfloat16]):
        problem = "is not a causal model: later tokens change its predictions"
        raise InputError(problem, where="model", remedy="give a model that predicts the next token")


def why_no_trees(scorer: CausalScorer, model: torch.nn.Module, trees: PackedPrefixTrees, bos_id: int) -> str | None:
    """Returns why a model is not to be asked in prefix trees; None where it is.

    Args:
        scorer: of the model.
        model: the model.
        trees: the questions in trees.
        bos_id: the token of each root.
    """
    if not scorer.takes_trees:
        return "the model takes no attention_mask and position_ids"
    longest = int(trees.paths.lengths.max())
    for reason in _of_config(model, longest):
        return reason
    chosen = _of_widest_rows(trees)
    sample = Ragged.of([trees.labels[trees.paths[path]].tolist() for path in chosen.tolist()])
    plain = build_prefix_trees(sample, bos_id=bos_id, width=longest, branching=False)
    wanted = scorer.score(plain, quiet=True).log_probs
    tree = build_prefix_trees(sample, bos_id=bos_id, width=int(trees.counts.max()))
    try:
        found = scorer.score(tree, quiet=True).log_probs
    except _REFUSALS as error:
        return f"the model takes no 4-D mask ({type(error).__name__}: {in_one_line(error)})"
    pairs = zip(plain.path_of.tolist(), tree.path_of.tolist(), strict=True)
    differences = [wanted[plain.paths[one]] - found[tree.paths[two]] for one, two in pairs]
    difference = float(np.abs(np.concatenate(differences)).mean())
    if difference > _TOLERANCE.get(scorer.dtype, _TOLERANCE[torch.bfloat16]):
        return f"the model does not keep to a 4-D mask and positions (scores of tokens differ by {difference:.2g} nats)"
    leak = _leak(scorer, tree, found)
    if leak > _LEAK.get(scorer.dtype, 0.01):
        return f"the model does not keep to a 4-D mask (other branches change scores of tokens by {leak:.2g} nats)"
    return None


def _leak(scorer: CausalScorer, trees: PackedPrefixTrees, log_probs: NDArray[np.float64]) -> float:
    """Returns how much the scores of a path depend on the tokens of branches before it: nats, mean over its tokens.

    A state of a recurrent layer passes from branch to branch. In a short type its effect may be less than what rounding
    makes between a tree and single statements.

    Args:
        scorer: of the model.
        trees: some statements.
        log_probs: [E] their scores.
    """
    rows = np.searchsorted(trees.edge_starts, trees.paths.values[trees.paths.starts[:-1]], side="right") - 1
    row = int(np.bincount(rows).argmax())
    edges = trees.paths[int(np.flatnonzero(rows == row)[-1])]
    tokens = trees.tokens.copy()
    others = np.setdiff1d(np.arange(trees.counts[row]), trees.places[edges])
    tokens[row, others] = (tokens[row, others] + 1) % scorer.vocabulary
    found = scorer.score(replace(trees, tokens=tokens), quiet=True).log_probs
    return float(np.abs(found[edges] - log_probs[edges]).mean())


def _of_config(model: torch.nn.Module, longest: int) -> Iterator[str]:
    """Yields reasons that the model's own configuration gives."""
    config = text_config(getattr(model, "config", None))
    implementation = getattr(config, "_attn_implementation", None)
    if implementation is not None and implementation not in _WITH_MASKS:
        yield f"attention {implementation!r} takes no 4-D mask (attn_implementation='sdpa' does)"
    for name in _WINDOWS:
        window = getattr(config, name, None)
        if isinstance(window, int) and not isinstance(window, bool) and window < longest:
            if name == "sliding_window" and getattr(config, "use_sliding_window", True) is False:
                continue
            yield f"{name} is {window}, and the longest statement has {longest} tokens"


def text_config(config: Any) -> Any:
    """Returns the configuration of the part of a model that reads text; None stays None."""
    chosen = getattr(config, "get_text_config", None)
    return chosen() if chosen else config


def _of_widest_rows(trees: PackedPrefixTrees) -> NDArray[np.int64]:
    """Returns the paths of the row with the longest path, and those of the row with the most."""
    first_edges = trees.paths.values[trees.paths.starts[:-1]]
    row = np.searchsorted(trees.edge_starts, first_edges, side="right") - 1
    rows = {int(row[trees.paths.lengths.argmax()]), int(np.bincount(row).argmax())}
    return np.flatnonzero(np.isin(row, list(rows)))
