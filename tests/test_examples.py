"""The examples for users, run as they would run them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_gpt_dataset_example_infuses_exactly_what_it_says(tiny_data: Path, tmp_path: Path, ranks: int) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    script = ROOT / "run_scripts" / "examples" / "infuse_gpt_dataset.py"
    settings = {"steps": 12, "length": 64, "frequency": 4, "background": 2}
    options = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    start = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [sys.executable, *start, str(script), "--data", str(data), *options]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("16 infused facts received 4 to 4 whole exposures") == ranks
    assert ended.stdout.count("16 background facts received 2 to 2 whole exposures") == ranks
    losses = [float(line.rsplit(" ", 1)[1]) for line in ended.stdout.splitlines() if line.startswith("step")]
    assert max(losses[-ranks:]) < min(losses[:ranks])
