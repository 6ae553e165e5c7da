"""Layouts that fit, their time and their cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from megatron_kis.errors import InputError
from megatron_kis.model.ladder import ModelShape
from megatron_kis.planning.hardware import Gpu, Utilisation
from megatron_kis.planning.memory import Memory, memory
from megatron_kis.planning.split import Recompute, Split

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
    """Sequences a step."""


@dataclass(frozen=True)
class Option:
    """One layout that fits."""

    split: Split
    micro_batch: int
    micro_batches: int
    memory: Memory
    step_seconds: float
    gpu_hours: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON; bytes, seconds, hours."""
        split = self.split
        return {
            "tensor": split.tensor, "pipeline": split.pipeline, "virtual": split.virtual, "data": split.data,
            "sequence": split.sequence, "recompute": split.recompute,
            "distributed_optimizer": split.distributed_optimizer,
            "micro_batch": self.micro_batch, "micro_batches": self.micro_batches,
            "memory": self.memory.as_dict(), "step_seconds": self.step_seconds, "gpu_hours": self.gpu_hours,
        }  # fmt: skip


def step_seconds(job: Job, split: Split, micro_batches: int, *, kind: Gpu, utilisation: Utilisation) -> float:
    """Seconds of a step.

    The model's operations over peak x MFU; times 4/3 with full recomputation (one more forward pass, which MFU does not
    count); times ``1 + (p - 1) / (v m)``, the pipeline's bubble (Narayanan et al. 2021, section 2.2).
    """
    flops = job.shape.flops_per_token(job.vocabulary, job.length) * job.global_batch * job.length
    ideal = flops / (split.gpus * kind.peak_bf16 * utilisation.mfu)
    bubble = 1 + (split.pipeline - 1) / (split.virtual * micro_batches)
    return ideal * bubble * (4 / 3 if split.recompute == "full" else 1)


def options(job: Job, *, gpus: int, kind: Gpu, utilisation: Utilisation, interleave: bool = False) -> list[Option]:
    """Layouts on all of ``gpus`` that fit, the fastest first; of equals the one that communicates least.

    Each has the largest micro-batch that fits. Recomputation and sequence parallelism are listed only where nothing
    fits without.

    Args:
        job: what is to be trained.
        gpus: how many.
        kind: of GPU.
        utilisation: share of the peak.
        interleave: also stages of several chunks (``parallel.virtual``).

    Raises:
        InputError: nothing fits.
    """
    found: dict[tuple[int, int, int], Option] = {}
    for split in _splits(job, gpus, kind, interleave=interleave):
        key = (split.tensor, split.pipeline, split.virtual)
        if key in found:
            continue
        share = job.global_batch // split.data
        for micro_batch in sorted((size for size in range(1, share + 1) if share % size == 0), reverse=True):
            count = share // micro_batch
            if split.pipeline > 1 and count < split.pipeline:
                continue  # stages would stand idle, and interleaving needs as many micro-batches as stages
            parts = memory(
                job.shape, job.vocabulary, split, length=job.length, micro_batch=micro_batch, micro_batches=count
            )
            if parts.total <= kind.memory * _USABLE:
                seconds = step_seconds(job, split, count, kind=kind, utilisation=utilisation)
                steps = math.floor(job.tokens / (job.global_batch * job.length))
                found[key] = Option(split, micro_batch, count, parts, seconds, seconds * steps * gpus / 3600)
                break
    if not found:
        raise InputError(
            f"no layout on {gpus} {kind.name} holds the model with {job.global_batch} sequences a step",
            where="--gpus",
            remedy="use more GPUs or ones with more memory, or a batch that more replicas divide",
        )
    return sorted(found.values(), key=_preference)


def written(
    job: Job, split: Split, *, micro_batch: int | None, kind: Gpu, utilisation: Utilisation
) -> tuple[Option, bool]:
    """A layout as a configuration has it, and whether it fits.

    Args:
        job: what is to be trained.
        split: the layout.
        micro_batch: sequences a forward pass; a replica's whole share if None.
        kind: of GPU.
        utilisation: share of the peak.

    Raises:
        InputError: the replicas or the micro-batches do not divide the batch.
    """
    share, rest = divmod(job.global_batch, split.data)
    size = min(micro_batch or share, share)
    if rest or share % size:
        raise InputError(
            f"{job.global_batch} sequences a step cannot be shared by {split.data} replicas in micro-batches of {size}",
            where="training.global_batch_size",
            remedy=f"use a multiple of {split.data * size}",
        )
    parts = memory(job.shape, job.vocabulary, split, length=job.length, micro_batch=size, micro_batches=share // size)
    seconds = step_seconds(job, split, share // size, kind=kind, utilisation=utilisation)
    steps = math.floor(job.tokens / (job.global_batch * job.length))
    option = Option(split, size, share // size, parts, seconds, seconds * steps * split.gpus / 3600)
    return option, parts.total <= kind.memory * _USABLE


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
