"""The configuration of a run.

A docstring under each field says what it is, its unit, and why its default is what it is. How it is read from YAML and
overrides is in ``settings``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from megatron_kis.data.settings import DataConfig, DocumentsConfig, InfusionConfig
from megatron_kis.errors import nearest
from megatron_kis.model.ladder import PRESETS, ModelShape, preset
from megatron_kis.settings import Settings

Precision = Literal["auto", "fp32", "bf16", "fp8"]


class ModelConfig(Settings):
    """The model: a preset by name, or an explicit shape."""

    preset: str | None = None
    """Name of a shape in the ladder (``kis train --help`` lists them)."""

    name: str | None = None
    """What to call the model in the names of runs; its preset or its widths if not given."""

    layers: int | None = None
    """Transformer layers of an explicit shape."""

    width: int | None = None
    """Hidden size of an explicit shape."""

    heads: int | None = None
    """Attention heads of an explicit shape."""

    query_groups: int | None = None
    """Key-value heads; as many as ``heads`` if not given."""

    ffn_width: int | None = None
    """Feed-forward width; 8/3 of ``width`` rounded up to a multiple of 16 if not given (SwiGLU at 4x cost)."""

    tied_embeddings: bool = True
    """Share the embedding with the output layer."""

    rope_base: int = 10_000
    """Base of the rotary embedding."""

    norm_epsilon: float = Field(1e-5, gt=0)
    """Added to the mean square in RMSNorm."""

    init_from: Path | None = None
    """Folder of ``kis import hf``: the weights to begin with. The other keys must be those that it names."""

    init_std: float = Field(0.02, gt=0)
    """Standard deviation of the initial weights (GPT-2's value)."""

    transformer_impl: Literal["auto", "transformer_engine", "sdpa", "local"] = "auto"
    """The layers: Transformer Engine's; Megatron-Core's with PyTorch's fused attention; or all Megatron-Core's own (to
    compare). ``auto``: Transformer Engine where it can be imported and there is CUDA, ``sdpa`` elsewhere."""

    @field_validator("preset")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None and name not in PRESETS:
            msg = f"no model preset {name!r}; {nearest(name, PRESETS)}"
            raise ValueError(msg)
        return name

    @model_validator(mode="after")
    def _one_of_both(self) -> ModelConfig:
        explicit = [self.layers, self.width, self.heads]
        if self.preset is None and None in explicit:
            msg = "needs either 'preset' or all of 'layers', 'width' and 'heads'"
            raise ValueError(msg)
        explicit += [self.query_groups, self.ffn_width]
        defaults = {name: ModelConfig.model_fields[name].default for name in ("rope_base", "norm_epsilon")}
        changed = not self.tied_embeddings or any(getattr(self, name) != value for name, value in defaults.items())
        if self.preset is not None and (changed or any(value is not None for value in explicit)):
            msg = "has both a 'preset' and an explicit shape; give one"
            raise ValueError(msg)
        return self

    @property
    def label(self) -> str:
        """Short name of the shape, for run names."""
        return self.name or self.preset or f"{self.layers}x{self.width}"

    def shape(self) -> ModelShape:
        """The shape that is meant."""
        if self.preset is not None:
            return preset(self.preset)
        assert self.layers is not None and self.width is not None and self.heads is not None
        return ModelShape(
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            query_groups=self.heads if self.query_groups is None else self.query_groups,
            ffn_width=-(-(8 * self.width // 3) // 16) * 16 if self.ffn_width is None else self.ffn_width,
            tied_embeddings=self.tied_embeddings,
            rope_base=self.rope_base,
            norm_epsilon=self.norm_epsilon,
        )


class OptimizerConfig(Settings):
    """AdamW and the learning-rate schedule."""

    learning_rate: float = Field(3e-3, gt=0)
    """Peak learning rate; of a model of ``reference_width``, if that is given."""

    reference_width: int | None = Field(None, gt=0)
    """Lets the peak fall with the width of a model: learning_rate x reference_width / width, the rule of muP for the
    hidden matrices under Adam (Yang et al. 2022, table 8). So one rate tuned on a small model serves a ladder."""

    schedule: Literal["cosine", "wsd"] = "cosine"
    """``cosine`` to the minimum, or ``wsd``: warm-up, stable, linear decay (one trunk serves several budgets)."""

    warmup_share: float = Field(0.02, ge=0, lt=1)
    """Share of the steps over which the rate rises linearly."""

    decay_share: float = Field(0.2, gt=0, le=1)
    """``wsd`` only: share of the steps, at the end, over which the rate falls."""

    minimum_share: float = Field(0.1, ge=0, le=1)
    """The last rate as a share of the peak (Hoffmann et al. 2022 use 0.1)."""

    weight_decay: float = Field(0.1, ge=0)
    """Decoupled weight decay on matrices; norms have none."""

    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""

    beta2: float = Field(0.95, ge=0, lt=1)
    """Decay of the second moment; 0.95 is usual for language models (GPT-3)."""

    epsilon: float = Field(1e-8, gt=0)
    """AdamW's epsilon."""

    gradient_clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient over all parameters."""

    @model_validator(mode="after")
    def _phases_fit(self) -> OptimizerConfig:
        if self.schedule == "wsd" and self.warmup_share + self.decay_share > 1:
            msg = f"warmup_share {self.warmup_share} and decay_share {self.decay_share} are more than 1 together"
            raise ValueError(msg)
        return self


class GuardConfig(Settings):
    """What to do about steps that go wrong."""

    skip_in_a_row: int = Field(0, ge=0)
    """Bad steps in a row whose update is left out before the run stops; 0 stops at the first. Their exposures do not
    count as received, and the run's record names them."""

    loss_rise: float | None = Field(None, gt=0)
    """Nats above its running mean at which a loss makes a step a bad one; none if not given: only what is not finite
    is bad."""

    hang_minutes: float | None = Field(30.0, gt=0)
    """A step, or a probe, that takes longer is taken for hung: each rank writes its stacks and ends."""


class TrainingConfig(Settings):
    """Budget, batches and precision."""

    token_budget: int = Field(gt=0)
    """D, tokens; rounded down to whole global batches."""

    sequence_length: int = Field(ge=2)
    """L, tokens."""

    global_batch_size: int = Field(gt=0)
    """Sequences a step, over all data-parallel ranks."""

    micro_batch_size: int | None = Field(None, gt=0)
    """Sequences a forward pass on one rank; the rank's whole share if not given."""

    seed: int = Field(0, ge=0)
    """Seed of the weights, the order of the text and the exposures."""

    precision: Precision = "auto"
    """``auto``: bf16 on CUDA, fp32 on CPU. ``fp8``: bf16 weights, Transformer Engine's matrix products in FP8 (E4M3
    forward, E5M2 backward); needs it and CUDA."""

    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and its schedule."""

    guard: GuardConfig = GuardConfig()
    """Bad steps and hung ranks."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return self.token_budget // self.step_tokens

    @property
    def step_tokens(self) -> int:
        """Tokens of a step."""
        return self.sequence_length * self.global_batch_size

    @model_validator(mode="after")
    def _at_least_a_step(self) -> TrainingConfig:
        if self.steps < 1:
            msg = (
                f"token_budget {self.token_budget} is less than one step of "
                f"{self.global_batch_size} x {self.sequence_length} tokens"
            )
            raise ValueError(msg)
        if self.micro_batch_size and self.global_batch_size % self.micro_batch_size:
            msg = f"global_batch_size must be a multiple of micro_batch_size ({self.micro_batch_size})"
            raise ValueError(msg)
        return self


class ParallelConfig(Settings):
    """The parallel layout; data parallelism takes what remains of the processes."""

    replicas: int = Field(1, ge=1)
    """Data-parallel replicas that ``kis study`` starts. ``kis train`` takes as many as it is started with."""

    tensor: int = Field(1, ge=1)
    """Tensor-parallel size."""

    pipeline: int = Field(1, ge=1)
    """Pipeline-parallel size."""

    virtual: int = Field(1, ge=1)
    """Chunks of layers a stage (Megatron-Core's interleaved schedule): a smaller bubble for more messages. The
    micro-batches of a step must be a multiple of the stages."""

    context: int = Field(1, ge=1)
    """Ranks that share each sequence, for sequences too long for one. Transformer Engine's layers pass keys and values
    round; with ``sdpa`` each rank gathers them all."""

    sequence: bool = False
    """Split norms and residuals over the tensor ranks along the sequence, too."""

    recompute: Literal["none", "selective", "full"] = "none"
    """Activations that are computed again in the backward pass to save memory: none, those of the attention, or those
    of whole layers (about a third more computation)."""

    @property
    def ranks(self) -> int:
        """Processes that ``kis study`` starts for a run, one a GPU."""
        return self.tensor * self.pipeline * self.context * self.replicas

    @model_validator(mode="after")
    def _can_be_run(self) -> ParallelConfig:
        if self.virtual > 1 and self.pipeline == 1:
            msg = f"virtual is {self.virtual}: chunks take turns on several stages; set pipeline, too"
            raise ValueError(msg)
        return self


class MomentsConfig(Settings):
    """When something happens during a run."""

    shares: tuple[float, ...] = (1.0,)
    """Shares of the run, each in [0, 1]; 1 is after the last step."""

    every: int | None = Field(None, gt=0)
    """Also every so many steps."""

    tokens: tuple[NonNegativeInt, ...] = ()
    """Also when so many tokens have been trained on: after the step that reaches them. Counts beyond the run's budget
    are passed over, so that runs of several budgets can share a list."""

    @field_validator("shares")
    @classmethod
    def _shares(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 <= share <= 1 for share in shares):
            msg = "each must lie in [0, 1]"
            raise ValueError(msg)
        return shares

    def steps(self, last: int, *, step_tokens: int | None = None) -> frozenset[int]:
        """The steps (0 is before the first) at which it happens in a run of ``last`` steps; always the last one.

        Args:
            last: steps of the run.
            step_tokens: tokens of a step; needed where ``tokens`` are named.
        """
        steps = {round(share * last) for share in self.shares} | {last}
        if self.tokens:
            assert step_tokens is not None
            steps |= {step for count in self.tokens if (step := -(-count // step_tokens)) <= last}
        if self.every:
            steps |= set(range(self.every, last + 1, self.every))
        return frozenset(steps)


def _asked_templates() -> dict[Literal["train", "held_out", "question"], int | None]:
    return {"train": 3, "held_out": None, "question": None}


class ProbeConfig(Settings):
    """The knowledge probe."""

    moments: MomentsConfig = MomentsConfig(shares=(0.25, 0.5, 0.75, 1.0))
    """When to probe."""

    templates: dict[Literal["train", "held_out", "question"], NonNegativeInt | None] = Field(
        default_factory=_asked_templates
    )
    """Templates of each split that are asked about (the first ones of a relation); null for all, 0 for none; a split
    that is left out is not asked about."""

    batch_size: int = Field(512, gt=0)
    """Options scored in one forward pass."""

    @field_validator("templates")
    @classmethod
    def _asks_something(cls, templates: dict[str, int | None]) -> dict[str, int | None]:
        if all(count == 0 for count in templates.values()):
            msg = "asks nothing; name at least one of train, held_out and question"
            raise ValueError(msg)
        return templates


class CheckpointMomentsConfig(MomentsConfig):
    """When a run is saved."""

    minutes: float | None = Field(15.0, gt=0)
    """Also when so many minutes have passed since the last time: what a crash can cost at most."""


class CheckpointConfig(Settings):
    """What of a run is saved, so that it can go on after a crash, under another layout, or as another run's start."""

    moments: CheckpointMomentsConfig = CheckpointMomentsConfig()
    """When to save; those of ``shares`` (and the last) stay, those of ``every`` and ``minutes`` make room again."""

    keep_last: int = Field(2, ge=1)
    """Newest checkpoints that stay; two, so that one is left if the other is damaged."""

    keep_best: bool = True
    """Whether the one with the lowest validation loss stays (of those saved where the loss was measured)."""

    asynchronous: bool = True
    """Write while training goes on; costs a copy of weights and optimizer in the host's memory."""


class ValidationConfig(Settings):
    """The loss on general text."""

    moments: MomentsConfig = MomentsConfig(shares=(0.25, 0.5, 0.75, 1.0))
    """When to measure."""

    max_tokens: int = Field(1_000_000, gt=0)
    """Tokens that are read at most."""


class LoggingConfig(Settings):
    """What a run writes."""

    every: int = Field(10, gt=0)
    """Steps between the rows of metrics.jsonl."""

    tensorboard: bool = False
    """Also write TensorBoard's event files, into the run's folder; needs the package ``tensorboard``."""

    wandb: Literal["online", "offline"] | None = None
    """Also log to Weights & Biases; ``offline`` writes into the run's folder alone. Needs the package ``wandb``."""


class RunConfig(Settings):
    """One run: a cell (N, D, F) with a seed."""

    name: str
    """Name of the run, and of its folder."""

    study: str = ""
    """The study it belongs to."""

    output: Path
    """The run's folder."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""

    data: DataConfig
    """Files."""

    model: ModelConfig
    """Shape."""

    training: TrainingConfig
    """Budget and optimizer."""

    infusion: InfusionConfig
    """Infusion."""

    extends: Path | None = None
    """Folder of a finished run that this one goes on with: its plan comes first, and ``infusion`` says what is shown in
    the tokens that are added (``token_budget`` is that of the whole)."""

    documents: DocumentsConfig = DocumentsConfig()
    """Boundaries of documents."""

    parallel: ParallelConfig = ParallelConfig()
    """Layout."""

    probes: ProbeConfig = ProbeConfig()
    """Knowledge probe."""

    validation: ValidationConfig = ValidationConfig()
    """Validation loss."""

    checkpoints: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""

    logging: LoggingConfig = LoggingConfig()
    """Logs."""
