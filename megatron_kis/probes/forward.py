"""The model's side of a probe: Megatron's pipeline turns rows of prefix trees into log-likelihoods of edges.

Options of one row do not attend to each other (an attention mask), and each has the positions that it would have alone
(rotary angles by depth in place of the place in the row). The last stage stops before its output layer, whose logits
are never held all at once. Data-parallel replicas share the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_kis.data_tools.storage.ranges import ranges, starts_of
from megatron_kis.distributed.collectives import sum_over_data
from megatron_kis.distributed.megatron_imports import quiet_megatron
from megatron_kis.model.attention import SdpaAttention
from megatron_kis.model.head import head_inputs, head_weight, headless
from megatron_kis.probes.prefix_tree import EdgeScores, PackedPrefixTrees
from megatron_kis.probes.readout import read_tokens, to_device
from megatron_kis.probes.row_tensors import attention_mask, fitted

if TYPE_CHECKING:
    from megatron_kis.engine.forward_pass import ForwardPass

with quiet_megatron():
    from megatron.core.models.gpt.gpt_model import GPTModel

Batch = dict[str, torch.Tensor]


class Scorer:
    """Scores prefix trees with a model."""

    def __init__(self, engine: ForwardPass) -> None:
        """Wraps the engine; its chunks are left as they were after each pass."""
        self._engine = engine
        self._layout = engine.layout
        self._device = engine.device.torch_device
        self._few_shapes = self._device.type != "cpu"
        """Whether passes are padded to few shapes: accelerators choose, plan or compile kernels for each shape."""
        modules = [module for chunk in engine.chunks for module in chunk.modules()]
        self.branching = any(isinstance(module, SdpaAttention) for module in modules)
        """Whether rows may hold trees: Transformer Engine's and the local attention keep to their causal mask."""

    @torch.no_grad()
    def score(self, trees: PackedPrefixTrees, rows_per_pass: int) -> EdgeScores | None:
        """Returns the log-likelihoods of all edges; collective: every rank calls this.

        Args:
            trees: packed statements, the same on every rank.
            rows_per_pass: rows per forward pass.

        Returns:
            The scores, or None on ranks without the loss.
        """
        assert self.branching or not trees.branching
        rows = np.argsort(trees.counts, kind="stable")[self._layout.data_rank :: self._layout.data_size]
        values = torch.zeros((2, len(trees.labels)), dtype=torch.float64, device=self._device)
        self._engine.gather()  # with replicas that have fewer rows, or none
        for part, size in self._parts(rows, rows_per_pass):
            batch, labels, which = self._batch(trees, part, size)
            hidden = self._engine.forward(partial(_call, batch), rows=size, length=batch["tokens"].shape[1])
            if hidden is not None:
                values[:, batch["edges"]] = self._read_edges(hidden, batch["nodes"], which, labels).double()
            del hidden  # or it would be alive in the next pass
        if not self._layout.is_last_stage:
            return None
        log_probs, greedy = sum_over_data(values, context=True).cpu().numpy()
        return EdgeScores(log_probs, greedy > 0)

    def _parts(self, rows: NDArray[np.int64], rows_per_pass: int) -> Iterator[tuple[NDArray[np.int64], int]]:
        """Yields the rows of each pass, and how many to pad them to: one shape for all passes of an accelerator."""
        passes = -(-len(rows) // rows_per_pass)
        size = -(-len(rows) // max(1, passes)) if self._few_shapes else rows_per_pass
        for number in range(passes):
            part = rows[number * size : (number + 1) * size]
            yield part, size if self._few_shapes else len(part)

    def _width(self, nodes: int) -> int:
        """Returns the width of a row: of few shapes multiples of 32, and past 512 nodes eight widths per doubling."""
        step = max(32, 1 << nodes.bit_length() >> 4) if self._few_shapes else 1
        return nodes + -nodes % math.lcm(step, self._layout.sequence_multiple)

    def _batch(
        self, trees: PackedPrefixTrees, rows: NDArray[np.int64], size: int
    ) -> tuple[Batch, NDArray[np.int64], NDArray[np.int64]]:
        """Lays out a pass over rows, the last one repeated up to ``size`` rows.

        Returns:
            The tensors of the pass; and the token and the node (its number among those needed) of each edge that this
            rank reads.
        """
        width = self._width(int(trees.counts[rows].max()))
        mine = self._engine.positions(width).numpy()
        local = np.full(width, -1)
        local[mine] = np.arange(len(mine))
        lengths = trees.edge_starts[rows + 1] - trees.edge_starts[rows]
        edges = ranges(trees.edge_starts[rows], starts_of(lengths))
        places = local[trees.places[edges]]
        of_row = np.repeat(np.arange(len(rows)), lengths)
        nodes = np.where(places < 0, -1, of_row * len(mine) + places)
        # Edges in the order of their nodes, without those of nodes that other ranks of a context hold.
        order = np.argsort(nodes, kind="stable")
        order = order[np.searchsorted(nodes[order], 0) :]
        edges = edges[order]
        needed, which = np.unique(nodes[order], return_inverse=True)
        padded = np.pad(rows, (0, size - len(rows)), mode="edge")
        arrays = {
            "tokens": fitted(trees.tokens[padded], width)[:, mine],
            "depths": fitted(trees.depths[padded], width)[:, mine],
            "nodes": needed,
            "edges": edges,
        }
        if trees.branching:
            arrays |= {"ends": fitted(trees.ends[padded], width), "places": mine}
        batch = to_device({name: array.astype(np.int64) for name, array in arrays.items()}, self._device)
        if trees.branching:
            batch["mask"] = attention_mask(batch["places"], batch["ends"], self._engine.chunks[0].config.params_dtype)
        return batch, trees.labels[edges].astype(np.int64), which

    def _read_edges(
        self, hidden: torch.Tensor, nodes: torch.Tensor, which: NDArray[np.int64], labels: NDArray[np.int64]
    ) -> torch.Tensor:
        """Returns the log-likelihood of each edge, and 1 where no token is more likely: [2, edges].

        Args:
            hidden: [W, rows, hidden] input of the output layer; W is split over ranks under sequence parallelism.
            nodes: [n] places among the rows * W nodes, ascending.
            which: [edges] number of the node of each edge.
            labels: [edges] token of each edge.
        """
        model = self._engine.chunks[-1].module
        inputs = head_inputs(model, hidden).transpose(0, 1).flatten(0, 1)[nodes]
        return read_tokens(inputs, head_weight(model), which, labels, model.pg_collection.tp)


def _call(batch: Batch, chunk: Any) -> torch.Tensor:
    """Returns a chunk's output for a batch; the last chunk's is the input of its output layer."""
    with headless(chunk.module):
        tokens, depths = batch["tokens"], batch["depths"]
        if "mask" not in batch:
            output: torch.Tensor = chunk(tokens, depths, None)
        else:
            with _placed(chunk.module, depths):
                output = chunk(tokens, depths, batch["mask"])
    return output


class _DepthAngles(torch.nn.Module):
    """Replaces a rotary embedding: the angles of given depths."""

    def __init__(self, inverse_frequencies: torch.Tensor, depths: torch.Tensor) -> None:
        super().__init__()
        angles = depths.T[:, :, None, None] * inverse_frequencies.to(depths.device)  # [W, rows, 1, head / 2]
        self._angles = torch.cat((angles, angles), dim=-1)

    def get_rotary_seq_len(self, *_: Any, **__: Any) -> int:
        """Returns the length that Megatron-Core passes to ``forward``."""
        return len(self._angles)

    def forward(self, *_: Any, **__: Any) -> torch.Tensor:
        """Returns the angles in radians, [W, rows, 1, head width]."""
        return self._angles


@contextmanager
def _placed(model: GPTModel, depths: torch.Tensor) -> Iterator[None]:
    """Gives each node the position of its depth, in place of its place in the row."""
    rotary = model.rotary_pos_emb
    model.rotary_pos_emb = _DepthAngles(rotary.inv_freq, depths)
    try:
        yield
    finally:
        model.rotary_pos_emb = rotary
