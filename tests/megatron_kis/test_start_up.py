"""What a run does before its first step, besides what it must."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from megatron_kis.config.run import RunConfig
from tests.runs import trained

COUNTING = """
import gc
from megatron_kis.cli.train import import_trainer
collections = []
gc.callbacks.append(lambda phase, _: collections.append(phase))
import_trainer()
print(len(collections), gc.isenabled(), gc.get_freeze_count() > 100_000)
"""


def test_imports_are_not_searched_for_garbage() -> None:
    ended = subprocess.run([sys.executable, "-c", COUNTING], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["0", "True", "True"]


def test_questions_are_not_packed_as_slowly_as_possible(tiny_run: Callable[..., RunConfig]) -> None:
    folder: Path = trained(tiny_run())
    header = (folder / "inputs" / "questions.jsonl.gz").read_bytes()[:10]
    assert header[8] != 2, "RFC 1952: XFL is 2 where the compressor used its slowest algorithm"
