"""The model's side of a probe: rows of a forest through Megatron's pipeline, log-likelihoods of their edges out.

Options of one row do not see each other (an attention mask), and each stands where it would stand alone (rotary angles
by depth in place of the place in the row). The output layer's logits are reduced on the last stage: one normaliser a
node serves all edges that leave it. Data-parallel replicas share the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from megatron_kis.device import quiet_megatron
from megatron_kis.model.attention import SdpaAttention
from megatron_kis.parallel import sum_over_data
from megatron_kis.probes.forest import EdgeScores, Forest

if TYPE_CHECKING:
    from megatron_kis.training.engine import Engine

with quiet_megatron():
    from megatron.core import parallel_state
    from megatron.core.models.gpt.gpt_model import GPTModel

Batch = dict[str, Any]

_CACHED = 1 << 17
"""Logits that are reduced at a time on the host: half a megabyte, which a core's cache holds."""
_LOGITS_ON_HOST = 1 << 22
"""Logits of a forward pass on the host: 16 MB, below what the C library gives back to the system after each use."""
_LOGITS_ON_DEVICE = 1 << 28
"""Logits of a forward pass on an accelerator: 1 GB in fp32."""


class Scorer:
    """An engine's model as the probe sees it."""

    def __init__(self, engine: Engine) -> None:
        """Takes the engine; its chunks are left as they were after each pass."""
        self._engine, self._layout = engine, engine.layout
        self._device = engine.device.torch_device
        modules = [module for chunk in engine.chunks for module in chunk.modules()]
        self._vocabulary = next(module.vocab_size for module in modules if isinstance(module, GPTModel))
        self.branching = any(isinstance(module, SdpaAttention) for module in modules)
        """Whether rows may hold trees: Transformer Engine's and the local attention keep to their causal mask."""

    @torch.no_grad()
    def score(self, forest: Forest, rows_a_pass: int) -> EdgeScores | None:
        """Log-likelihoods of all edges; every rank calls this.

        Args:
            forest: the same on every rank.
            rows_a_pass: rows in one forward pass; fewer where their logits would be too many.

        Returns:
            The scores, or None on ranks without the loss.
        """
        assert self.branching or not forest.branching
        rows = np.argsort(forest.counts, kind="stable")[self._layout.data_rank :: self._layout.data_size]
        held = _LOGITS_ON_HOST if self._device.type == "cpu" else _LOGITS_ON_DEVICE
        one = forest.tokens.shape[1] * self._vocabulary // self._layout.tensor_size
        rows_a_pass = max(1, min(rows_a_pass, held // one))
        values = torch.zeros((2, len(forest.labels)), dtype=torch.float64, device=self._device)
        for start in range(0, len(rows), rows_a_pass):
            edges, batch = self._batch(forest, rows[start : start + rows_a_pass])
            count, length = batch["tokens"].shape
            logits = self._engine.forward(partial(_call, batch), rows=count, length=length)
            if logits is not None:
                values[:, edges] = _read_edges(logits, batch["nodes"], batch["labels"]).double()
        if not self._layout.is_last_stage:
            return None
        log_probs, greedy = sum_over_data(values, context=True).cpu().numpy()
        return EdgeScores(log_probs, greedy > 0)

    def _batch(self, forest: Forest, rows: NDArray[np.int64]) -> tuple[torch.Tensor, Batch]:
        width = int(forest.counts[rows].max())
        width += -width % self._layout.sequence_multiple
        mine = self._engine.positions(width).numpy()
        local = np.full(width, -1)
        local[mine] = np.arange(len(mine))
        lengths = forest.edge_starts[rows + 1] - forest.edge_starts[rows]
        edges = np.concatenate([np.arange(forest.edge_starts[row], forest.edge_starts[row + 1]) for row in rows])
        places, numbers = local[forest.places[edges]], np.repeat(np.arange(len(rows)), lengths)
        held = places >= 0  # other edges leave nodes of ranks that share the rows
        edges = edges[held]
        arrays = {
            "tokens": _fitted(forest.tokens[rows], width)[:, mine],
            "depths": _fitted(forest.depths[rows], width)[:, mine],
            "nodes": (numbers * len(mine) + places)[held],
            "labels": forest.labels[edges],
        }
        if forest.branching:
            arrays |= {"places": mine, "ends": _fitted(forest.ends[rows], width)}
        batch = {name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()}
        return torch.from_numpy(edges).to(self._device), batch


def _call(batch: Batch, chunk: Any) -> torch.Tensor:
    """A chunk's output for a batch."""
    tokens, depths = batch["tokens"], batch["depths"]
    if "ends" not in batch:
        return chunk(tokens, depths, None)
    mine, ends = batch["places"][:, None], batch["ends"][:, None, :]
    places = torch.arange(ends.shape[-1], device=tokens.device)
    seen = (mine >= places) & (mine < ends)
    with _placed(chunk.module, depths):
        return chunk(tokens, depths, ~seen[:, None])


def _fitted(values: NDArray[np.int64], width: int) -> NDArray[np.int64]:
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


def _read_edges(logits: torch.Tensor, nodes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[2, edges] log-likelihood, and 1 where no token is likelier.

    Args:
        logits: [rows, W, vocabulary / TP] of this tensor rank.
        nodes: [edges] places among the rows * W nodes.
        labels: [edges] tokens.
    """
    group = parallel_state.get_tensor_model_parallel_group()
    values = logits.flatten(0, 1)
    size = values.shape[1]
    own = labels - group.rank() * size
    here = (own >= 0) & (own < size)
    chosen = torch.where(here, values[nodes, own.clamp(0, size - 1)].float(), 0.0)
    top = values.amax(dim=-1).float()
    if group.size() > 1:
        dist.all_reduce(chosen, group=group)
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    cut = max(1, (_CACHED if values.device.type == "cpu" else _LOGITS_ON_DEVICE) // size)
    parts = zip(values.split(cut), top.split(cut), strict=True)
    total = torch.cat([part.float().sub(highest[:, None]).exp_().sum(dim=-1) for part, highest in parts])
    if group.size() > 1:
        dist.all_reduce(total, group=group)
    return torch.stack([chosen - (top + total.log())[nodes], (chosen >= top[nodes]).float()])
