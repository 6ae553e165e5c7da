"""What the runs of a study would feed, before any is trained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from megatron_kis.config import ModelConfig, RunConfig
from megatron_kis.model.vocabulary import padded_vocabulary
from megatron_kis.training.inputs import InputsOfMany, plan_key


def plan_rows(runs: Sequence[RunConfig]) -> list[dict[str, Any]]:
    """One row a run: size, budget, infusion and cost.

    Seeds share what is said of a plan, so one of them is opened: ten thousand runs are a few hundred plans. Each run's
    own plan is checked before any starts.

    Raises:
        InputError: data that are missing or a plan that does not fit.
    """
    opened = InputsOfMany()
    rows = []
    shared: dict[Any, tuple[Any, float]] = {}
    for run in runs:
        key = plan_key(run, seed=False)
        if key not in shared:  # sizes share their plans, too
            inputs = opened.open(run)
            shared[key] = (inputs, max(read.epochs for read in inputs.text.epochs(len(inputs.plan))))
        inputs, epochs = shared[key]
        plan, vocabulary = inputs.plan, padded_vocabulary(inputs.vocabulary)
        params, nonembedding, flops = _size(run.model, vocabulary, plan.sequence_length)
        rows.append(
            {
                "run": run.name,
                "size": run.model.label,
                "params": params,
                "nonembedding_params": nonembedding,
                "tokens": plan.token_budget,
                "infusion_frequency": plan.infusion_frequency,
                "infusion_ratio": plan.infusion_ratio,
                "background_frequency": plan.background_frequency,
                "epochs": epochs,
                "flops": flops * plan.token_budget,
            }
        )
    return rows


@lru_cache(maxsize=1024)
def _size(model: ModelConfig, vocabulary: int, length: int) -> tuple[int, int, float]:
    """N, N without embeddings, FLOPs a token."""
    shape = model.shape()
    return shape.params(vocabulary), shape.nonembedding_params(), shape.flops_per_token(vocabulary, length)
