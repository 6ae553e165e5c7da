"""Layouts of a model on GPUs: which of them fit, their time and their cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from megatron_kis.common.errors import InputError
from megatron_kis.config.ladder import ModelShape
from megatron_kis.planning.hardware import Gpu
from megatron_kis.planning.memory import Memory, memory
from megatron_kis.planning.parts import EvaluationLoad
from megatron_kis.planning.split import Recompute, Split
from megatron_kis.planning.times import Program, Seconds, step_time
from megatron_kis.planning.work import Layers, Precision

_USABLE = 0.94
"""Share of the memory that may be filled: the rest is lost to fragmentation (an assumption)."""


@dataclass(frozen=True)
class Job:
    """A training run that is planned."""

    shape: ModelShape
    """Shape of the model."""

    vocabulary: int
    """Padded rows of the embedding."""

    tokens: float
    """Tokens of the run."""

    length: int
    """Tokens of a sequence."""

    global_batch: int
    """Sequences per step, over all replicas."""

    precision: Precision = "bf16"
    """Precision of weights and products."""

    layers: Layers | Literal["auto"] = "auto"
    """Implementation of the layers (``model.transformer_impl``)."""

    own_mask: bool = False
    """Whether documents do not see each other (``documents.reset_attention``)."""

    evaluation: EvaluationLoad = field(default_factory=EvaluationLoad)
    """Sizes of the run's validation and probes."""

    @property
    def flops(self) -> float:
        """Operations of a step, not counting those that recomputation repeats."""
        return self.shape.flops_per_token(self.vocabulary, self.length) * self.global_batch * self.length


@dataclass(frozen=True)
class PlannedLayout:
    """One layout with its memory and time."""

    split: Split
    """Division of the run over ranks."""

    micro_batch: int
    """Sequences of a micro-batch."""

    micro_batches: int
    """Micro-batches of a step, per replica."""

    memory: Memory
    """Memory of the fullest GPU."""

    seconds: Seconds
    """Time of a step."""

    steps: int
    """Number of steps of the run."""

    mfu: float
    """Share of the peak of all GPUs (of FP32 in that precision, else of BF16) that the model's operations take up."""

    @property
    def step_seconds(self) -> float:
        """Seconds of a whole step."""
        return self.seconds.total

    @property
    def gpu_hours(self) -> float:
        """Hours of the run, summed over all GPUs."""
        return self.step_seconds * self.steps * self.split.gpus / 3600

    def as_dict(self) -> dict[str, Any]:
        """Returns values for JSON, in bytes, seconds and hours."""
        split = self.split
        return {
            "tensor": split.tensor,
            "pipeline": split.pipeline,
            "virtual": split.virtual,
            "context": split.context,
            "data": split.data,
            "sequence": split.sequence,
            "recompute": split.recompute,
            "distributed_optimizer": split.distributed_optimizer,
            "micro_batch": self.micro_batch,
            "micro_batches": self.micro_batches,
            "memory": self.memory.as_dict(),
            "step_seconds": self.step_seconds,
            "seconds": self.seconds.as_dict(),
            "limit": self.seconds.limit,
            "mfu": self.mfu,
            "gpu_hours": self.gpu_hours,
        }


def find_layouts(
    job: Job,
    *,
    gpus: int,
    kind: Gpu,
    program: Program | None = None,
    mfu: float | None = None,
    interleave: bool = False,
) -> list[PlannedLayout]:
    """Returns layouts on all of ``gpus`` that fit, the fastest first; of equals the one with the fewest parts.

    Each has the micro-batch, the recomputation and the sharing of sequences with which it is fastest.

    Args:
        job: the run.
        gpus: number of GPUs.
        kind: kind of GPU.
        program: how a step is programmed.
        mfu: share of the peak that was measured with the fastest layout; the times of all are scaled to it.
        interleave: whether to include stages of several chunks (``parallel.virtual``).

    Raises:
        InputError: nothing fits.
    """
    found: dict[tuple[int, int, int], PlannedLayout] = {}
    for split in _splits(job, gpus, kind, interleave=interleave):
        key = (split.tensor, split.pipeline, split.virtual)
        share = job.global_batch // split.data
        for micro_batch in _divisors(share):
            count = share // micro_batch
            if split.pipeline > 1 and (count < split.pipeline or (split.virtual > 1 and count % split.pipeline)):
                continue  # stages would be idle; interleaved stages take turns on as many micro-batches as stages
            option = _layout(job, split, micro_batch, kind, program)
            if option.memory.total > kind.memory * _USABLE:
                break  # larger ones do not fit either
            if key not in found or option.step_seconds < found[key].step_seconds * (1 - 1e-9):
                found[key] = option
    if not found:
        raise InputError(
            f"no layout on {gpus} {kind.name} holds the model with {job.global_batch} sequences per step",
            where="--gpus",
            remedy="use more GPUs or ones with more memory, or a batch that more replicas divide",
        )
    fastest_first = sorted(found.values(), key=_preference)
    factor = _factor(fastest_first[0], mfu)
    return [_scaled(option, factor) for option in fastest_first]


