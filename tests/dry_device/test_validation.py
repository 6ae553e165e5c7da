"""A validation fits where training fits, with any vocabulary and length, and is shared by the replicas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from megatron_kis.config.vocabulary import LOGITS_PER_BLOCK
from tests.dry_device import VALIDATED
from tests.dry_device.cases import LAYOUTS

Run = Callable[..., dict[str, Any]]
LARGE = {
    "preset": "3b",
    "layers": 2,
    "length": 4096,
    "vocabulary": 128256,
    "micro_batch": 2,
    "data": 2,
    "parts": "step,validation,probe",
}
BF16_AND_FP32 = 6
NORMALISED = 10


@pytest.mark.parametrize("layout", ["one GPU", "grouped queries", "last stage", "70b, first stage"])
def test_a_validation_takes_less_memory_than_a_step(run_case: Run, layout: str) -> None:
    peaks = run_case(**LAYOUTS[layout])["peaks"]
    assert peaks["validation"] < peaks["passes"]


def test_a_large_vocabulary_and_a_long_sequence_take_a_block_of_logits(run_case: Run) -> None:
    case = run_case(**LARGE)
    assert not case["problems"]
    assert BF16_AND_FP32 * LOGITS_PER_BLOCK * 0.9 < case["peaks"]["validation"] < BF16_AND_FP32 * LOGITS_PER_BLOCK * 1.1
    assert case["peaks"]["probe"] < NORMALISED * LOGITS_PER_BLOCK * 1.1


@pytest.mark.parametrize("layout", ["one GPU", "replicas", "last stage"])
def test_a_validation_waits_for_the_device_once_and_has_one_shape(run_case: Run, layout: str) -> None:
    asked = LAYOUTS[layout]
    case = run_case(**asked)["parts"]["validation"]
    assert sum(case["syncs"].values()) == 1, case["syncs"]
    (attention,) = case["attention"].values()
    layers = asked.get("layers", 6) // asked.get("pipeline", 1)
    assert attention == VALIDATED // asked.get("data", 1) * layers  # rows of the text, one a pass
