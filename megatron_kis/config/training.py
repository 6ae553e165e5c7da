"""Settings of how a model is trained: budget and batches, optimizer and schedule, bad steps, the parallel layout."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from megatron_kis.common.configuration import Config, Count
from megatron_kis.common.errors import InputError

Precision = Literal["auto", "fp32", "bf16", "fp8"]


def resolve_precision(precision: Precision, *, cpu: bool) -> Literal["fp32", "bf16", "fp8"]:
    """Returns the precision that a run has on a device.

    Args:
        precision: as configured.
        cpu: whether the device is the CPU.
    """
    if precision != "auto":
        return precision
    return "fp32" if cpu else "bf16"


def check_precision(precision: str, *, cpu: bool) -> None:
    """Refuses to train on the CPU with weights in half precision.

    On CUDA such weights have copies in fp32 that take up updates smaller than the weights' own steps. On the CPU they
    would have none: the same settings would be two trainings. Evaluating such a checkpoint on the CPU is no problem.

    Args:
        precision: resolved.
        cpu: whether the device is the CPU.

    Raises:
        InputError: it is such a training.
    """
    if cpu and precision == "bf16":
        raise InputError(
            "is bf16; a CPU cannot train in bf16 (its weights would have no fp32 copies)",
            where="training.precision",
            remedy="use auto or fp32, or a CUDA device",
        )


class OptimizerConfig(Config):
    """AdamW and the learning-rate schedule."""

    learning_rate: float = Field(3e-3, gt=0)
    """Peak learning rate; if ``reference_width`` is given, that of a model of this width."""

    reference_width: int | None = Field(None, gt=0)
    """Width for which ``learning_rate`` was tuned. A model's own peak is then learning_rate x reference_width / width,
    the rule of muP for the hidden matrices under Adam (Yang et al. 2022, table 8), so that one rate serves a ladder."""

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


class GuardConfig(Config):
    """Handling of steps that go wrong."""

    skip_in_a_row: int = Field(0, ge=0)
    """Number of bad steps in a row that are skipped before the run stops; 0 stops at the first. Their exposures do not
    count as received, and the run's record names them."""

    loss_rise: float | None = Field(None, gt=0)
    """A step is bad if its loss is this many nats above the running mean. If not given, only losses that are not finite
    are bad."""

    hang_minutes: float | None = Field(30.0, gt=0)
    """Minutes after which a step, or a probe, counts as hung: each rank writes its stacks and ends."""


class TrainingConfig(Config):
    """Budget, batches and precision."""

    token_budget: Count = Field(gt=0)
    """Token budget D, rounded down to whole global batches."""

    sequence_length: Count = Field(ge=2)
    """Sequence length L in tokens."""

    global_batch_size: int = Field(gt=0)
    """Sequences per step, over all data-parallel ranks."""

    micro_batch_size: int | None = Field(None, gt=0)
    """Sequences per forward pass on one rank; the rank's whole share if not given."""

    seed: int = Field(0, ge=0)
    """Seed of the weights, the order of the text and the exposures."""

    precision: Precision = "auto"
    """``auto`` is bf16 on CUDA and fp32 on a CPU. A CPU trains only in fp32, because weights in bf16 would have no
    copies in fp32 there, and small updates would be lost. ``fp8``: weights in bf16, and Transformer Engine's matrix
    products in FP8 in training steps (E4M3 forward, E5M2 backward, delayed scaling). It needs Transformer Engine, CUDA,
    and sizes that are multiples of 16. Probes, validation and exports use the same weights in bf16."""

    deterministic: bool = False
    """Use only deterministic kernels on CUDA: equal runs on equal machines, libraries and layouts then have equal bits.
    It costs speed (attention without cuDNN, NCCL without NVLink's sums). A CPU is always deterministic."""

    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and its schedule."""

    guard: GuardConfig = GuardConfig()
    """Bad steps and hung ranks."""

    @property
    def steps(self) -> int:
        """Total number of optimizer steps."""
        return self.token_budget // self.step_tokens

    @property
    def step_tokens(self) -> int:
        """Tokens per step, over all data-parallel ranks."""
        return self.sequence_length * self.global_batch_size

    @model_validator(mode="after")
    def _at_least_a_step(self) -> TrainingConfig:
        if self.steps < 1:
            msg = (
                f"token_budget {self.token_budget} is less than one step of {self.global_batch_size} x "
                f"{self.sequence_length} tokens (training.global_batch_size x training.sequence_length); at least "
                f"{self.step_tokens}, or smaller steps"
            )
            raise ValueError(msg)
        if self.micro_batch_size and self.global_batch_size % self.micro_batch_size:
            msg = f"global_batch_size must be a multiple of micro_batch_size ({self.micro_batch_size})"
            raise ValueError(msg)
        return self


class ParallelConfig(Config):
    """The parallel layout; data parallelism takes what remains of the processes."""

    replicas: int = Field(1, ge=1)
    """Data-parallel replicas that ``kis study`` starts. ``kis train`` uses as many as it is started with."""

    tensor: int = Field(1, ge=1)
    """Tensor-parallel size: number of ranks that share each layer."""

    pipeline: int = Field(1, ge=1)
    """Pipeline-parallel size: number of stages."""

    virtual: int = Field(1, ge=1)
    """Chunks of layers per stage (Megatron-Core's interleaved schedule): a smaller bubble for more messages. The
    micro-batches of a step must be a multiple of the stages."""

    context: int = Field(1, ge=1)
    """Ranks that share each sequence, for sequences too long for one rank. Transformer Engine's layers pass keys and
    values around a ring. With ``sdpa`` each rank gathers them all."""

    sequence: bool = False
    """Whether norms and residuals are also split over the tensor ranks, along the sequence."""

    recompute: Literal["none", "selective", "full"] = "none"
    """Activations that are computed again in the backward pass to save memory: none, those of the feed-forward blocks
    (about half of a layer's for 15% to 25% more computation), or those of whole layers (almost all for about 30%)."""

    @property
    def ranks(self) -> int:
        """Number of processes that ``kis study`` starts for a run, one per GPU."""
        return self.tensor * self.pipeline * self.context * self.replicas

    @model_validator(mode="after")
    def _can_be_run(self) -> ParallelConfig:
        if self.virtual > 1 and self.pipeline == 1:
            msg = f"virtual is {self.virtual}: virtual chunks need several stages; set pipeline as well"
            raise ValueError(msg)
        return self
