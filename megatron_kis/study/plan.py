"""What the runs of a study would feed, before any is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_kis.config import RunConfig
from megatron_kis.model.vocabulary import padded_vocabulary
from megatron_kis.training.inputs import open_inputs


def plan_rows(runs: Sequence[RunConfig]) -> list[dict[str, Any]]:
    """One row a run: size, budget, infusion and cost.

    Raises:
        InputError: data that are missing or a plan that does not fit.
    """
    rows = []
    for run in runs:
        inputs = open_inputs(run)
        plan, shape = inputs.plan, run.model.shape()
        vocabulary = padded_vocabulary(inputs.vocabulary)
        rows.append(
            {
                "run": run.name,
                "params": shape.params(vocabulary),
                "nonembedding_params": shape.nonembedding_params(),
                "tokens": plan.token_budget,
                "infusion_frequency": plan.infusion_frequency,
                "infusion_ratio": plan.infusion_ratio,
                "background_frequency": plan.background_frequency,
                "epochs": max(read.epochs for read in inputs.text.epochs(len(plan))),
                "flops": shape.flops_per_token(vocabulary, plan.sequence_length) * plan.token_budget,
            }
        )
    return rows
