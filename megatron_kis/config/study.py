"""The configuration of a study: a ladder of sizes, budgets, frequencies and seeds, and how its runs are executed.

Its runs are a grid, ladder x ``token_budgets`` x ``frequencies`` x ``seeds``, in which a size may have values of its
own, and single ones listed in ``runs``.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from megatron_kis.common.configuration import Config, Count, Quantity, SafeName
from megatron_kis.common.errors import nearest
from megatron_kis.config.analysis import AnalysisConfig
from megatron_kis.config.data import Background, BackgroundConfig, DocumentsConfig
from megatron_kis.config.executor import ExecutorConfig
from megatron_kis.config.run import (
    CheckpointConfig,
    GuardConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    Precision,
    ProbeConfig,
    ValidationConfig,
)
from megatron_kis.config.slurm import ClusterConfig
from megatron_kis.data_tools.preparation.settings import DataPrepConfig


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len({str(value) for value in values}) < len(values):
        msg = "has an entry twice"
        raise ValueError(msg)
    return values


Tokens = Annotated[Count, Field(gt=0)]
Budgets = Annotated[tuple[Tokens, ...], AfterValidator(_distinct)]
Counts = Annotated[tuple[Annotated[Count, Field(ge=0)], ...], AfterValidator(_distinct)]


class LadderEntry(ModelConfig):
    """One size of the ladder."""

    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of this size; the study's if not given."""

    parallel: ParallelConfig = ParallelConfig()
    """Parallel layout of this size's runs."""

    micro_batch_size: PositiveInt | None = None
    """Sequences per forward pass on one rank, for this size; the study's if not given."""

    token_budgets: Budgets | None = None
    """Budgets of this size in the grid; the study's if not given."""

    frequencies: Counts | None = None
    """Frequencies of this size in the grid; the study's if not given, and none at all if empty."""

    seeds: Counts | None = None
    """Seeds of this size in the grid; the study's if not given."""


class ListedRun(Config):
    """One run outside the grid."""

    size: str
    """Entry of the ladder: its ``name``, or its preset, or ``<layers>x<width>``."""

    tokens: Tokens
    """Token budget D."""

    frequency: NonNegativeInt
    """Infusion frequency F, exposures of each infused fact."""

    seed: NonNegativeInt = 0
    """Seed of weights, order and exposures."""


class StudyTraining(Config):
    """Training settings that the runs of a study share."""

    sequence_length: Count = Field(ge=2)
    """Sequence length L in tokens."""

    global_batch_size: int = Field(gt=0)
    """Sequences per step, over all data-parallel ranks."""

    micro_batch_size: int | None = Field(None, gt=0)
    """Sequences per forward pass on one rank."""

    precision: Precision = "auto"
    """Precision of weights and activations (``training.precision`` of a run)."""

    deterministic: bool = False
    """Whether runs on CUDA give the same bits each time (``training.deterministic`` of a run)."""

    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and its schedule."""

    guard: GuardConfig = GuardConfig()
    """Bad steps and hung ranks."""


class StudyConfig(Config):
    """A family of runs and the questions asked of it."""

    name: SafeName
    """Name of the study."""

    output: Path
    """Folder for its data, runs and report."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on; ``auto`` is CUDA where there is one."""

    data: DataPrepConfig
    """Sources and choices of the data."""

    ladder: Annotated[tuple[LadderEntry, ...], AfterValidator(_distinct)] = Field(min_length=1)
    """Model sizes N."""

    token_budgets: Budgets = ()
    """Token budgets D."""

    frequencies: Counts = ()
    """Infusion frequencies F; 0 is the run without infusion."""

    seeds: Counts = (0,)
    """Seeds of weights, orders and exposures; each is one run per cell."""

    runs: tuple[ListedRun, ...] = ()
    """Runs outside the grid, such as those that ``kis study next --write`` adds."""

    training: StudyTraining
    """Training settings that all runs share."""

    background: Background = BackgroundConfig()
    """Settings of the background facts, whose retention is watched."""

    schedule: str | dict[str, Any] = "uniform"
    """Schedule of the exposures in every run (``infusion.schedule`` of a run)."""

    templates: Literal["round_robin", "random"] | NonNegativeInt = "round_robin"
    """Train template that an exposure shows (``infusion.templates`` of a run)."""

    documents: DocumentsConfig = DocumentsConfig()
    """Treatment of the boundaries between documents."""

    checkpoints: CheckpointConfig = CheckpointConfig()
    """Settings of the checkpoints."""

    probes: ProbeConfig = ProbeConfig()
    """Settings of the knowledge probe."""

    validation: ValidationConfig = ValidationConfig()
    """Settings of the validation loss."""

    logging: LoggingConfig = LoggingConfig()
    """Settings of the logs."""

    executor: ExecutorConfig = ExecutorConfig()
    """Execution on this machine."""

    cluster: ClusterConfig = ClusterConfig()
    """Settings of the jobs of ``kis study submit``."""

    analysis: AnalysisConfig = AnalysisConfig()
    """Criteria and settings of the analysis, declared before the data are seen."""

    predict: tuple[Annotated[Quantity, Field(gt=0, allow_inf_nan=False)], ...] = ()
    """Sizes to predict for, in parameters; they need not be trained."""

    @model_validator(mode="after")
    def _has_runs(self) -> StudyConfig:
        grid = {(rung.label, *cell) for rung in self.ladder for cell in self.grid_of(rung)}
        labels = [rung.label for rung in self.ladder]
        listed: dict[tuple[str, int, int, int], int] = {}
        for number, run in enumerate(self.runs):
            if run.size not in labels:
                msg = f"runs.{number}.size: {run.size!r} is no size of the ladder; {nearest(run.size, labels)}"
                raise ValueError(msg)
            key = (run.size, run.tokens, run.frequency, run.seed)
            if key in grid or key in listed:
                there = "in the grid" if key in grid else f"runs.{listed[key]}"
                msg = f"runs.{number}: the same run is {there} already; take one away, or give it another seed"
                raise ValueError(msg)
            listed[key] = number
        if not grid and not listed:
            missing = next((name for name in ("token_budgets", "frequencies", "seeds") if not getattr(self, name)), "")
            msg = f"{missing or 'ladder'}: the study has no run; give token_budgets, frequencies and seeds, or runs"
            raise ValueError(msg)
        return self

    def grid_of(self, rung: LadderEntry) -> list[tuple[int, int, int]]:
        """Returns (budget, frequency, seed) of every run that the grid gives a size."""
        axes = ("token_budgets", "frequencies", "seeds")
        own = [getattr(self, axis) if getattr(rung, axis) is None else getattr(rung, axis) for axis in axes]
        return list(itertools.product(*own))

    @property
    def runs_folder(self) -> Path:
        """Folder of the runs."""
        return self.output / "runs"
