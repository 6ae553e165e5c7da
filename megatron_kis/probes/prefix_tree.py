"""Statements as prefix trees in rows of equal width, so that what statements share is computed once.

A row holds one tree or a few branches of one. Its nodes are in depth-first order, each an input token; a statement is
a path from the root, and the log-likelihood of its next token is read at the node before (an *edge*). The last token of
a statement is never an input. A node attends to itself and its ancestors (tree attention), at the position of its
depth::

    row      BOS  The  capital  of  France  is  Par  Lyon        (statements "... is Paris", "... is Lyon .")
    depth    0    1    2        3   4       5   6    6
    end      8    8    8        8   8       8   7    8           (place <= i < end: i is in its subtree)

Two statements with the same tokens are one path, and so tie exactly. Pure numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_kis.data_tools.storage.ranges import starts_of
from megatron_kis.probes.ragged import Ragged

Ints = NDArray[np.int32]

_ATTENTION = 1500
"""Nodes of a row whose attention to one another costs as much as everything else that is computed for them: measured
with 1.3M parameters on a CPU, where cutting a row well is worth most. Anything from 1000 to 4000 is as fast to 3%."""

_PATHS_PER_CHUNK = 1 << 14
"""Paths that are laid out at once: tables of 16 Ki paths x their length, however many there are in all."""


@dataclass(frozen=True)
class PackedPrefixTrees:
    """All paths, packed into R rows of W nodes with E edges."""

    tokens: Ints
    """[R, W] input tokens; beyond ``counts`` padding."""

    depths: Ints
    """[R, W] position of each node in its statements, 0 for the root."""

    ends: Ints
    """[R, W] end of each node's subtree; padding attends to itself alone."""

    counts: NDArray[np.int64]
    """[R] number of nodes of each row."""

    places: Ints
    """[E] node of its row at which an edge is read; edges are ordered by row."""

    labels: Ints
    """[E] the token whose log-likelihood is read."""

    edge_starts: NDArray[np.int64]
    """[R + 1] first edge of each row."""

    paths: Ragged
    """Edges of each distinct path."""

    path_of: NDArray[np.int64]
    """[statements] path of each statement; equal statements have the same."""

    branching: bool
    """Whether rows hold trees, or a single path each (and its beginnings)."""

    @property
    def nodes(self) -> int:
        """Number of input tokens of all rows, without padding."""
        return int(self.counts.sum())


@dataclass(frozen=True)
class EdgeScores:
    """A model's scores of each edge."""

    log_probs: NDArray[np.float64]
    """[E] log-likelihood of each edge, nats."""

    greedy: NDArray[np.bool_]
    """[E] whether no token is more likely."""


def build_prefix_trees(statements: Ragged, *, bos_id: int, width: int, branching: bool = True) -> PackedPrefixTrees:
    """Packs statements into rows of prefix trees.

    They are sorted lexicographically, so that neighbours share most, and rows end where little is shared.

    Args:
        statements: tokens of the statements, none empty; equal ones share everything.
        bos_id: token of each root.
        width: largest number of nodes of a row; raised to the longest path.
        branching: False for a model that has a causal mask only: no row holds two branches.
    """
    longest = int(statements.lengths.max(initial=1))
    table, path_of = _sorted(statements.padded(longest))
    lengths = (table >= 0).sum(axis=1)
    before = np.concatenate([[0], lengths])[: len(table)]
    # What a path shares with the one before: `shared` tokens (edges), and `kept` nodes, the root among them.
    shared = np.concatenate([[0], (table[1:] != table[:-1]).argmax(axis=1)])[: len(table)]
    kept = np.minimum(shared + 1, np.minimum(lengths, before))
    stops = np.zeros(0, dtype=np.int64) if branching else np.flatnonzero(kept < before)
    row_starts = _rows(lengths, kept, max(width, longest), stops)
    shared[row_starts[:-1]] = kept[row_starts[:-1]] = 0
    chunks = [_Chunk.of(table[part], lengths[part], shared[part], kept[part], bos_id) for part in _slices(row_starts)]
    paths = _Paths(lengths, kept, shared, path_of)
    return _pack(chunks, row_starts, paths, bos_id=bos_id, branching=branching)


def _sorted(table: Ints) -> tuple[Ints, NDArray[np.int64]]:
    """Returns the distinct rows of a table in lexicographic order, and which of them each row is."""
    order = np.lexsort(table.T[::-1])
    table = table[order]
    new = np.concatenate([[True], (table[1:] != table[:-1]).any(axis=1)])[: len(table)]
    place = np.empty(len(table), dtype=np.int64)
    place[order] = np.cumsum(new) - 1
    return table[new], place


