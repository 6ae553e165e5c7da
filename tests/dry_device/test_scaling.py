"""FP8: what its products remember is kept by a checkpoint, and changed by training steps alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from tests.dry_device import wheel
from tests.dry_device.cases import ROOT, missing, need


def scales(what: str) -> dict[str, Any]:
    need(missing() or wheel.missing())
    command = [sys.executable, "-W", "ignore", "-m", "tests.dry_device.scales", what]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert not ended.returncode, ended.stderr[-6000:]
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_only_training_steps_multiply_in_fp8() -> None:
    found = scales("counts")
    assert found["step"] > 0
    assert found["validation"] == found["probe"] == 0


def test_a_checkpoint_keeps_scales_and_largest_values_without_a_pickle() -> None:
    found = scales("kept")
    assert found["equal"]
    # Transformer Engine's quantizers see what was loaded: its tensors stayed where they were
    assert found["used"] == [list(pair) for pair in zip(*found["saved"], strict=True)]
    assert len(set(found["saved"][0])) == 3
    assert len(found["names"]) == 2 * 4 * 2 * 2  # layers, products, directions, scales and histories
    assert sorted(name for names in found["stages"] for name in names) == found["names"]
