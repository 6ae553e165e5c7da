"""The output layer of a causal model, apart from the model: only the logits that are needed are computed.

The layer's input is caught by a hook. Where the logits are the product with the layer's weight and nothing else, they
are made in blocks that are reduced at once (``probes.readout``). Where the model does more to them (a bias, a soft cap,
a scale), the model itself makes those of the nodes that are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_kis.probes.readout import read_logits, read_tokens, to_device

Call = Callable[[], torch.Tensor]
"""Runs the model on a batch and returns its logits."""

_SPREAD = 40.0
"""Standard deviation of the logits with which an output layer is tried: a soft cap would change them."""


_MULTIPLIED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Head:
    """Reads log-likelihoods of tokens from a model."""

    def __init__(self, model: torch.nn.Module, call: Call) -> None:
        """Finds out what the model does between its output layer's input and its logits.

        Args:
            model: the model; ``get_output_embeddings`` gives its output layer, where it has one that can be told apart.
            call: runs the model on any small batch.
        """
        found = getattr(model, "get_output_embeddings", lambda: None)()
        self._layer: torch.nn.Module | None = found if isinstance(found, torch.nn.Module) else None
        self._plain = False
        """Whether the logits are the product with the weight of the output layer."""
        if self._layer is not None:
            self._plain = self._try_layer(self._layer, call)

    @property
    def all_logits(self) -> bool:
        """Whether the model gives logits of all nodes, also of those that are not read."""
        return self._layer is None

    @property
    def in_blocks(self) -> bool:
        """Whether logits are made in blocks of few tokens."""
        return self._plain

    def read(
        self, call: Call, nodes: NDArray[np.int64], which: NDArray[np.int64], labels: NDArray[np.int64]
    ) -> torch.Tensor:
        """Returns the log-likelihood of the token of each edge, and 1 where no token is more likely: fp32 [2, edges].

        Args:
            call: runs the model on a batch [rows, W]; its logits are [rows, W, vocabulary].
            nodes: [n] nodes that are read, of the rows * W of the batch.
            which: [edges] node, as a number among ``nodes``.
            labels: [edges] token.
        """
        if self._layer is None:
            logits = call().flatten(0, -2)
            return read_logits(logits[to_device({"nodes": nodes}, logits.device)["nodes"]], which, labels)
        if not self._plain:
            with _input_of(self._layer, lambda hidden: _chosen(hidden, nodes)[None]):
                return read_logits(call().flatten(0, -2), which, labels)
        caught: list[torch.Tensor] = []
        with _input_of(self._layer, lambda hidden: _caught(hidden, caught)):
            call()
        weight = _matrix(self._layer)
        assert weight is not None
        return read_tokens(_chosen(caught[0], nodes).to(weight), weight, which, labels)

    def _try_layer(self, layer: torch.nn.Module, call: Call) -> bool:
        """Tries the hooks; where they do not work, the layer is not used separately.

        Returns:
            Whether the logits are the product with the layer's weight.
        """
        weight = _matrix(layer)
        tried: list[torch.Tensor] = []

        def loud(hidden: torch.Tensor) -> torch.Tensor:
            generator = torch.Generator().manual_seed(0)
            values = torch.randn(1, 8, hidden.shape[-1], generator=generator).to(hidden)
            if weight is not None:
                spread = (values.float() @ weight.float().T.to(values.device)).std().clamp(min=1e-6)
                values = values * (_SPREAD / spread).to(values)
            tried.append(values)
            return values

        try:
            with _input_of(layer, loud):
                logits = call()
            with _input_of(layer, lambda hidden: _caught(hidden, [])):
                call()
        except (RuntimeError, TypeError, ValueError, IndexError):
            tried.clear()
        if len(tried) != 1 or logits.shape[:2] != (1, 8):
            self._layer = None
            return False
        if weight is None:
            return False
        product = torch.nn.functional.linear(tried[0].to(weight), weight)
        return product.shape == logits.shape and torch.allclose(
            product.float(), logits.float().to(product.device), rtol=1e-3, atol=1e-3 * _SPREAD
        )


def _matrix(layer: torch.nn.Module) -> torch.Tensor | None:
    """Returns a layer's weight [vocabulary, hidden], if it is a matrix of numbers in memory."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or weight.device.type == "meta":
        return None
    return weight if weight.dtype in _MULTIPLIED else None


@contextmanager
def _input_of(layer: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Gives a layer another input inside the block: what ``change`` makes of its own."""

    def hook(_: torch.nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(given[0]), *given[1:])

    handle = layer.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _caught(hidden: torch.Tensor, caught: list[torch.Tensor]) -> torch.Tensor:
    """Keeps a layer's input, and skips the layer's work."""
    caught.append(hidden)
    return hidden[:, :0]


def _chosen(hidden: torch.Tensor, nodes: NDArray[np.int64]) -> torch.Tensor:
    """Returns some nodes of [rows, W, hidden], [n, hidden]."""
    return hidden.flatten(0, 1)[to_device({"nodes": nodes}, hidden.device)["nodes"]]
