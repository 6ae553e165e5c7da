"""FP8: what its products remember is kept by a checkpoint, and changed by training steps alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.dry_device import wheel
from tests.dry_device.cases import missing, need


@pytest.fixture
def scales(ask_dry_device: Callable[..., Any]) -> Callable[[str], dict[str, Any]]:
    """Asks a function of ``scales.py``."""
    need(missing() or wheel.missing())
    return lambda what: ask_dry_device(f"tests.dry_device.scales:{what}")


def test_only_training_steps_multiply_in_fp8(scales: Callable[[str], dict[str, Any]]) -> None:
    found = scales("counts")
    assert found["step"] > 0
    assert found["validation"] == found["probe"] == 0


def test_a_checkpoint_keeps_scales_and_largest_values_without_a_pickle(
    scales: Callable[[str], dict[str, Any]],
) -> None:
    found = scales("kept")
    assert found["equal"]
    # Transformer Engine's quantizers see what was loaded: its tensors stayed where they were
    assert found["used"] == [list(pair) for pair in zip(*found["saved"], strict=True)]
    assert len(set(found["saved"][0])) == 3
    assert len(found["names"]) == 2 * 4 * 2 * 2  # layers, products, directions, scales and histories
    assert sorted(name for names in found["stages"] for name in names) == found["names"]
