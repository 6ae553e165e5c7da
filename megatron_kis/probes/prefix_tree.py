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

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_kis.probes.ragged import Ragged, starts_of

Ints = NDArray[np.int32]

_ATTENTION = 1500
"""Nodes of a row whose attention to one another costs as much as all else that is done for them: measured with 1.3M
parameters on the host, where cutting a row well is worth most. Anything from 1000 to 4000 is as fast to 3%."""

_PATHS_AT_ONCE = 1 << 14
"""Paths that are laid out in one go: tables of 16 ki paths x their length, however many there are in all."""


@dataclass(frozen=True)
class Forest:
    """All paths, laid out in R rows of W nodes with E edges."""

    tokens: Ints
    """[R, W] input tokens; beyond ``counts`` padding."""

    depths: Ints
    """[R, W] the place of each node in its statements, 0 for the root."""

    ends: Ints
    """[R, W] where the nodes below a node end; padding sees itself alone."""

    counts: NDArray[np.int64]
    """[R] nodes of each row."""

    places: Ints
    """[E] node of its row at which an edge is read; edges lie row by row."""

    labels: Ints
    """[E] the token whose log-likelihood is read."""

    edge_starts: NDArray[np.int64]
    """[R + 1] first edge of each row."""

    paths: Ragged
    """The edges of each different path."""

    path_of: NDArray[np.int64]
    """[statements] which path is a statement's; equal statements have the same."""

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


def plant(statements: Ragged, *, first: int, width: int, branching: bool = True) -> Forest:
    """Lays out statements.

    They are taken in lexicographic order, so that neighbours share most, and rows end where little is shared.

    Args:
        statements: their tokens, none empty; equal ones share everything.
        first: the token of each root.
        width: nodes of a row at most; raised to the longest path.
        branching: False for a model that has a causal mask only: no row holds two branches.
    """
    longest = int(statements.lengths.max(initial=1))
    table, path_of = _sorted(statements.padded(longest))
    lengths = (table >= 0).sum(axis=1)
    before = np.concatenate([[0], lengths])[: len(table)]
    # What a path shares with the one before: tokens (edges), and nodes, the root among them.
    shared = np.concatenate([[0], (table[1:] != table[:-1]).argmax(axis=1)])[: len(table)]
    kept = np.minimum(shared + 1, np.minimum(lengths, before))
    stops = np.zeros(0, dtype=np.int64) if branching else np.flatnonzero(kept < before)
    row_starts = _rows(lengths, kept, max(width, longest), stops)
    shared[row_starts[:-1]] = kept[row_starts[:-1]] = 0
    pieces = [_Piece.of(table[part], lengths[part], shared[part], kept[part], first) for part in _slices(row_starts)]
    return _joined(pieces, row_starts, lengths, kept, shared, path_of, first=first, branching=branching)


def _sorted(table: Ints) -> tuple[Ints, NDArray[np.int64]]:
    """The different rows of a table in lexicographic order, and which of them each row is."""
    order = np.lexsort(table.T[::-1])
    table = table[order]
    new = np.concatenate([[True], (table[1:] != table[:-1]).any(axis=1)])[: len(table)]
    place = np.empty(len(table), dtype=np.int64)
    place[order] = np.cumsum(new) - 1
    return table[new], place


def _rows(
    lengths: NDArray[np.int64], kept: NDArray[np.int64], width: int, stops: NDArray[np.int64]
) -> NDArray[np.int64]:
    """[rows + 1] first path of each row; each of ``stops`` begins one.

    A row ends where its nodes cost least apiece: the next row lays again what its first path shares with the path
    before, and each node's attention goes over the whole row.
    """
    paths = len(lengths)
    added, again, limits = np.cumsum(lengths - kept), np.append(kept, 0), np.append(stops, paths)
    starts, at = [0], 0
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
    """Paths of whole rows, some ``_PATHS_AT_ONCE`` together."""
    found, at = [], 0
    while at < len(row_starts) - 1:
        until = int(np.searchsorted(row_starts, row_starts[at] + _PATHS_AT_ONCE, side="right")) - 1
        until = max(at + 1, until)
        found.append(slice(int(row_starts[at]), int(row_starts[until])))
        at = until
    return found


@dataclass(frozen=True)
class _Piece:
    """Neighbouring paths, laid out; nodes and edges are counted from the first of the piece."""

    tokens: Ints
    """[nodes]."""
    depths: Ints
    """[nodes]."""
    ends: Ints
    """[nodes] the node behind the last one below."""
    places: Ints
    """[edges] node of each."""
    labels: Ints
    """[edges]."""
    path_edges: Ints
    """[sum of path lengths]."""

    @classmethod
    def of(
        cls, table: Ints, lengths: NDArray[np.int64], shared: NDArray[np.int64], kept: NDArray[np.int64], first: int
    ) -> _Piece:
        """Lays out paths that are padded to [paths, T]; a path that begins a row shares and keeps nothing."""
        paths, depth = np.arange(len(table))[:, None], np.arange(table.shape[1])
        inside = depth < lengths[:, None]
        inputs = np.concatenate([np.full((len(table), 1), first, dtype=np.int32), table[:, :-1]], axis=1)
        node_made, edge_made = inside & (depth >= kept[:, None]), inside & (depth >= shared[:, None])
        node_starts, edge_starts = starts_of(lengths - kept), starts_of(lengths - shared)
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


def _joined(
    pieces: list[_Piece],
    row_starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    kept: NDArray[np.int64],
    shared: NDArray[np.int64],
    path_of: NDArray[np.int64],
    *,
    first: int,
    branching: bool,
) -> Forest:
    """One forest of all pieces, its nodes counted from the beginning of their row."""
    node_starts, edge_starts = starts_of(lengths - kept)[row_starts], starts_of(lengths - shared)[row_starts]
    counts = np.diff(node_starts)
    width = int(counts.max(initial=1))
    inside = np.arange(width) < counts[:, None]
    table = {"tokens": np.full(inside.shape, first, dtype=np.int32), "depths": np.zeros(inside.shape, dtype=np.int32),
             "ends": np.tile(np.arange(1, width + 1, dtype=np.int32), (len(counts), 1))}  # fmt: skip
    flat = {name: np.concatenate([np.zeros(0, dtype=np.int32), *(getattr(piece, name) for piece in pieces)])
            for name in ("tokens", "depths", "ends", "places", "labels", "path_edges")}  # fmt: skip
    # Pieces count from their own first node and edge.
    sizes = [(len(piece.tokens), len(piece.places), len(piece.path_edges)) for piece in pieces]
    nodes_before = starts_of([nodes for nodes, _, _ in sizes])[:-1]
    edges_before = starts_of([edges for _, edges, _ in sizes])[:-1]
    of_nodes = np.repeat(nodes_before, [nodes for nodes, _, _ in sizes]) - np.repeat(node_starts[:-1], counts)
    of_edges = np.repeat(nodes_before, [edges for _, edges, _ in sizes]) - np.repeat(
        node_starts[:-1], np.diff(edge_starts)
    )
    flat["ends"] += of_nodes.astype(np.int32)
    flat["places"] += of_edges.astype(np.int32)
    flat["path_edges"] += np.repeat(edges_before, [size for _, _, size in sizes]).astype(np.int32)
    for name, values in table.items():
        values[inside] = flat[name]
    return Forest(
        **table,
        counts=counts,
        places=flat["places"],
        labels=flat["labels"],
        edge_starts=edge_starts,
        paths=Ragged(flat["path_edges"], starts_of(lengths)),
        path_of=path_of,
        branching=branching,
    )
