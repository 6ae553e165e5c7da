from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_kis.common.errors import InputError
from megatron_kis.probes.curves import (
    NEVER,
    histories,
    learned_bits,
    read_last_outcomes,
    read_outcomes,
)
from megatron_kis.probes.scoring import RULES


def test_facts_are_followed_through_learning_forgetting_and_learning_again() -> None:
    known = np.array([[0, 0, 0, 0, 1], [1, 0, 1, 0, 1], [0, 0, 1, 0, 1], [1, 0, 1, 0, 0], [0, 0, 1, 1, 0]], dtype=bool)
    found = histories([10, 20, 30, 40, 50], known)
    assert found.learned.tolist() == [20, NEVER, 20, 50, 10]
    assert found.forgotten.tolist() == [30, NEVER, NEVER, NEVER, 40]
    assert found.learned_again.tolist() == [40, NEVER, NEVER, NEVER, NEVER]
    assert found.changes.tolist() == [4, 0, 1, 1, 2]


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_a_history_is_what_reading_the_marks_in_turn_gives(marks: list[bool]) -> None:
    expected, wanted = [], True
    for step, mark in enumerate(marks):
        if mark == wanted:
            expected.append(step)
            wanted = not wanted
    found = histories(range(len(marks)), np.array(marks)[:, None])
    events = [int(event[0]) for event in (found.learned, found.forgotten, found.learned_again)]
    assert events == (expected + [NEVER] * 3)[:3]
    assert found.changes[0] == len(expected)


def test_bits_are_those_known_beyond_guessing() -> None:
    assert learned_bits([True] * 8, [4] * 8) == pytest.approx(16.0)
    assert learned_bits([True, False, False, False], [4] * 4) == pytest.approx(0.0)  # chance
    assert learned_bits([True, True], [2, 8]) == pytest.approx(1 + 3)


def test_outcomes_are_read_in_the_order_of_the_steps(tmp_path: Path) -> None:
    for step in (200, 9):
        correct = np.zeros((3, len(RULES)), dtype=bool)
        correct[1, RULES.index("sum")] = step == 200
        np.savez_compressed(tmp_path / f"step-{step}.npz", correct=correct, scores=np.full(correct.shape, -step))
    found = read_outcomes(tmp_path, "sum")
    assert found.steps.tolist() == [9, 200]
    assert found.correct.tolist() == [[False] * 3, [False, True, False]]
    assert found.scores[:, 0].tolist() == [-9, -200]
    assert not read_outcomes(tmp_path, "statement").correct.any()


def test_outcomes_that_cannot_be_followed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no outcomes"):
        read_outcomes(tmp_path, "sum")
    np.savez_compressed(tmp_path / "step-1.npz", correct=np.zeros((2, 5), dtype=bool))
    with pytest.raises(InputError, match=r"step-1\.npz: has no scores"):
        read_outcomes(tmp_path, "sum")


def test_the_last_outcomes_are_those_of_the_highest_step_and_older_files_have_no_mean_margins(tmp_path: Path) -> None:
    shape = (2, len(RULES))
    for step in (200, 9):
        arrays = {"correct": np.full(shape, step == 200), "margins": np.full(shape, step, dtype=np.float32)}
        np.savez(tmp_path / f"step-{step}.npz", **arrays)
    found = read_last_outcomes(tmp_path, "sum")
    assert (found.step, found.correct.tolist(), found.margins.tolist()) == (200, [True, True], [200, 200])
    assert np.isnan(found.mean_margins).all()
    means = np.zeros(shape, dtype=np.float32)
    means[:, RULES.index("sum")] = 3
    np.savez(tmp_path / "step-300.npz", **arrays, mean_margins=means, rules=np.array(RULES))
    assert read_last_outcomes(tmp_path, "sum").mean_margins.tolist() == [3, 3]
    np.savez(tmp_path / "step-400.npz", **arrays, rules=np.array(["statement"]))
    with pytest.raises(InputError, match="has no rule 'sum'"):
        read_last_outcomes(tmp_path, "sum")
