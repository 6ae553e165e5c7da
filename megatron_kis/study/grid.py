"""The runs of a study: every cell (N, D, F) of its grid with every seed, and those it lists, as configurations."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from megatron_kis.config import ModelConfig, RunConfig
from megatron_kis.data.settings import DataConfig
from megatron_kis.errors import InputError
from megatron_kis.settings import parse_config
from megatron_kis.study.config import RungConfig, StudyConfig


@dataclass(frozen=True)
class Spot:
    """Where a run of a study stands."""

    rung: RungConfig
    """Its size."""

    tokens: int
    """Budget D as the study names it; the run feeds whole batches of it."""

    frequency: int
    """F, exposures a fact."""

    seed: int
    """Seed."""

    @property
    def name(self) -> str:
        """Of the run and its folder."""
        return f"{self.rung.label}_D{_short(self.tokens)}_F{self.frequency}_s{self.seed}"


def spots_of(study: StudyConfig) -> list[Spot]:
    """Every run of the grid, then those listed beside it."""
    rungs = {rung.label: rung for rung in study.ladder}
    grid = [Spot(rung, *cell) for rung in study.ladder for cell in study.grid_of(rung)]
    return grid + [Spot(rungs[run.size], run.tokens, run.frequency, run.seed) for run in study.runs]


def runs_of(study: StudyConfig, data: DataConfig) -> list[RunConfig]:
    """The runs of a study, the most expensive first (so that none is left alone at the end).

    Raises:
        InputError: a combination that no run can have, or two runs of one name.
    """
    runs = [_run(study, data, spot) for spot in spots_of(study)]
    name, count = Counter(run.name for run in runs).most_common(1)[0]
    if count > 1:
        raise InputError(
            f"{count} runs would be called {name!r}", where="ladder", remedy="give each size its own 'name'"
        )
    return sorted(runs, key=cost, reverse=True)


def cost(run: RunConfig) -> float:
    """Relative cost of a run: weights x tokens."""
    return run.model.shape().nonembedding_params() * float(run.training.token_budget)


def _run(study: StudyConfig, data: DataConfig, spot: Spot) -> RunConfig:
    name, rung = spot.name, spot.rung
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
        "model": rung.model_dump(include=set(ModelConfig.model_fields)),
        "training": {"token_budget": spot.tokens, "seed": spot.seed, "optimizer": optimizer, **shared},
        "infusion": {
            "frequency": spot.frequency,
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