def configured_layout(
    job: Job,
    split: Split,
    *,
    micro_batch: int | None,
    kind: Gpu,
    program: Program | None = None,
    mfu: float | None = None,
) -> tuple[PlannedLayout, bool]:
    """Returns a layout as a configuration has it, and whether it fits.

    Args:
        job: the run.
        split: the layout.
        micro_batch: sequences per forward pass; a replica's whole share if None.
        kind: kind of GPU.
        program: how a step is programmed.
        mfu: share of the peak that was measured with this layout.

    Raises:
        InputError: the replicas or the micro-batches do not divide the batch.
    """
    share, rest = divmod(job.global_batch, split.data)
    size = min(micro_batch or share, share)
    if rest or share % size:
        raise InputError(
            f"{job.global_batch} sequences per step cannot be shared by {split.data} replicas in micro-batches of "
            f"{size}",
            where="training.global_batch_size",
            remedy=f"use a multiple of {split.data * size}",
        )
    option = _layout(job, split, size, kind, program)
    return _scaled(option, _factor(option, mfu)), option.memory.total <= kind.memory * _USABLE


def _layout(job: Job, split: Split, micro_batch: int, kind: Gpu, program: Program | None) -> PlannedLayout:
    """Computes memory and time of a layout, whether it fits or not."""
    count = job.global_batch // split.data // micro_batch
    parts = memory(
        job.shape,
        job.vocabulary,
        split,
        length=job.length,
        micro_batch=micro_batch,
        micro_batches=count,
        precision=job.precision,
        layers=job.layers,
        own_mask=job.own_mask,
        evaluation=job.evaluation,
    )
    engine = job.layers == "transformer_engine" or job.precision == "fp8"
    seconds = step_time(
        job.shape,
        job.vocabulary,
        split,
        length=job.length,
        micro_batch=micro_batch,
        micro_batches=count,
        gpu=kind,
        program=program or Program(fused_accumulation=engine, ring=engine, precision=job.precision),
    )
    steps = math.floor(job.tokens / (job.global_batch * job.length))
    mfu = job.flops / (split.gpus * kind.peak(job.precision) * seconds.total)
    return PlannedLayout(split, micro_batch, count, parts, seconds, steps, mfu)


def _factor(reference: PlannedLayout, mfu: float | None) -> float:
    """Returns the factor of every time with which ``reference`` reaches the measured share of the peak."""
    return 1.0 if mfu is None else reference.mfu / mfu


def _scaled(option: PlannedLayout, factor: float) -> PlannedLayout:
    return replace(option, seconds=option.seconds.scaled(factor), mfu=option.mfu / factor)


def _preference(option: PlannedLayout) -> tuple[float, ...]:
    split = option.split
    return (round(option.step_seconds, 9), split.tensor * split.pipeline, split.tensor, split.virtual)


def _splits(job: Job, gpus: int, kind: Gpu, *, interleave: bool) -> Iterator[Split]:
    """Yields layouts that divide model, batch and GPUs; first without recomputation, and with whole sequences."""
    shape = job.shape
    for tensor in _divisors(math.gcd(gpus, shape.heads, shape.query_groups, shape.ffn_width, job.vocabulary)):
        if tensor > kind.node:
            continue
        shared = [False, True] if tensor > 1 and job.length % tensor == 0 else [False]
        for pipeline in _divisors(math.gcd(gpus // tensor, shape.layers)):
            data = gpus // (tensor * pipeline)
            if job.global_batch % data:
                continue
            for virtual in _divisors(shape.layers // pipeline) if interleave and pipeline > 1 else [1]:
                for recompute, sequence in itertools.product(get_args(Recompute), shared):
                    yield Split(
                        tensor=tensor,
                        pipeline=pipeline,
                        virtual=virtual,
                        data=data,
                        recompute=recompute,
                        distributed_optimizer=data > 1,
                        sequence=sequence,
                    )


def _divisors(number: int) -> list[int]:
    return [value for value in range(1, number + 1) if number % value == 0]
