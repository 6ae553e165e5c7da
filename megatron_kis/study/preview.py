"""What the runs of a study would feed, before any is trained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from megatron_kis.config.run import ModelConfig, RunConfig
from megatron_kis.config.vocabulary import padded_vocabulary
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
    shared: dict[Any, tuple[dict[str, Any], int]] = {}
    for run in runs:
        key = plan_key(run, seed=False)
        if key not in shared:  # sizes share their plans, too
            inputs = opened.open(run)
            plan = inputs.plan
            fed = {
                "tokens": plan.token_budget,
                "infusion_frequency": plan.infusion_frequency,
                "infusion_ratio": plan.infusion_ratio,
                "background_frequency": plan.background_frequency,
                "epochs": max(read.epochs for read in inputs.text.epochs(len(plan))),
            }
            shared[key] = (fed, padded_vocabulary(inputs.vocabulary))
        fed, vocabulary = shared[key]
        params, nonembedding, flops = _size(run.model, vocabulary, run.training.sequence_length)
        rows.append(
            {
                "run": run.name,
                "size": run.model.label,
                "params": params,
                "nonembedding_params": nonembedding,
                **fed,
                "flops": flops * fed["tokens"],
            }
        )
    return rows


@lru_cache(maxsize=1024)
def _size(model: ModelConfig, vocabulary: int, length: int) -> tuple[int, int, float]:
    """N, N without embeddings, FLOPs a token."""
    shape = model.shape()
    return shape.params(vocabulary), shape.nonembedding_params(), shape.flops_per_token(vocabulary, length)
