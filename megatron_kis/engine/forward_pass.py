"""A model under a parallel layout that is called without training: batches through all stages, and its size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from megatron_kis.distributed.device import Device
from megatron_kis.distributed.groups import ParallelDims
from megatron_kis.distributed.megatron_imports import quiet_megatron
from megatron_kis.engine.scaling import without_fp8
from megatron_kis.model.context import positions

with quiet_megatron():
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator


class ForwardPass:
    """This rank's chunks of a model; what probes and validation need of it."""

    def __init__(self, chunks: Sequence[Any], *, layout: ParallelDims, device: Device) -> None:
        """Takes the chunks of a rank.

        Args:
            chunks: each has a ``module`` (Megatron-Core's ``GPTModel``) and its ``config``, and can be called, gathered
                and switched between training and evaluation.
            layout: this rank's place in the layout.
            device: this rank's device.
        """
        self.layout = layout
        self.device = device
        self.chunks = list(chunks)
        """This rank's layers, as data-parallel replicas: one chunk, or several under the interleaved schedule."""
        self._config = self.chunks[0].config  # the one that Megatron-Core's schedules look at
        self._link = P2PCommunicator(parallel_state.get_pipeline_model_parallel_group(), self._config)

    @torch.no_grad()
    def forward(self, call: Callable[[Any], torch.Tensor], *, rows: int, length: int) -> torch.Tensor | None:
        """Runs a batch through all chunks of all stages, without a gradient, a random draw or FP8.

        Megatron-Core's interleaved schedule needs several micro-batches of one shape; here a batch of any shape is one.
        Replicas that have different numbers of batches call ``gather`` first.

        Args:
            call: calls a chunk with the batch, which every rank of a model replica has.
            rows: number of rows of the batch.
            length: number of tokens of a row on this rank.

        Returns:
            The last chunk's output, on the last stage; None on the others.
        """
        if self._config.sequence_parallel:
            length //= self.layout.tensor_size
        shape = (length, rows, self._config.hidden_size)
        output = None
        self.gather()
        for number, chunk in enumerate(self.chunks):
            chunk.eval()
            arrived = self._link.recv_forward(shape, self.layout.is_first_stage and number == 0)
            chunk.module.set_input_tensor(arrived)
            with without_fp8(chunk):
                output = call(chunk)
            chunk.train()
            at_end = self.layout.is_last_stage and number == len(self.chunks) - 1
            self._link.send_forward(output, at_end)
        return output if self.layout.is_last_stage else None

    def gather(self) -> None:
        """Gathers the weights of the last step; collective. ``forward`` and ``weights`` do so themselves."""
        for chunk in self.chunks:
            chunk.gather()

    def positions(self, length: int) -> torch.Tensor:
        """Returns the places of a sequence of ``length`` tokens that this rank holds, int64, ascending."""
        return positions(length, size=self.layout.context_size, rank=self.layout.context_rank)

    def parameters(self, *, without: tuple[str, ...] = ()) -> int:
        """Returns the number of parameters of the whole model, each counted once over the ranks; collective.

        Args:
            without: beginnings of the names of parameters that are not counted.
        """
        from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
        from megatron.core.transformer.module import param_is_not_shared

        mine = sum(
            parameter.numel()
            for chunk in self.chunks
            for name, parameter in chunk.module.named_parameters()
            if param_is_not_shared(parameter)
            and param_is_not_tensor_parallel_duplicate(parameter)
            and not (without and name.startswith(without))
        )
        total = torch.tensor([mine], dtype=torch.int64, device=self.device.torch_device)
        dist.all_reduce(total, group=parallel_state.get_model_parallel_group())
        return int(total)
