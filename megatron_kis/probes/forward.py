"""The model's side of a probe: rows of a forest through Megatron's pipeline, log-likelihoods of their edges out.

Options of one row do not see each other (an attention mask), and each stands where it would stand alone (rotary angles
by depth in place of the place in the row). The last stage stops before its output layer, whose logits are never all
held. Data-parallel replicas share the rows.
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

from megatron_kis.distributed.collectives import sum_over_data
from megatron_kis.distributed.megatron_imports import quiet_megatron
from megatron_kis.model.attention import SdpaAttention
from megatron_kis.model.head import head_inputs, head_weight, headless
from megatron_kis.probes.packed import send
from megatron_kis.probes.prefix_tree import EdgeScores, Forest
from megatron_kis.probes.ragged import ranges, starts_of
from megatron_kis.probes.readout import read_tokens

if TYPE_CHECKING:
    from megatron_kis.engine.engine import Engine

with quiet_megatron():
    from megatron.core.models.gpt.gpt_model import GPTModel

Batch = dict[str, torch.Tensor]


class Scorer:
    """An engine's model as the probe sees it."""

    def __init__(self, engine: Engine) -> None:
        """Takes the engine; its chunks are left as they were after each pass."""
        self._engine, self._layout = engine, engine.layout
        self._device = engine.device.torch_device
        self._few_shapes = self._device.type != "cpu"
        """Whether passes are padded to few shapes: accelerators choose, plan or compile kernels for each."""
        modules = [module for chunk in engine.chunks for module in chunk.modules()]
        self.branching = any(isinstance(module, SdpaAttention) for module in modules)
        """Whether rows may hold trees: Transformer Engine's and the local attention keep to their causal mask."""

    @torch.no_grad()
    def score(self, forest: Forest, rows_a_pass: int) -> EdgeScores | None:
        """Log-likelihoods of all edges; every rank calls this.

        Args:
            forest: the same on every rank.
            rows_a_pass: rows in one forward pass.

        Returns:
            The scores, or None on ranks without the loss.
        """
        assert self.branching or not forest.branching
        rows = np.argsort(forest.counts, kind="stable")[self._layout.data_rank :: self._layout.data_size]
        values = torch.zeros((2, len(forest.labels)), dtype=torch.float64, device=self._device)
        self._engine.gather()  # with replicas that have fewer rows, or none
        for part, size in self._parts(rows, rows_a_pass):
            batch, labels, which = self._batch(forest, part, size)
            hidden = self._engine.forward(partial(_call, batch), rows=size, length=batch["tokens"].shape[1])
            if hidden is not None:
                values[:, batch["edges"]] = self._read_edges(hidden, batch["nodes"], which, labels).double()
            del hidden  # or it would be alive in the next pass
        if not self._layout.is_last_stage:
            return None
        log_probs, greedy = sum_over_data(values, context=True).cpu().numpy()
        return EdgeScores(log_probs, greedy > 0)

    def _parts(self, rows: NDArray[np.int64], rows_a_pass: int) -> Iterator[tuple[NDArray[np.int64], int]]:
        """Rows of each pass, and how many it is to have: more than there are where padding makes them all alike."""
        passes = -(-len(rows) // rows_a_pass)
        size = -(-len(rows) // max(1, passes)) if self._few_shapes else rows_a_pass
        for number in range(passes):
            part = rows[number * size : (number + 1) * size]
            yield part, size if self._few_shapes else len(part)

    def _width(self, nodes: int) -> int:
        """Tokens of a row that holds so many nodes; of few shapes multiples of 32, past 512 eight to each doubling."""
        step = max(32, 1 << nodes.bit_length() >> 4) if self._few_shapes else 1
        return nodes + -nodes % math.lcm(step, self._layout.sequence_multiple)

    def _batch(
        self, forest: Forest, rows: NDArray[np.int64], size: int
    ) -> tuple[Batch, NDArray[np.int64], NDArray[np.int64]]:
        """A pass over rows, repeated up to ``size``: its tensors; of each edge that this rank reads token and node."""
        width = self._width(int(forest.counts[rows].max()))
        mine = self._engine.positions(width).numpy()
        local = np.full(width, -1)
        local[mine] = np.arange(len(mine))
        lengths = forest.edge_starts[rows + 1] - forest.edge_starts[rows]
        edges = ranges(forest.edge_starts[rows], starts_of(lengths))
        places, numbers = local[forest.places[edges]], np.repeat(np.arange(len(rows)), lengths)
        nodes = np.where(places < 0, -1, numbers * len(mine) + places)
        # In the order of their nodes, without those that leave nodes of ranks that share the rows.
        order = np.argsort(nodes, kind="stable")
        order = order[np.searchsorted(nodes[order], 0) :]
        edges = edges[order]
        needed, which = np.unique(nodes[order], return_inverse=True)
        laid = np.pad(rows, (0, size - len(rows)), mode="edge")
        arrays = {
            "tokens": _fitted(forest.tokens[laid], width)[:, mine],
            "depths": _fitted(forest.depths[laid], width)[:, mine],
            "nodes": needed,
            "edges": edges,
        }
        if forest.branching:
            arrays |= {"ends": _fitted(forest.ends[laid], width), "places": mine}
        batch = send({name: array.astype(np.int64) for name, array in arrays.items()}, self._device)
        if forest.branching:
            batch["mask"] = _mask(batch["places"], batch["ends"], self._engine.chunks[0].config.params_dtype)
        return batch, forest.labels[edges].astype(np.int64), which

    def _read_edges(
        self, hidden: torch.Tensor, nodes: torch.Tensor, which: NDArray[np.int64], labels: NDArray[np.int64]
    ) -> torch.Tensor:
        """[2, edges] log-likelihood, and 1 where no token is likelier.

        Args:
            hidden: [W, rows, hidden] what the output layer would get, the W shared out under sequence parallelism.
            nodes: [n] places among the rows * W nodes, ascending.
            which: [edges] the node of each.
            labels: [edges] tokens.
        """
        model = self._engine.chunks[-1].module
        inputs = head_inputs(model, hidden).transpose(0, 1).flatten(0, 1)[nodes]
        return read_tokens(inputs, head_weight(model), which, labels, model.pg_collection.tp)


def _mask(places: torch.Tensor, ends: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[rows, 1, own, W] what to add to the scores of attention: 0 from a node to itself and to those above, else -inf.

    Args:
        places: [own] nodes of a row that this rank holds.
        ends: [rows, W] where the nodes below each end.
        dtype: of the scores.
    """
    mine, others = places[:, None], torch.arange(ends.shape[1], device=ends.device)
    hidden = (mine < others) | (mine >= ends[:, None, :]) & (mine != others)
    return torch.zeros(hidden.shape, dtype=dtype, device=ends.device).masked_fill_(hidden, -torch.inf)[:, None]


def _call(batch: Batch, chunk: Any) -> torch.Tensor:
    """A chunk's output for a batch, of the last one what its output layer would get."""
    with headless(chunk.module):
        tokens, depths = batch["tokens"], batch["depths"]
        if "mask" not in batch:
            return chunk(tokens, depths, None)
        with _placed(chunk.module, depths):
            return chunk(tokens, depths, batch["mask"])


def _fitted(values: NDArray[np.int32], width: int) -> NDArray[np.int32]:
    """The first ``width`` columns, or more of the last one."""
    return np.pad(values[:, :width], ((0, 0), (0, max(0, width - values.shape[1]))), mode="edge")


class _DepthAngles(torch.nn.Module):
    """In a rotary embedding's place: the angles of given depths."""

    def __init__(self, inverse_frequencies: torch.Tensor, depths: torch.Tensor) -> None:
        super().__init__()
        angles = depths.T[:, :, None, None] * inverse_frequencies.to(depths.device)  # [W, rows, 1, head / 2]
        self._angles = torch.cat((angles, angles), dim=-1)

    def get_rotary_seq_len(self, *_: Any, **__: Any) -> int:
        """Megatron-Core asks for a length, and hands it back to ``forward``."""
        return len(self._angles)

    def forward(self, *_: Any, **__: Any) -> torch.Tensor:
        """[W, rows, 1, head width] radians."""
        return self._angles


@contextmanager
def _placed(model: GPTModel, depths: torch.Tensor) -> Iterator[None]:
    """The model with each node at its depth, in place of its place in the row."""
    rotary = model.rotary_pos_emb
    model.rotary_pos_emb = _DepthAngles(rotary.inv_freq, depths)
    try:
        yield
    finally:
        model.rotary_pos_emb = rotary
