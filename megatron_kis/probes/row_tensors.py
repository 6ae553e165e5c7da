"""Rows of packed statements as what a model takes: tables of one width, and the mask of tree attention."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray


def attention_mask(places: torch.Tensor, ends: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns what to add to the scores of attention, [rows, 1, own, W]: 0 for a node and its ancestors, else -inf.

    Args:
        places: [own] nodes of a row that this rank holds, in order.
        ends: [rows, W] end of each node's subtree.
        dtype: type of the scores.
    """
    mine = places[:, None]
    others = torch.arange(ends.shape[1], device=ends.device)
    hidden = (mine < others) | (mine >= ends[:, None, :]) & (mine != others)
    return torch.zeros(hidden.shape, dtype=dtype, device=ends.device).masked_fill_(hidden, -torch.inf)[:, None]


def fitted(values: NDArray[np.int32], width: int) -> NDArray[np.int32]:
    """Returns the first ``width`` columns; the last one is repeated where there are fewer."""
    return np.pad(values[:, :width], ((0, 0), (0, max(0, width - values.shape[1]))), mode="edge")
