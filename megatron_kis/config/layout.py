"""Checks that a parallel layout can hold a model and share its batches: arithmetic only, before anything is started.

The same functions check a study before its data are prepared, a run before its ranks meet, and the model where it is
built, so that what is refused is refused once and early. Nothing here needs PyTorch or Megatron-Core.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from megatron_kis.common.errors import InputError, placed
from megatron_kis.common.units import plural
from megatron_kis.config.ladder import ModelShape
from megatron_kis.config.model import ModelConfig
from megatron_kis.config.training import ParallelConfig, TrainingConfig
from megatron_kis.config.vocabulary import padded_vocabulary

if TYPE_CHECKING:
    from megatron_kis.config.run import RunConfig

_FP8_MULTIPLE = 16
"""Multiple that Transformer Engine requires of what a product sums over; a weight's gradient sums over the tokens."""


def check_layout(
    model: ModelConfig,
    parallel: ParallelConfig,
    training: TrainingConfig,
    *,
    replicas: int | None = None,
    vocabulary: int | None = None,
) -> None:
    """Refuses a layout that cannot train a model with its batches.

    Args:
        model: the model's settings.
        parallel: the layout.
        training: batches and sequence length.
        replicas: number of data-parallel replicas; those of ``parallel`` if not given.
        vocabulary: pieces of the tokenizer; None if that is not known yet, and its rows are not checked.

    Raises:
        InputError: with the key, the numbers, and what could be split or shared.
    """
    check_shape(
        model.shape(),
        parallel,
        rows=None if vocabulary is None else padded_vocabulary(vocabulary),
        implementation=model.transformer_impl,
    )
    replicas = parallel.replicas if replicas is None else replicas
    check_batches(training, parallel, replicas)
    if training.precision == "fp8":
        check_fp8(model.shape(), training, parallel, replicas)


def check_layouts(runs: Iterable[RunConfig], *, vocabulary: int | None = None) -> None:
    """Checks the layers and the layout of many runs; equal ones are checked once.

    Raises:
        InputError: with the name of the first run that is impossible.
    """
    checked = set()
    for run in runs:
        training = run.training
        batches = (training.global_batch_size, training.micro_batch_size, training.sequence_length, training.precision)
        own_mask = run.documents.reset_attention
        key = (run.model, run.parallel, batches, own_mask)
        if key in checked:
            continue
        checked.add(key)
        with placed(f"run {run.name}"):
            check_layers(run.model.transformer_impl, own_mask=own_mask, precision=training.precision)
            check_layout(run.model, run.parallel, training, vocabulary=vocabulary)


def check_layers(implementation: str, *, own_mask: bool, precision: str) -> None:
    """Refuses settings for which there are no layers on any device.

    Args:
        implementation: implementation of the layers (``model.transformer_impl``).
        own_mask: whether attention has a mask in addition to the causal one (documents that do not see each other).
        precision: ``fp8`` needs Transformer Engine.

    Raises:
        InputError: Transformer Engine's causal attention would ignore a mask, or store its scores; or FP8 without it.
    """
    if precision == "fp8" and implementation not in ("auto", "transformer_engine"):
        raise InputError(
            f"FP8 needs Transformer Engine's layers; model.transformer_impl is {implementation}",
            where="training.precision",
            remedy="use model.transformer_impl=auto, or bf16",
        )
    if precision == "fp32" and implementation == "transformer_engine":
        raise InputError(
            "Transformer Engine has no fused attention in FP32; its own would store all scores",
            where="model.transformer_impl",
            remedy="use auto or sdpa, or training.precision=bf16",
        )
    if own_mask and (precision == "fp8" or implementation == "transformer_engine"):
        raise InputError(
            "Transformer Engine's causal layers take no other mask, documents would see each other",
            where="documents.reset_attention",
            remedy="use training.precision=bf16" if precision == "fp8" else "use model.transformer_impl=sdpa or auto",
        )


def replicas_of(processes: int, *, tensor: int = 1, pipeline: int = 1, context: int = 1) -> int:
    """Returns the number of data-parallel replicas of a run that is started with so many processes.

    Raises:
        InputError: the processes are no multiple of the processes of one replica.
    """
    replica = tensor * pipeline * context
    if processes % replica:
        sizes = f"tensor={tensor} x pipeline={pipeline}" + (f" x context={context}" if context > 1 else "")
        raise InputError(
            f"{plural(processes, 'process')} cannot hold {sizes}",
            where="parallel",
            remedy=f"start a multiple of {replica} processes with torchrun",
        )
    return processes // replica


