"""Whether the ranks of a layout can share a run's batches and sequences; what cannot be is refused by name."""

from __future__ import annotations

from megatron_kis.config import RunConfig
from megatron_kis.errors import InputError
from megatron_kis.parallel import Layout


def check_batches(config: RunConfig, layout: Layout) -> None:
    """Refuses batches and sequences that the ranks of a layout cannot share.

    Raises:
        InputError: with the size that could be shared.
    """
    training = config.training
    if training.global_batch_size % layout.data_size:
        raise InputError(
            f"{training.global_batch_size} sequences cannot be shared by {layout.data_size} replicas",
            where="training.global_batch_size",
            remedy=f"use a multiple of {layout.data_size}",
        )
    share = training.global_batch_size // layout.data_size
    if training.micro_batch_size and share % training.micro_batch_size:
        raise InputError(
            f"{training.micro_batch_size} does not divide a replica's {share} sequences",
            where="training.micro_batch_size",
            remedy=f"use a divisor of {share}",
        )
    pieces = 2 * layout.context_size
    if layout.context_size > 1 and training.sequence_length % pieces:
        raise InputError(
            f"{training.sequence_length} tokens cannot be dealt in {pieces} pieces to {layout.context_size} ranks",
            where="training.sequence_length",
            remedy=f"use a multiple of {pieces}, or a smaller parallel.context",
        )
    if config.parallel.sequence and training.sequence_length % layout.sequence_multiple:
        raise InputError(
            f"{training.sequence_length} tokens cannot be split over {layout.tensor_size} tensor ranks",
            where="training.sequence_length",
            remedy=f"use a multiple of {layout.sequence_multiple}, or parallel.sequence: false",
        )
    batches = share // (training.micro_batch_size or share)
    if layout.virtual_size > 1 and batches % layout.pipeline_size:
        raise InputError(
            f"{batches} micro-batches a step cannot take turns on {layout.pipeline_size} interleaved stages",
            where="training.micro_batch_size",
            remedy=f"make a replica's {share} sequences a multiple of {layout.pipeline_size} micro-batches",
        )
