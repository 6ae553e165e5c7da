"""The configuration of a run: its sections, and the moments at which something happens.

A docstring under each field says what it is, its unit, and why its default is what it is. The sections of ``data``,
``model`` and ``training`` have files of their own and can be imported from here as well. ``common.configuration`` reads
them from YAML and overrides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from megatron_kis.common.configuration import Config, Count, OtherFile, SafeName, absolute_content
from megatron_kis.common.extras import require_package
from megatron_kis.common.files import fingerprint
from megatron_kis.common.terms import DeviceName, Split
from megatron_kis.config.data import DataConfig, DocumentsConfig, InfusionConfig
from megatron_kis.config.model import ModelConfig
from megatron_kis.config.training import GuardConfig, OptimizerConfig, ParallelConfig, Precision, TrainingConfig

__all__ = [
    "CheckpointConfig",
    "CheckpointScheduleConfig",
    "DataConfig",
    "DocumentsConfig",
    "EvalScheduleConfig",
    "GuardConfig",
    "InfusionConfig",
    "LoggingConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "Precision",
    "ProbeConfig",
    "RunConfig",
    "TrainingConfig",
    "ValidationConfig",
]


class EvalScheduleConfig(Config):
    """Moments at which something happens during a run."""

    shares: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (1.0,)
    """Shares of the run, each in [0, 1]; 1 is after the last step."""

    every: int | None = Field(None, gt=0)
    """Number of steps after which it happens again."""

    tokens: tuple[Annotated[Count, Field(ge=0)], ...] = ()
    """Numbers of trained tokens at which it also happens: after the step that reaches them. Numbers beyond the run's
    budget are skipped, so that runs of several budgets can share a list."""

    def steps(self, last: int, *, step_tokens: int | None = None) -> frozenset[int]:
        """Returns the steps (0 is before the first) at which it happens in a run of ``last`` steps, and the last one.

        Args:
            last: number of steps of the run.
            step_tokens: tokens per step; needed where ``tokens`` are named.
        """
        steps = {round(share * last) for share in self.shares} | {last}
        if self.tokens:
            assert step_tokens is not None
            steps |= {step for count in self.tokens if (step := -(-count // step_tokens)) <= last}
        if self.every:
            steps |= set(range(self.every, last + 1, self.every))
        return frozenset(steps)


def _asked_templates() -> dict[Split, int | None]:
    return {"train": 3, "held_out": None, "question": None}


class ProbeConfig(Config):
    """The knowledge probe."""

    moments: EvalScheduleConfig = EvalScheduleConfig(shares=(1.0,))
    """Moments of probing. Curves and laws are made of the last one; more moments follow facts through training."""

    templates: dict[Split, NonNegativeInt | None] = Field(default_factory=_asked_templates)
    """Number of templates of each split that are evaluated (the first ones of a relation); null for all, 0 for none; a
    split that is left out is not evaluated."""

    facts_per_group: PositiveInt | None = None
    """Largest number of facts per group that are asked about, to save time; all if not given. They are the first ones
    in the order of ``infusion.facts``, and of background facts the first ones of each frequency."""

    batch_size: int = Field(512, gt=0)
    """Options scored in one forward pass."""

    @field_validator("templates")
    @classmethod
    def _asks_something(cls, templates: dict[str, int | None]) -> dict[str, int | None]:
        if all(count == 0 for count in templates.values()):
            msg = "asks nothing; give at least one of train, held_out and question"
            raise ValueError(msg)
        return templates


class CheckpointScheduleConfig(EvalScheduleConfig):
    """Moments at which a run is saved."""

    minutes: float | None = Field(15.0, gt=0)
    """Minutes since the last checkpoint after which the run is saved again. A crash costs at most this."""


class CheckpointConfig(Config):
    """Checkpoints of a run, from which it resumes after a crash, under another layout, or as another run's start."""

    moments: CheckpointScheduleConfig = CheckpointScheduleConfig()
    """Moments of saving; checkpoints of ``shares`` (and the last) stay, those of ``every`` and ``minutes`` are removed
    again."""

    keep_last: int = Field(2, ge=1)
    """Number of newest checkpoints that are kept; two, so that one is left if the other is damaged."""

    keep_best: bool = True
    """Whether the checkpoint with the lowest validation loss is kept (of those saved where the loss was measured)."""

    asynchronous: bool = True
    """Whether to write while training continues; costs a copy of weights and optimizer in the host's memory."""


