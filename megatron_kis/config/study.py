"""The configuration of a study: a ladder of sizes, budgets, doses and seeds, and how its runs are executed.

Its runs are a grid, ladder x ``token_budgets`` x ``facts`` x (``frequencies`` and ``infusion_ratios``) x ``seeds``, in
which a size may have values of its own and the run without infusion is one, and single ones listed in ``runs``.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from megatron_kis.common.configuration import Config, Count, OtherFile, Quantity, SafeName
from megatron_kis.common.errors import nearest
from megatron_kis.common.terms import SCORING_RULES, DeviceName
from megatron_kis.config.analysis import AnalysisConfig
from megatron_kis.config.data import Background, BackgroundConfig, DocumentsConfig
from megatron_kis.config.dose import Dose, dose_of
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
    seen = set()
    for value in values:
        if str(value) in seen:
            msg = f"has an entry twice ({getattr(value, 'label', value)}); keep one of them"
            raise ValueError(msg)
        seen.add(str(value))
    return values


Tokens = Annotated[Count, Field(gt=0)]
Budgets = Annotated[tuple[Tokens, ...], AfterValidator(_distinct)]
Counts = Annotated[tuple[Annotated[Count, Field(ge=0)], ...], AfterValidator(_distinct)]
Ratio = Annotated[float, Field(ge=0, lt=1)]
Ratios = Annotated[tuple[Ratio, ...], AfterValidator(_distinct)]


Seeds = Annotated[tuple[Annotated[Count, Field(ge=0, lt=2**63)], ...], AfterValidator(_distinct)]
"""As large as PyTorch's generators take them."""


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

    facts: Counts | None = None
    """Numbers of infused facts of this size in the grid; the study's if not given, and all facts alone if empty."""

    frequencies: Counts | None = None
    """Frequencies of this size in the grid; the study's if not given, and none at all if empty."""

    infusion_ratios: Ratios | None = None
    """Infusion ratios of this size in the grid; the study's if not given, and none at all if empty."""

    seeds: Seeds | None = None
    """Seeds of this size in the grid; the study's if not given."""


class ListedRun(Config):
    """One run outside the grid."""

    size: str
    """Entry of the ladder: its ``name``, or its preset, or ``<layers>x<width>``."""

    tokens: Tokens
    """Token budget D."""

    facts: NonNegativeInt | None = None
    """Number K of infused facts that are shown; all if not given."""

    frequency: NonNegativeInt | None = None
    """Infusion frequency F, exposures of each infused fact."""

    infusion_ratio: Ratio | None = None
    """Infusion ratio rho, share of the tokens for infused facts, in place of ``frequency``."""

    seed: NonNegativeInt = 0
    """Seed of weights, order and exposures."""

    @model_validator(mode="after")
    def _one_of_both(self) -> ListedRun:
        if (self.frequency is None) == (self.infusion_ratio is None):
            msg = "needs one of 'frequency' and 'infusion_ratio'"
            raise ValueError(msg)
        return self

    @property
    def dose(self) -> Dose:
        """Its dose."""
        return dose_of(self.facts, self.frequency, self.infusion_ratio)


