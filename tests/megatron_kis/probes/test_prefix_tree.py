from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_kis.probes.prefix_tree import PackedPrefixTrees
from megatron_kis.probes.prefix_tree import build_prefix_trees as plant_ragged
from megatron_kis.probes.ragged import Ragged

SEARCH = settings(max_examples=150, deadline=None)
PATHS = st.lists(st.lists(st.integers(2, 5), min_size=1, max_size=7).map(tuple), min_size=1, max_size=30)


def build_prefix_trees(paths: list[tuple[int, ...]], *, width: int, branching: bool = True) -> PackedPrefixTrees:
    return plant_ragged(Ragged.of(paths), bos_id=1, width=width, branching=branching)


def edges_of(trees: PackedPrefixTrees, index: int) -> np.ndarray:
    return trees.paths[int(trees.path_of[index])]


def path_of(trees: PackedPrefixTrees, index: int) -> list[int]:
    """The tokens of a path as its edges tell them: what each node may see, and the label."""
    edges = edges_of(trees, index)
    (row,) = {int(np.searchsorted(trees.edge_starts, edge, side="right")) - 1 for edge in edges}
    labels = []
    for edge in edges:
        place = int(trees.places[edge])
        seen = [at for at in range(place + 1) if place < trees.ends[row, at]]
        assert trees.tokens[row, seen].tolist() == [1, *labels]  # all that came before, and nothing else
        assert trees.depths[row, seen].tolist() == list(range(len(seen)))
        labels.append(int(trees.labels[edge]))
    return labels


@SEARCH
@given(PATHS, st.integers(1, 40), st.booleans())
def test_each_path_sees_itself_alone_and_whole(paths: list[tuple[int, ...]], width: int, branching: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:  # several pieces
        patch.setattr("megatron_kis.probes.prefix_tree._PATHS_PER_CHUNK", len(paths) // 3)
        trees = build_prefix_trees(paths, width=width, branching=branching)
    assert [path_of(trees, index) for index in range(len(paths))] == [list(path) for path in paths]
    longest = max(len(path) for path in paths)
    assert trees.counts.max() <= max(width, longest)
    if not branching:  # a causal mask is enough
        for row, count in enumerate(trees.counts):
            assert trees.depths[row, :count].tolist() == list(range(count))
            assert (trees.ends[row, :count] == count).all()


@SEARCH
@given(PATHS)
def test_in_one_row_nothing_is_computed_twice(paths: list[tuple[int, ...]]) -> None:
    trees = build_prefix_trees(paths, width=10_000)
    prefixes = {path[:end] for path in paths for end in range(len(path) + 1)}
    inputs = {
        prefix
        for prefix in prefixes
        if any(len(path) > len(prefix) and path[: len(prefix)] == prefix for path in paths)
    }
    assert len(trees.counts) == 1
    assert trees.nodes == len(inputs)
    assert len(trees.labels) == len(prefixes) - 1


def test_equal_paths_are_one() -> None:
    trees = build_prefix_trees([(3, 4), (2,), (3, 4)], width=3)
    assert edges_of(trees, 0).tolist() == edges_of(trees, 2).tolist()
    assert len(trees.paths) == 2


def test_options_at_the_end_cost_their_own_tokens_only() -> None:
    options = [(2, 3, 4, option, 9) for option in range(10, 20)]
    assert build_prefix_trees(options, width=64).nodes == 4 + 10
    assert build_prefix_trees(options, width=64, branching=False).nodes == 5 * 10


@pytest.mark.parametrize("branching", [True, False])
def test_no_paths_make_no_rows(branching: bool) -> None:
    trees = build_prefix_trees([], width=8, branching=branching)
    assert trees.nodes == len(trees.labels) == len(trees.paths) == 0