class ValidationConfig(Config):
    """The loss on general text."""

    moments: EvalScheduleConfig = EvalScheduleConfig(shares=(0.25, 0.5, 0.75, 1.0))
    """Moments at which the loss is measured."""

    max_tokens: Count = Field(1_000_000, gt=0)
    """Largest number of tokens that are read."""


class LoggingConfig(Config):
    """Logs that a run writes."""

    every: int = Field(10, gt=0)
    """Steps between the rows of metrics.jsonl."""

    tensorboard: bool = False
    """Also write TensorBoard's event files, into the run's folder; needs the package ``tensorboard``."""

    wandb: Literal["online", "offline"] | None = None
    """Also log to Weights & Biases; ``offline`` writes into the run's folder alone. Needs the package ``wandb``."""

    def check_packages(self) -> None:
        """Refuses a tracker whose package is not installed.

        Raises:
            InputError: names the key.
        """
        if self.tensorboard:
            require_package("tensorboard", "logging.tensorboard")
        if self.wandb is not None:
            require_package("wandb", "logging.wandb")


class RunConfig(Config):
    """One run: a cell (N, D, F) with a seed."""

    other_file = OtherFile(
        key="ladder",
        own="model",
        problem="is a study, not a run",
        remedy="kis study run trains its runs, each of which has a config.yaml in its folder",
    )

    name: SafeName
    """Name of the run, and of its folder."""

    study: SafeName | Literal[""] = ""
    """Name of the study to which it belongs."""

    output: Path
    """The run's folder."""

    device: DeviceName = "auto"
    """Device to train on; ``auto`` is CUDA if there is one."""

    data: DataConfig
    """Files of text, exposures, questions and the tokenizer."""

    model: ModelConfig
    """Shape of the model."""

    training: TrainingConfig
    """Token budget, batches, precision and optimizer."""

    infusion: InfusionConfig
    """Amount and schedule of the infused facts."""

    extends: Path | None = None
    """Folder of a finished run that this one continues. Its plan comes first, and ``infusion`` says what is shown in
    the added tokens (``token_budget`` is the total)."""

    trunk: Path | None = None
    """Folder of a run that has the same settings except for the dose. This run starts from its checkpoint of the step
    at which infusion begins (``infusion.begins``). If there is none, it trains these steps itself, with the same
    result."""

    documents: DocumentsConfig = DocumentsConfig()
    """Treatment of the boundaries between documents."""

    parallel: ParallelConfig = ParallelConfig()
    """Parallel layout."""

    probes: ProbeConfig = ProbeConfig()
    """Settings of the knowledge probe."""

    validation: ValidationConfig = ValidationConfig()
    """Settings of the validation loss."""

    checkpoints: CheckpointConfig = CheckpointConfig()
    """Settings of the checkpoints."""

    logging: LoggingConfig = LoggingConfig()
    """Settings of the logs."""

    @model_validator(mode="after")
    def _begins_somewhere(self) -> RunConfig:
        if self.trunk is not None and self.infusion.begins is None:
            msg = "trunk: needs infusion.begins, the point at which this run leaves the trunk"
            raise ValueError(msg)
        if self.extends is not None and self.infusion.begins is not None:
            msg = "extends: excludes infusion.begins, because the run starts where the extended run ends; give one"
            raise ValueError(msg)
        if self.infusion.begins is not None and not 0 < self.begin_step < self.training.steps:
            last = self.training.steps - 1
            within = f"use a share from 1/{last + 1} to {last}/{last + 1}" if last else "use more steps"
            msg = f"infusion.begins: {self.infusion.begins:g} of {last + 1} steps is step {self.begin_step}; {within}"
            raise ValueError(msg)
        return self

    @property
    def begin_step(self) -> int:
        """Number of steps before infusion begins."""
        return round((self.infusion.begins or 0.0) * self.training.steps)

    @property
    def ranks(self) -> int:
        """Number of processes that train the run."""
        return self.parallel.ranks

    def settings_fingerprint(self) -> str:
        """Returns the fingerprint of all settings but the files: any of them may change whether the run fails."""
        return fingerprint(self.model_dump(mode="json", exclude={"data", "output"}))

    def absolute_content(self) -> dict[str, Any]:
        """Returns the content of the run's configuration file, with absolute paths."""
        return absolute_content(self)