def check_shape(
    shape: ModelShape, parallel: ParallelConfig, *, rows: int | None = None, implementation: str = "auto"
) -> None:
    """Refuses a layout that does not divide a shape.

    Args:
        shape: the model's shape.
        parallel: the layout.
        rows: padded rows of the embedding (``padded_vocabulary``); None if they are not known.
        implementation: implementation of the layers (``model.transformer_impl``).

    Raises:
        InputError: with the key, the numbers, and what could be split.
    """
    if parallel.context > 1 and implementation == "local":
        raise InputError(
            "Megatron-Core's own attention needs whole sequences",
            where="parallel.context",
            remedy="use model.transformer_impl=auto",
        )
    split = {"heads": shape.heads, "query_groups": shape.query_groups, "ffn_width": shape.ffn_width}
    if rows is not None:
        split["rows of the vocabulary"] = rows
    for name, value in split.items():
        if value % parallel.tensor:
            raise InputError(
                f"{value} {name} cannot be split {parallel.tensor} ways",
                where="parallel.tensor",
                remedy=f"use a divisor of {value}",
            )
    if shape.layers % parallel.pipeline:
        raise InputError(
            f"{shape.layers} layers cannot be split into {parallel.pipeline} stages",
            where="parallel.pipeline",
            remedy=f"use a divisor of {shape.layers}",
        )
    per_stage = shape.layers // parallel.pipeline
    if per_stage % parallel.virtual:
        raise InputError(
            f"a stage's {per_stage} layers cannot be split into {parallel.virtual} chunks",
            where="parallel.virtual",
            remedy=f"use a divisor of {per_stage}",
        )


def check_batches(training: TrainingConfig, parallel: ParallelConfig, replicas: int) -> None:
    """Refuses batches and sequences that the ranks of a layout cannot share.

    Args:
        training: batches and sequence length.
        parallel: the layout.
        replicas: number of data-parallel replicas.

    Raises:
        InputError: with the key, the numbers, and the size that could be shared.
    """
    batch, length = training.global_batch_size, training.sequence_length
    if batch % replicas:
        raise InputError(
            f"{batch} sequences cannot be shared by {replicas} replicas",
            where="training.global_batch_size",
            remedy=f"use a multiple of {replicas}",
        )
    share = batch // replicas
    if training.micro_batch_size and share % training.micro_batch_size:
        raise InputError(
            f"{training.micro_batch_size} does not divide a replica's {share} sequences",
            where="training.micro_batch_size",
            remedy=f"use a divisor of {share}",
        )
    pieces = 2 * parallel.context
    if parallel.context > 1 and length % pieces:
        raise InputError(
            f"{length} tokens cannot be dealt in {pieces} pieces to {parallel.context} ranks",
            where="training.sequence_length",
            remedy=f"use a multiple of {pieces}, or a smaller parallel.context",
        )
    multiple = parallel.tensor * (pieces if parallel.context > 1 else 1)
    if parallel.sequence and length % multiple:
        raise InputError(
            f"{length} tokens cannot be split over {parallel.tensor} tensor ranks",
            where="training.sequence_length",
            remedy=f"use a multiple of {multiple}, or parallel.sequence: false",
        )
    batches = share // (training.micro_batch_size or share)
    if parallel.virtual > 1 and batches % parallel.pipeline:
        raise InputError(
            f"{batches} micro-batches per step cannot take turns on {parallel.pipeline} interleaved stages",
            where="training.micro_batch_size",
            remedy=f"make a replica's {share} sequences a multiple of {parallel.pipeline} micro-batches",
        )


def check_fp8(shape: ModelShape, training: TrainingConfig, parallel: ParallelConfig, replicas: int) -> None:
    """Refuses matrices that cannot be multiplied in FP8, whose sizes must be multiples of ``_FP8_MULTIPLE``.

    Args:
        shape: the model's shape.
        training: batches and sequence length.
        parallel: the layout.
        replicas: number of data-parallel replicas.

    Raises:
        InputError: with what is odd, and its size on a rank.
    """
    share = training.global_batch_size // replicas
    tokens = (training.micro_batch_size or share) * training.sequence_length // parallel.context
    t = parallel.tensor
    for what, size in {
        "model.width": shape.width,
        "model.heads x their width": shape.queries // t,
        "the width of queries, keys and values": (shape.queries + 2 * shape.keys) // t,
        "model.ffn_width": shape.ffn_width // t,
        "the number of tokens of a micro-batch": tokens // t if parallel.sequence else tokens,
    }.items():
        if size % _FP8_MULTIPLE:
            raise InputError(
                f"fp8 needs multiples of {_FP8_MULTIPLE}; on a rank {size} is {what}",
                where="training.precision",
                remedy="change that size, or use bf16",
            )
