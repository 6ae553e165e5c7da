"""The configuration of a study: a ladder of sizes, budgets, frequencies and seeds, and what is done with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, field_validator

from megatron_kis.config import (
    CheckpointConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    ProbeConfig,
    ValidationConfig,
)
from megatron_kis.data.settings import BackgroundConfig, DocumentsConfig
from megatron_kis.settings import Settings


class RungConfig(ModelConfig):
    """One size of the ladder."""

    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of this size; the study's if not given."""

    parallel: ParallelConfig = ParallelConfig()
    """Layout of this size's runs."""


class StudyTraining(Settings):
    """What the runs of a study share."""

    sequence_length: int = Field(ge=2)
    """L, tokens."""

    global_batch_size: int = Field(gt=0)
    """Sequences a step."""

    micro_batch_size: int | None = Field(None, gt=0)
    """Sequences a forward pass on one rank."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of weights and activations."""

    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and its schedule."""


class ExecutorConfig(Settings):
    """How runs are executed on this machine."""

    workers: int | None = Field(None, gt=0)
    """Runs side by side; as many as there are cores if not given."""

    threads: int = Field(1, gt=0)
    """Threads of each process. Small models gain more from runs side by side than from threads."""


class StudyConfig(Settings):
    """A family of runs and the questions asked of it."""

    name: str
    """Name of the study."""

    output: Path
    """Folder for its data, runs and report."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""

    data: dict[str, Any]
    """Sources and choices of ``data_tools.prepare.DataSettings`` (kis data --help)."""

    ladder: tuple[RungConfig, ...] = Field(min_length=1)
    """Sizes N."""

    token_budgets: tuple[int, ...] = Field(min_length=1)
    """Budgets D, tokens."""

    frequencies: tuple[int, ...] = Field(min_length=1)
    """Infusion frequencies F; 0 is the run without infusion."""

    seeds: tuple[int, ...] = (0,)
    """Seeds of weights, orders and exposures; each is one run a cell."""

    training: StudyTraining
    """Shared by all runs."""

    background: BackgroundConfig = BackgroundConfig()
    """The facts whose retention is watched."""

    schedule: str | dict[str, Any] = "uniform"
    """When exposures come, in every run (``infusion.schedule`` of a run)."""

    templates: Literal["round_robin", "random"] | NonNegativeInt = "round_robin"
    """Which train template an exposure shows (``infusion.templates`` of a run)."""

    documents: DocumentsConfig = DocumentsConfig()
    """Boundaries of documents."""

    checkpoints: CheckpointConfig = CheckpointConfig()
    """What of each run is saved."""

    probes: ProbeConfig = ProbeConfig()
    """Knowledge probe."""

    validation: ValidationConfig = ValidationConfig()
    """Validation loss."""

    logging: LoggingConfig = LoggingConfig()
    """Logs."""

    executor: ExecutorConfig = ExecutorConfig()
    """Execution."""

    analysis: dict[str, Any] = Field(default_factory=dict)
    """Criteria, declared before the data are seen (``analysis.AnalysisSettings``)."""

    predict: tuple[float, ...] = ()
    """Sizes to predict for, parameters, that need not be trained."""

    @field_validator("frequencies")
    @classmethod
    def _not_negative(cls, frequencies: tuple[int, ...]) -> tuple[int, ...]:
        if any(frequency < 0 for frequency in frequencies):
            msg = f"must be 0 or more (got {min(frequencies)})"
            raise ValueError(msg)
        return frequencies

    @field_validator("token_budgets")
    @classmethod
    def _positive(cls, budgets: tuple[int, ...]) -> tuple[int, ...]:
        if any(budget < 1 for budget in budgets):
            msg = f"must be positive (got {min(budgets)})"
            raise ValueError(msg)
        return budgets

    @field_validator("ladder", "frequencies", "seeds", "token_budgets")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len({str(value) for value in values}) < len(values):
            msg = "has an entry twice"
            raise ValueError(msg)
        return values

    @property
    def runs_folder(self) -> Path:
        """Where the runs lie."""
        return self.output / "runs"
