"""FP8's delayed scaling: its state from step to step, and passes that do not touch it.

Each matrix product of Transformer Engine has a scale for each of its tensors, chosen from the largest values of steps
before. A run that resumes without them continues with other numbers. Transformer Engine puts them into a model's state
dict as a pickle; reading one runs code, so a checkpoint has the tensors themselves, under names of our own.

All ranks that hold a layer agree on its scales (largest values are reduced over tensor, context and data-parallel
ranks), so one copy is saved, and it loads under every layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from megatron_kis.distributed.groups import ParallelDims
from megatron_kis.distributed.megatron_imports import quiet_megatron
from megatron_kis.model.build import global_name

with quiet_megatron():
    from megatron.core.dist_checkpointing.mapping import ShardedTensor
    from megatron.core.fp8_utils import get_fp8_context

_DIRECTIONS = ("scaling_fwd", "scaling_bwd")
_REMEMBERED = ("scale", "amax_history")


class DelayedScaling:
    """Scales of a rank's layers."""

    def __init__(self, chunks: Sequence[Any], layout: ParallelDims) -> None:
        """Makes them, as the first forward pass would.

        Args:
            chunks: wrapped models whose configuration has ``fp8``.
            layout: this rank's place in the layout.
        """
        self._replica = (layout.tensor_rank, layout.data_rank, layout.context_rank)  # the first of a stage writes
        self._tensors: dict[str, torch.Tensor] = {}
        """Tensors by name in the whole model; they are Transformer Engine's own, and must be changed in place."""
        for chunk in chunks:
            with torch.no_grad(), quiet_megatron(), get_fp8_context(chunk.config):
                for name, product in chunk.module.named_modules():
                    if not hasattr(product, "fp8_meta") or "weight" not in dict(
                        product.named_parameters(recurse=False)
                    ):
                        continue  # attention, which is not computed in FP8, has such a state too
                    product.init_fp8_metadata()
                    for direction in _DIRECTIONS:
                        for what in _REMEMBERED:
                            key = f"{global_name(chunk.module, name)}.{direction}.{what}"
                            self._tensors[key] = getattr(product.fp8_meta[direction], what)

    def sharded_state(self) -> dict[str, ShardedTensor]:
        """Returns scales and histories, in the form that ``shards`` saves and loads."""
        return {
            name: ShardedTensor.from_rank_offsets(f"fp8.{name}", tensor, replica_id=self._replica)
            for name, tensor in self._tensors.items()
        }

    @torch.no_grad()
    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restores what ``sharded_state`` described, from plain tensors."""
        for name, tensor in self._tensors.items():
            tensor.copy_(state[name])


@contextmanager
def without_fp8(chunk: Any) -> Iterator[None]:
    """Lets a chunk compute its matrix products in the precision of its weights.

    For passes without gradients. In FP8 they would add to the largest values from which the next training step takes
    its scales, use the copies of the weights that the last step began with, and take batches of certain sizes only.

    Args:
        chunk: a wrapped model.
    """
    precision, chunk.config.fp8 = chunk.config.fp8, None
    try:
        yield
    finally:
        chunk.config.fp8 = precision