class TrunkConfig(Config):
    """What runs of a size, budget and seed share."""

    share: float = Field(gt=0, lt=1)
    """Share of the steps that only the run without infusion trains. All other runs start from its checkpoint, and are
    infused from there on (``infusion.begins`` of a run). A ratio is still a share of all tokens."""


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

    other_file = OtherFile(key="model", own="ladder", problem="is a run, not a study", remedy="kis train trains it")

    name: SafeName
    """Name of the study."""

    output: Path
    """Folder for its data, runs and report."""

    device: DeviceName = "auto"
    """Device to train on; ``auto`` is CUDA if there is one."""

    data: DataPrepConfig
    """Sources and choices of the data."""

    ladder: Annotated[tuple[LadderEntry, ...], AfterValidator(_distinct)] = Field(min_length=1)
    """Model sizes N."""

    token_budgets: Budgets = ()
    """Token budgets D."""

    facts: Counts = ()
    """Numbers K of infused facts that are shown, the first ones in the order of ``infusion.facts``; 0 is the run
    without infusion. All of them if empty."""

    frequencies: Counts = ()
    """Infusion frequencies F; 0 is the run without infusion."""

    infusion_ratios: Ratios = ()
    """Infusion ratios rho, shares of the tokens for infused facts, in addition to ``frequencies`` or in place of them.
    Each number of facts is shown as often as its share allows. 0 is the run without infusion."""

    seeds: Seeds = (0,)
    """Seeds of weights, orders and exposures; each is one run per cell."""

    runs: tuple[ListedRun, ...] = ()
    """Runs outside the grid, such as those that ``kis study next --write`` adds."""

    trunk: TrunkConfig | None = None
    """A trunk from which the runs of a size, budget and seed branch: the run without infusion, which is added where the
    study does not name it. None: each run is trained, and infused, from the start."""

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
        grid = {self._run_key(rung.label, *cell) for rung in self.ladder for cell in self.grid_of(rung)}
        labels = [rung.label for rung in self.ladder]
        listed: dict[tuple[str, int, Dose, int], int] = {}
        for number, run in enumerate(self.runs):
            if run.size not in labels:
                msg = f"runs.{number}.size: {run.size!r} is not a size of the ladder; {nearest(run.size, labels)}"
                raise ValueError(msg)
            key = self._run_key(run.size, run.tokens, run.dose, run.seed)
            if key in grid or key in listed:
                there = "in the grid" if key in grid else f"runs.{listed[key]}"
                msg = f"runs.{number}: the same run is {there} already; remove one, or give it another seed"
                raise ValueError(msg)
            listed[key] = number
        if not grid and not listed:
            missing = next((name for name in ("token_budgets", "seeds") if not getattr(self, name)), "")
            if not missing and not self.frequencies and not self.infusion_ratios:
                missing = "frequencies"
            msg = (
                f"{missing or 'ladder'}: the study has no run; give token_budgets, frequencies or infusion_ratios, and "
                "seeds; or runs"
            )
            raise ValueError(msg)
        return self

    def _run_key(self, size: str, tokens: int, dose: Dose, seed: int) -> tuple[str, int, Dose, int]:
        """Returns what distinguishes runs; all facts count as their number."""
        if dose.infuses and dose.facts is None:
            dose = dataclasses.replace(dose, facts=self.data.select.infused)
        return size, tokens, dose, seed

    @model_validator(mode="after")
    def _facts_are_there(self) -> StudyConfig:
        most = self.data.select.infused
        named = [("facts", self.facts)]
        named += [(f"ladder.{number}.facts", rung.facts or ()) for number, rung in enumerate(self.ladder)]
        named += [(f"runs.{number}.facts", (run.facts or 0,)) for number, run in enumerate(self.runs)]
        for key, counts in named:
            if any(count > most for count in counts if count):
                msg = f"{key}: {max(counts)} of {most} infused facts; at most {most}, or raise data.select.infused"
                raise ValueError(msg)
        doses = [dose for rung in self.ladder for _, dose, _ in self.grid_of(rung)]
        if any(self.facts) and not any(dose.infuses for dose in doses):
            only = [number for number, rung in enumerate(self.ladder) if rung.facts and not any(rung.facts)]
            msg = "facts: none of them is shown; give frequencies or infusion_ratios above 0"
            if len(only) == len(self.ladder):
                msg = f"ladder.{only[0]}.facts: has only 0, the run without infusion; add a number of facts above 0"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _background_is_there(self) -> StudyConfig:
        wanted, most = sum(group.facts for group in self.background.groups), self.data.select.background
        if wanted > most:
            msg = (
                f"background: the groups have {wanted} facts together, of {most} background facts; make groups "
                "smaller, or raise data.select.background"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _what_is_analysed_is_asked(self) -> StudyConfig:
        scoring, split, asked = self.analysis.scoring, self.analysis.split, self.probes.templates
        if scoring not in SCORING_RULES:
            msg = f"analysis.scoring: {scoring!r} is not a scoring rule; {nearest(scoring, SCORING_RULES)}"
            raise ValueError(msg)
        counts = {str(name): count for name, count in asked.items()}
        if counts.get(split, 0) == 0:  # None is all of them
            others = ", ".join(name for name, count in counts.items() if count != 0)
            said = f"has 0 of {split}" if split in counts else f"leaves {split} out"
            msg = (
                f"analysis.split: {split!r} is not asked, probes.templates {said}; ask for it there, or analyse one "
                f"that is asked: {others}"
            )
            raise ValueError(msg)
        return self

    def grid_of(self, rung: LadderEntry) -> list[tuple[int, Dose, int]]:
        """Returns (budget, dose, seed) of every run that the grid gives a size; that without infusion is one."""
        budgets, facts, frequencies, ratios, seeds = (
            getattr(self, axis) if getattr(rung, axis) is None else getattr(rung, axis)
            for axis in ("token_budgets", "facts", "frequencies", "infusion_ratios", "seeds")
        )
        often = [(frequency, None) for frequency in frequencies] + [(None, ratio) for ratio in ratios]
        doses = dict.fromkeys(dose_of(count, *each) for count in facts or (None,) for each in often)
        return list(itertools.product(budgets, doses, seeds))

    @property
    def runs_folder(self) -> Path:
        """Folder of the runs."""
        return self.output / "runs"
