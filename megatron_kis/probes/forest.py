"""Statements as prefix trees in rows of equal width, so that what statements share is computed once.

A row holds one tree or a few branches of one. Its nodes lie in depth-first order, each an input token; a statement is
a path from the root, and the log-likelihood of its next token is read at the node before (an *edge*). The last token of
a statement is never an input. A node sees itself and the nodes above it, and stands at the place of its depth::

    row      BOS  The  capital  of  France  is  Par  Lyon        (statements "... is Paris", "... is Lyon .")
    depth    0    1    2        3   4       5   6    6
    end      8    8    8        8   8       8   7    8           (nodes i with place <= i < end lie below)

Two statements with the same tokens are one path, and so tie exactly. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Forest:
    """All paths, laid out in R rows of W nodes with E edges."""

    tokens: Ints
    """[R, W] input tokens; beyond ``counts`` padding."""

    depths: Ints
    """[R, W] the place of each node in its statements, 0 for the root."""

    ends: Ints
    """[R, W] where the nodes below a node end; padding sees itself alone."""

    counts: Ints
    """[R] nodes of each row."""

    places: Ints
    """[E] node of its row at which an edge is read; edges lie row by row."""

    labels: Ints
    """[E] the token whose log-likelihood is read."""

    edge_starts: Ints
    """[R + 1] first edge of each row."""

    path_edges: Ints
    """[sum of path lengths] the edges of all paths, one path behind the other."""

    path_starts: Ints
    """[paths + 1] where each path begins in ``path_edges``."""

    branching: bool
    """Whether rows hold trees, or a single path each (and its beginnings)."""

    @property
    def nodes(self) -> int:
        """Input tokens of all rows, padding apart."""
        return int(self.counts.sum())


@dataclass(frozen=True)
class EdgeScores:
    """What a model says of each edge of a forest."""

    log_probs: NDArray[np.float64]
    """[E] nats."""

    greedy: NDArray[np.bool_]
    """[E] whether no token is likelier."""


def plant(paths: Sequence[tuple[int, ...]], *, first: int, width: int, branching: bool = True) -> Forest:
    """Lays out token paths.

    Paths are taken in lexicographic order, so that neighbours share most, and put into a row until it is full.

    Args:
        paths: the statements, none empty; equal ones share everything.
        first: the token of each root.
        width: nodes of a row; raised to the longest path.
        branching: False for a model that has a causal mask only: no row holds two branches.
    """
    width = max([width, *(len(path) for path in paths)])
    order = sorted(range(len(paths)), key=paths.__getitem__)
    grower = _Grower(first, width, branching)
    edges_of: list[list[int]] = [[]] * len(paths)
    for index in order:
        edges_of[index] = grower.add(paths[index])
    return grower.forest(edges_of)


class _Grower:
    """Rows that grow by one path at a time."""

    def __init__(self, first: int, width: int, branching: bool) -> None:
        self._first, self._width, self._branching = first, width, branching
        self._rows: list[tuple[list[int], list[int], list[int]]] = []  # tokens, depths, ends
        self._places: list[int] = []
        self._labels: list[int] = []
        self._edge_starts: list[int] = []
        self._path: tuple[int, ...] = ()
        self._nodes: list[int] = []  # of the current path, the root first
        self._edges: list[int] = []

    def add(self, path: tuple[int, ...]) -> list[int]:
        """Adds a path and returns its edges."""
        shared = 0
        for ours, theirs in zip(self._path, path, strict=False):
            if ours != theirs:
                break
            shared += 1
        kept = min(shared + 1, len(self._nodes), len(path))
        splits = not self._branching and kept < len(self._nodes)
        if not self._rows or splits or len(self._rows[-1][0]) + len(path) - kept > self._width:
            self._close(0)
            self._rows.append(([], [], []))
            self._edge_starts.append(len(self._places))
            self._edges, shared, kept = [], 0, 0
        self._close(kept)
        del self._edges[shared:]
        tokens, depths, ends = self._rows[-1]
        for depth in range(kept, len(path)):
            self._nodes.append(len(tokens))
            tokens.append(path[depth - 1] if depth else self._first)
            depths.append(depth)
            ends.append(0)
        for at in range(shared, len(path)):
            self._edges.append(len(self._places))
            self._places.append(self._nodes[at])
            self._labels.append(path[at])
        self._path = path
        return list(self._edges)

    def _close(self, kept: int) -> None:
        """Leaves the branch below the first ``kept`` nodes of the current path."""
        if self._rows:
            tokens, _, ends = self._rows[-1]
            for node in self._nodes[kept:]:
                ends[node] = len(tokens)
        del self._nodes[kept:]

    def forest(self, edges_of: list[list[int]]) -> Forest:
        self._close(0)
        counts = np.array([len(tokens) for tokens, _, _ in self._rows], dtype=np.int64)
        width = int(counts.max(initial=1))
        tokens = np.full((len(counts), width), self._first, dtype=np.int64)
        depths = np.zeros_like(tokens)
        ends = np.tile(np.arange(1, width + 1), (len(counts), 1))
        for row, (own, deep, stop) in enumerate(self._rows):
            tokens[row, : len(own)], depths[row, : len(own)], ends[row, : len(own)] = own, deep, stop
        lengths = [len(edges) for edges in edges_of]
        return Forest(
            tokens=tokens,
            depths=depths,
            ends=ends,
            counts=counts,
            places=np.array(self._places, dtype=np.int64),
            labels=np.array(self._labels, dtype=np.int64),
            edge_starts=np.array([*self._edge_starts, len(self._places)], dtype=np.int64),
            path_edges=np.fromiter((edge for edges in edges_of for edge in edges), dtype=np.int64, count=sum(lengths)),
            path_starts=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
            branching=self._branching,
        )