def _rows(
    lengths: NDArray[np.int64], kept: NDArray[np.int64], width: int, stops: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Returns the first path of each row, [rows + 1]; each of ``stops`` begins a row.

    A row of n nodes, followed by a row that computes again the ``kept`` nodes which its first path shares with the path
    before, costs ``kept / n + n / _ATTENTION`` per node: each node's attention goes over the whole row. A row ends
    where that is least.
    """
    paths = len(lengths)
    added = np.cumsum(lengths - kept)
    again = np.append(kept, 0)
    limits = np.append(stops, paths)
    starts = [0]
    at = 0
    while at < paths:
        before = added[at] - lengths[at]
        full = int(np.searchsorted(added, width + before, side="right"))
        ends = np.arange(at + 1, min(full, int(limits[np.searchsorted(limits, at, side="right")])) + 1)
        nodes = added[ends - 1] - before
        cost = again[ends] / nodes + nodes / _ATTENTION
        at = int(ends[len(ends) - 1 - cost[::-1].argmin()])
        starts.append(at)
    return np.array(starts, dtype=np.int64)


def _slices(row_starts: NDArray[np.int64]) -> list[slice]:
    """Returns paths of whole rows, about ``_PATHS_PER_CHUNK`` together."""
    found = []
    at = 0
    while at < len(row_starts) - 1:
        until = int(np.searchsorted(row_starts, row_starts[at] + _PATHS_PER_CHUNK, side="right")) - 1
        until = max(at + 1, until)
        found.append(slice(int(row_starts[at]), int(row_starts[until])))
        at = until
    return found


@dataclass(frozen=True)
class _Paths:
    """All P distinct paths in order."""

    lengths: NDArray[np.int64]
    """[P] number of tokens."""

    kept: NDArray[np.int64]
    """[P] nodes shared with the path before in the same row."""

    shared: NDArray[np.int64]
    """[P] edges shared with the path before in the same row."""

    path_of: NDArray[np.int64]
    """[statements] path of each statement."""


@dataclass(frozen=True)
class _Chunk:
    """Neighbouring paths, laid out; nodes and edges are counted from the first of the chunk."""

    tokens: Ints
    """[nodes] input token of each node."""

    depths: Ints
    """[nodes] depth of each node."""

    ends: Ints
    """[nodes] end of each node's subtree."""

    places: Ints
    """[edges] node at which each edge is read."""

    labels: Ints
    """[edges] token whose log-likelihood is read."""

    path_edges: Ints
    """[sum of path lengths] edges of all paths."""

    @classmethod
    def of(
        cls, table: Ints, lengths: NDArray[np.int64], shared: NDArray[np.int64], kept: NDArray[np.int64], bos_id: int
    ) -> _Chunk:
        """Lays out paths that are padded to [paths, T]; a path that begins a row shares and keeps nothing."""
        paths = np.arange(len(table))[:, None]
        depth = np.arange(table.shape[1])
        inside = depth < lengths[:, None]
        inputs = np.concatenate([np.full((len(table), 1), bos_id, dtype=np.int32), table[:, :-1]], axis=1)
        node_made = inside & (depth >= kept[:, None])
        edge_made = inside & (depth >= shared[:, None])
        node_starts = starts_of(lengths - kept)
        edge_starts = starts_of(lengths - shared)
        # The node of a path at a depth is that of the last path that made one there; so are the edges.
        maker = np.maximum.accumulate(np.where(node_made, paths, 0), axis=0)
        nodes = (node_starts[:-1] - kept)[maker] + depth
        maker = np.maximum.accumulate(np.where(edge_made, paths, 0), axis=0)
        edges = (edge_starts[:-1] - shared)[maker] + depth
        # A node's branch ends where a later path begins that does not keep it.
        left = np.where(depth >= kept[:, None], paths, len(table))
        leaver = np.full_like(left, len(table))
        leaver[:-1] = np.minimum.accumulate(left[:0:-1], axis=0)[::-1]
        return cls(
            tokens=inputs[node_made],
            depths=np.broadcast_to(depth, inside.shape)[node_made].astype(np.int32),
            ends=node_starts[leaver[node_made]].astype(np.int32),
            places=nodes[edge_made].astype(np.int32),
            labels=table[edge_made],
            path_edges=edges[inside].astype(np.int32),
        )


def _pack(
    chunks: list[_Chunk], row_starts: NDArray[np.int64], paths: _Paths, *, bos_id: int, branching: bool
) -> PackedPrefixTrees:
    """Joins all chunks; nodes are then counted from the beginning of their row, and edges from the first of all."""
    node_starts = starts_of(paths.lengths - paths.kept)[row_starts]
    edge_starts = starts_of(paths.lengths - paths.shared)[row_starts]
    counts = np.diff(node_starts)
    flat = {
        name: np.concatenate([np.zeros(0, dtype=np.int32), *(getattr(chunk, name) for chunk in chunks)])
        for name in ("tokens", "depths", "ends", "places", "labels", "path_edges")
    }
    # Chunks count from their own first node and edge: add what is before the chunk, subtract what is before the row.
    nodes = [len(chunk.tokens) for chunk in chunks]
    edges = [len(chunk.places) for chunk in chunks]
    nodes_before = starts_of(nodes)[:-1]
    edges_before = starts_of(edges)[:-1]
    flat["ends"] += (np.repeat(nodes_before, nodes) - np.repeat(node_starts[:-1], counts)).astype(np.int32)
    row_edges = np.diff(edge_starts)
    flat["places"] += (np.repeat(nodes_before, edges) - np.repeat(node_starts[:-1], row_edges)).astype(np.int32)
    flat["path_edges"] += np.repeat(edges_before, [len(chunk.path_edges) for chunk in chunks]).astype(np.int32)
    width = int(counts.max(initial=1))
    inside = np.arange(width) < counts[:, None]
    table = {
        "tokens": np.full(inside.shape, bos_id, dtype=np.int32),
        "depths": np.zeros(inside.shape, dtype=np.int32),
        "ends": np.tile(np.arange(1, width + 1, dtype=np.int32), (len(counts), 1)),
    }
    for name, values in table.items():
        values[inside] = flat[name]
    return PackedPrefixTrees(
        **table,
        counts=counts,
        places=flat["places"],
        labels=flat["labels"],
        edge_starts=edge_starts,
        paths=Ragged(flat["path_edges"], starts_of(paths.lengths)),
        path_of=paths.path_of,
        branching=branching,
    )
