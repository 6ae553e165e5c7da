"""The page on loops of one's own: its code counts every exposure, over ranks, workers and a resume."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.pages import ROOT, blocks

PAGE = ROOT / "docs" / "how-to" / "own-loop.md"
RESUMED = """
def partly(ledger, first, last):
    for rank in range(3):
        loader = loader_of(rank, 3, done=first)
        for numbers, sample in zip(loader.batch_sampler, loader, strict=True):
            if numbers[0] < last:
                ledger.observe_many(list(sample["tokens"].numpy()), [plan[number] for number in numbers])

resumed = Ledger(store)
partly(resumed, 0, 48)
assert resumed.differences(plan) != []
partly(resumed, 48, len(dataset))
assert resumed.differences(plan) == []
"""


def test_the_code_of_the_page_feeds_every_exposure(tmp_path: Path, tiny_data: Path) -> None:
    target = tmp_path / "studies" / "quickstart" / "data"
    shutil.copytree(tiny_data, target)
    code = "\n".join(block.text for block in blocks(PAGE) if block.language == "python")
    assert "TokenBudget(204_800, sequence_length=128)" in code
    code = code.replace("TokenBudget(204_800, sequence_length=128)", "TokenBudget(20_480, sequence_length=64)")
    code = code.replace("sequence_length=128", "sequence_length=64").replace("frequency=20", "frequency=4")
    (tmp_path / "loop.py").write_text(code + RESUMED, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "loop.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    sequences, counts = ended.stdout.splitlines()
    assert sequences.startswith("320 sequences, infusion ratio 0.")
    assert counts == "4 4"
