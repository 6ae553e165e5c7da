"""Layouts that fit, their time and their cost."""

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
from megatron_kis.planning.parts import Besides
from megatron_kis.planning.split import Recompute, Split
from megatron_kis.planning.steps import Layers, Precision
from megatron_kis.planning.times import Program, Seconds, step_time

_USABLE = 0.94
"""Share of the memory that may be filled: the rest is lost to fragments (an assumption)."""


@dataclass(frozen=True)
class Job:
    """What is to be trained."""

    shape: ModelShape
    vocabulary: int
    """Padded rows of the embedding."""

    tokens: float
    length: int
    global_batch: int
    """Sequences per step."""

    precision: Precision = "bf16"
    layers: Layers | Literal["auto"] = "auto"
    """Whose layers (``model.transformer_impl``)."""

    own_mask: bool = False
    """Documents do not see each other (``documents.reset_attention``)."""

    besides: Besides = field(default_factory=Besides)
    """What a run does besides its steps."""

    @property
    def flops(self) -> float:
        """Operations of a step, without those that recomputation repeats."""
        return self.shape.flops_per_token(self.vocabulary, self.length) * self.global_batch * self.length


@dataclass(frozen=True)
class Option:
    """One layout that fits."""

    split: Split
    micro_batch: int
    micro_batches: int
    memory: Memory
    seconds: Seconds
    steps: int
    """Of the run."""

    mfu: float
    """Share of the peak of all GPUs (of FP32 in that precision, else of BF16) that the model's operations take up."""

    @property
    def step_seconds(self) -> float:
        """Of a whole step."""
        return self.seconds.total

    @property
    def gpu_hours(self) -> float:
        """Of the run, on all GPUs."""
        return self.step_seconds * self.steps * self.split.gpus / 3600

    def as_dict(self) -> dict[str, Any]:
        """For JSON; bytes, seconds, hours."""
        split = self.split
        return {
            "tensor": split.tensor, "pipeline": split.pipeline, "virtual": split.virtual, "context": split.context,
            "data": split.data, "sequence": split.sequence, "recompute": split.recompute,
            "distributed_optimizer": split.distributed_optimizer,
            "micro_batch": self.micro_batch, "micro_batches": self.micro_batches,
            "memory": self.memory.as_dict(), "step_seconds": self.step_seconds, "seconds": self.seconds.as_dict(),
            "limit": self.seconds.limit, "mfu": self.mfu, "gpu_hours": self.gpu_hours,
        }  # fmt: skip


def options(
    job: Job,
    *,
    gpus: int,
    kind: Gpu,
    program: Program | None = None,
    mfu: float | None = None,
    interleave: bool = False,
) -> list[Option]:
    """Layouts on all of ``gpus`` that fit, the fastest first; of equals the one with the fewest parts.

    Each has the micro-batch, the recomputation and the sharing of sequences with which it is fastest.

    Args:
        job: what is to be trained.
        gpus: how many.
        kind: of GPU.
        program: how a step is programmed.
        mfu: a share of the peak that was measured, of the fastest; the times of all are scaled to it.
        interleave: also stages of several chunks (``parallel.virtual``).

    Raises:
        InputError: nothing fits.
    """
    found: dict[tuple[int, int, int], Option] = {}
    for split in _splits(job, gpus, kind, interleave=interleave):
        key = (split.tensor, split.pipeline, split.virtual)
        share = job.global_batch // split.data
        for micro_batch in _divisors(share):
            count = share // micro_batch
            if split.pipeline > 1 and (count < split.pipeline or (split.virtual > 1 and count % split.pipeline)):
                continue  # stages would stand idle; interleaved, they take turns on as many micro-batches as there are
            option = _option(job, split, micro_batch, kind, program)
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


def written(
    job: Job,
    split: Split,
    *,
    micro_batch: int | None,
    kind: Gpu,
    program: Program | None = None,
    mfu: float | None = None,
) -> tuple[Option, bool]:
    """A layout as a configuration has it, and whether it fits.

    Args:
        job: what is to be trained.
        split: the layout.
        micro_batch: sequences a forward pass; a replica's whole share if None.
        kind: of GPU.
        program: how a step is programmed.
        mfu: the share of the peak that was measured with this layout.

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
    option = _option(job, split, size, kind, program)
    return _scaled(option, _factor(option, mfu)), option.memory.total <= kind.memory * _USABLE


def _option(job: Job, split: Split, micro_batch: int, kind: Gpu, program: Program | None) -> Option:
    """A layout, whether it fits or not."""
    count = job.global_batch // split.data // micro_batch
    parts = memory(
        job.shape, job.vocabulary, split, length=job.length, micro_batch=micro_batch, micro_batches=count,
        precision=job.precision, layers=job.layers, own_mask=job.own_mask, besides=job.besides,
    )  # fmt: skip
    own = job.layers == "transformer_engine" or job.precision == "fp8"
    seconds = step_time(
        job.shape, job.vocabulary, split, length=job.length, micro_batch=micro_batch, micro_batches=count, gpu=kind,
        program=program or Program(fused_accumulation=own, ring=own, precision=job.precision),
    )  # fmt: skip
    steps = math.floor(job.tokens / (job.global_batch * job.length))
    mfu = job.flops / (split.gpus * kind.peak(job.precision) * seconds.total)
    return Option(split, micro_batch, count, parts, seconds, steps, mfu)


def _factor(reference: Option, mfu: float | None) -> float:
    """What every time is multiplied by, for ``reference`` to reach the share of the peak that was measured."""
    return 1.0 if mfu is None else reference.mfu / mfu


def _scaled(option: Option, factor: float) -> Option:
    return replace(option, seconds=option.seconds.scaled(factor), mfu=option.mfu / factor)


def _preference(option: Option) -> tuple[float, ...]:
    split = option.split
    return (round(option.step_seconds, 9), split.tensor * split.pipeline, split.tensor, split.virtual)


def _splits(job: Job, gpus: int, kind: Gpu, *, interleave: bool) -> Iterator[Split]:
    """Layouts that divide model, batch and GPUs, each without recomputation, and then whole sequences, first."""
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
                        tensor=tensor, pipeline=pipeline, virtual=virtual, data=data, recompute=recompute,
                        distributed_optimizer=data > 1, sequence=sequence,
                    )  # fmt: skip


def _divisors(number: int) -> list[int]:
    return [value for value in range(1, number + 1) if number % value == 0]
