"""A pass of a causal model over packed statements: rows of prefix trees, or plain rows of one statement each.

Trees need a 4-D attention mask and position ids. Plain rows are padded on the right, which a causal model does not see.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_kis.common.errors import InputError, JobError
from megatron_kis.common.progress import Progress
from megatron_kis.config.vocabulary import LOGITS_PER_BLOCK
from megatron_kis.data_tools.storage.ranges import ranges, starts_of
from megatron_kis.huggingface.head import Head
from megatron_kis.probes.prefix_tree import EdgeScores, PackedPrefixTrees
from megatron_kis.probes.readout import to_device
from megatron_kis.probes.row_tensors import attention_mask, fitted

_NEEDED = "logits [rows, tokens, vocabulary] of tokens [rows, tokens] are needed"
_CALLED_WRONGLY = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError)
_TRIED = 4  # tokens of the batch with which the output layer is tried


@dataclass(frozen=True)
class _Pass:
    """Rows that go through the model together."""

    tensors: dict[str, torch.Tensor]
    """``tokens`` [rows, W]; for trees ``depths`` [rows, W] and ``mask`` [rows, 1, W, W]."""

    edges: NDArray[np.int64]
    """[edges] those that are read."""

    nodes: NDArray[np.int64]
    """[n] nodes of the batch that are read."""

    which: NDArray[np.int64]
    """[edges] node, as a number among ``nodes``."""


class CausalScorer:
    """Scores packed statements with a model of Hugging Face, or with any module that maps tokens to logits."""

    def __init__(
        self, model: torch.nn.Module, *, batch_tokens: int, bos_id: int, progress: Progress | None = None
    ) -> None:
        """Finds out which arguments the model takes and what it returns.

        Args:
            model: maps int64 ``input_ids`` [rows, W] to logits [rows, W, vocabulary], as a tensor, the first of a tuple
                or the attribute ``logits``. It is left in the mode in which it is.
            batch_tokens: largest number of tokens of a pass; one row goes through in any case.
            bos_id: a token, for a first try.
            progress: where to report.

        Raises:
            InputError: the model gives no logits.
        """
        self._model = model
        self._progress = progress or Progress()
        self._takes = _parameters(model)
        self.device = _device_of(model)
        """Device of the tokens."""
        self.dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        """Type of the weights."""
        tokens = torch.full((1, _TRIED), bos_id, device=self.device)
        with torch.no_grad():
            logits = self._first_call(tokens)
            self.vocabulary = logits.shape[-1]
            """Number of tokens that have a logit."""
            self._head = Head(model, partial(self._call, {"tokens": tokens}))
        # Logits that are not made in blocks are held all at once.
        self._batch_tokens = batch_tokens if self._head.in_blocks else min(batch_tokens, _most_nodes(self.vocabulary))

    def _first_call(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns the logits of a few tokens.

        Raises:
            InputError: as the constructor.
        """
        try:
            logits = self._call({"tokens": tokens})
        except _CALLED_WRONGLY as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise JobError("the model leaves no memory to ask it; use more devices, or a shorter dtype") from None
            problem = f"cannot be called with tokens alone ({type(error).__name__}: {in_one_line(error)})"
            raise InputError(problem, where="model", remedy=_NEEDED) from None
        if logits.dim() != 3 or logits.shape[:2] != tokens.shape:
            problem = f"gives {tuple(logits.shape)} for tokens of {tuple(tokens.shape)}"
            raise InputError(problem, where="model", remedy=_NEEDED)
        return logits

    @property
    def takes_trees(self) -> bool:
        """Whether the model has arguments for a mask and positions."""
        return {"input_ids", "attention_mask", "position_ids"} <= self._takes

    @torch.no_grad()
    def score(self, trees: PackedPrefixTrees, _: int = 0, *, quiet: bool = False) -> EdgeScores:
        """Returns the log-likelihoods of all edges.

        Args:
            trees: packed statements.
            quiet: report no progress.

        Raises:
            JobError: scores that are not finite, or too little memory.
        """
        values = np.zeros((2, len(trees.labels)))
        parts = list(self._parts(trees.counts))
        progress = Progress() if quiet else self._progress
        for rows in progress.track(parts, description="asking", total=len(parts)):
            batch = self._batch(trees, rows)
            labels = trees.labels[batch.edges].astype(np.int64)
            try:
                found = self._head.read(partial(self._call, batch.tensors), batch.nodes, batch.which, labels)
            except torch.OutOfMemoryError:
                remedy = "give fewer tokens per pass (--batch-tokens), or more devices (--device-map auto)"
                raise JobError(f"{batch.tensors['tokens'].numel():,} tokens do not fit into memory; {remedy}") from None
            values[:, batch.edges] = found.double().cpu().numpy()
        if not np.isfinite(values[0]).all():
            raise JobError(f"the model's scores are not finite in {self.dtype}; use another dtype")
        return EdgeScores(values[0], values[1] > 0)

    def _parts(self, counts: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Yields the rows of each pass, of similar widths."""
        order = np.argsort(counts, kind="stable")
        widths = counts[order]
        at = 0
        while at < len(order):
            tokens = np.arange(1, len(order) - at + 1) * widths[at:]
            size = max(1, int(np.searchsorted(tokens, self._batch_tokens, side="right")))
            yield order[at : at + size]
            at += size

    def _batch(self, trees: PackedPrefixTrees, rows: NDArray[np.int64]) -> _Pass:
        """Lays out a pass over rows."""
        width = int(trees.counts[rows].max())
        lengths = trees.edge_starts[rows + 1] - trees.edge_starts[rows]
        edges = ranges(trees.edge_starts[rows], starts_of(lengths))
        places = np.repeat(np.arange(len(rows)), lengths) * width + trees.places[edges]
        nodes, which = np.unique(places, return_inverse=True)
        arrays = {"tokens": fitted(trees.tokens[rows], width)}
        if trees.branching:
            arrays |= {"depths": fitted(trees.depths[rows], width), "ends": fitted(trees.ends[rows], width)}
        tensors = to_device({name: array.astype(np.int64) for name, array in arrays.items()}, self.device)
        if trees.branching:
            own = torch.arange(width, device=self.device)
            tensors["mask"] = attention_mask(own, tensors.pop("ends"), self.dtype)
        return _Pass(tensors, edges, nodes, which)

    def _call(self, sent: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns the model's logits for a batch."""
        named: dict[str, Any] = {}
        if "use_cache" in self._takes:
            named["use_cache"] = False
        if "mask" in sent:
            named |= {"attention_mask": sent["mask"], "position_ids": sent["depths"]}
        if "input_ids" in self._takes:
            given = self._model(input_ids=sent["tokens"], **named)
        else:
            given = self._model(sent["tokens"], **named)
        logits = getattr(given, "logits", given[0] if isinstance(given, tuple) else given)
        if not isinstance(logits, torch.Tensor):
            raise InputError(f"gives {type(given).__name__}", where="model", remedy=_NEEDED)
        return logits


def in_one_line(error: Exception) -> str:
    """Returns the beginning of an error's message, whatever lines it has."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _most_nodes(vocabulary: int) -> int:
    return max(1, LOGITS_PER_BLOCK // vocabulary)


def _parameters(model: torch.nn.Module) -> set[str]:
    """Returns the names of the arguments of a model's call."""
    try:
        return set(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):
        return set()


def _device_of(model: torch.nn.Module) -> torch.device:
    """Returns the device of the first layer of a model, which may be spread over several."""
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    weight = getattr(embedding, "weight", None)
    if isinstance(weight, torch.Tensor) and weight.device.type != "meta":
        return weight.device
    return next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))
