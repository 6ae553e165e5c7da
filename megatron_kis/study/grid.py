"""The grid of a study: every cell (N, D, F) with every seed, as the configuration of a run."""

from __future__ import annotations

import itertools
from collections import Counter

from megatron_kis.config import RunConfig
from megatron_kis.data.settings import DataConfig
from megatron_kis.errors import InputError
from megatron_kis.settings import parse_config
from megatron_kis.study.config import RungConfig, StudyConfig


def runs_of(study: StudyConfig, data: DataConfig) -> list[RunConfig]:
    """The runs of a study, the most expensive first (so that none is left alone at the end).

    Raises:
        InputError: a combination that no run can have, or two runs of one name.
    """
    runs = [
        _run(study, data, rung, budget, frequency, seed)
        for rung, budget, frequency, seed in itertools.product(
            study.ladder, study.token_budgets, study.frequencies, study.seeds
        )
    ]
    name, count = Counter(run.name for run in runs).most_common(1)[0]
    if count > 1:
        raise InputError(
            f"{count} runs would be called {name!r}", where="ladder", remedy="give each size its own 'name'"
        )
    return sorted(runs, key=cost, reverse=True)


def cost(run: RunConfig) -> float:
    """Relative cost of a run: weights x tokens."""
    return run.model.shape().nonembedding_params() * float(run.training.token_budget)


def _run(study: StudyConfig, data: DataConfig, rung: RungConfig, budget: int, frequency: int, seed: int) -> RunConfig:
    name = f"{rung.label}_D{_short(budget)}_F{frequency}_s{seed}"
    optimizer = study.training.optimizer
    if rung.learning_rate is not None:
        optimizer = optimizer.model_copy(update={"learning_rate": rung.learning_rate})
    shared = study.training.model_dump(exclude={"optimizer"})
    content = {
        "name": name,
        "study": study.name,
        "output": study.runs_folder / name,
        "device": study.device,
        "data": data,
        "model": rung.model_dump(exclude={"learning_rate", "parallel"}),
        "training": {"token_budget": budget, "seed": seed, "optimizer": optimizer, **shared},
        "infusion": {
            "frequency": frequency,
            "background": study.background,
            "schedule": study.schedule,
            "templates": study.templates,
        },
        "documents": study.documents,
        "checkpoints": study.checkpoints,
        "parallel": rung.parallel,
        "probes": study.probes,
        "validation": study.validation,
        "logging": study.logging,
    }
    return parse_config(RunConfig, content, source=f"run {name}")


def _short(tokens: int) -> str:
    """A budget in a name: 1200000 -> 1.2M."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if tokens >= size:
            return f"{tokens / size:.6g}{unit}"
    return str(tokens)
