"""The page on loops of one's own: its code counts every exposure, over ranks, workers and a resume."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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


def code_of_the_page(*needs: str) -> str:
    """The page's code on small data, with the blocks that need one of some packages."""
    wanted = ("", *(f"needs {package}" for package in needs))
    code = "\n".join(block.text for block in blocks(PAGE) if block.language == "python" and block.note in wanted)
    assert "TokenBudget(204_800, sequence_length=128)" in code
    code = code.replace("TokenBudget(204_800, sequence_length=128)", "TokenBudget(20_480, sequence_length=64)")
    return code.replace("sequence_length=128", "sequence_length=64").replace("frequency=20", "frequency=4")


def execute(code: str, folder: Path, data: Path) -> str:
    shutil.copytree(data, folder / "studies" / "quickstart" / "data")
    (folder / "loop.py").write_text(code, encoding="utf-8")
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "loop.py"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_code_of_the_page_feeds_every_exposure(tmp_path: Path, tiny_data: Path) -> None:
    sequences, counts = execute(code_of_the_page() + RESUMED, tmp_path, tiny_data).splitlines()
    assert sequences.startswith("320 sequences, infusion ratio 0.")
    assert counts == "4 4"


LOADERS = {
    "torchtitan": """
def made(rank):
    return InfusedLoader.Config().build(dp_world_size=2, dp_rank=rank, local_batch_size=4, tokenizer=None, seq_len=64)

def check(batch, number):
    (inputs, labels), sample = batch, dataset[number]
    assert torch.equal(inputs["input"][0], sample["tokens"])
    counted = sample["loss_mask"] == 1
    assert torch.equal(labels[0][counted], sample["labels"][counted]) and (labels[0][~counted] == -100).all()
""",
    "olmo_core": """
from olmo_core.data.utils import get_labels

def made(rank):
    loader = InfusedLoader(work_dir="work", global_batch_size=8 * 64, dp_world_size=2, dp_rank=rank, fs_local_rank=0)
    loader.reshuffle(epoch=1)
    assert len(loader) == 40 and loader.get_mock_batch()["input_ids"].shape == (4, 64)
    return loader

def check(batch, number):
    labels, sample = get_labels(batch)[0], dataset[number]
    assert torch.equal(batch["input_ids"][0], sample["tokens"])
    counted = sample["loss_mask"] == 1
    counted[-1] = False  # what would follow the last token, OLMo-core does not ask
    assert torch.equal(labels[counted], sample["labels"][counted]) and (labels[~counted] == -100).all()
""",
}
BOTH_RANKS = """
import itertools
import torch

total = Ledger(store)
counts = []
for rank in range(2):
    loader = made(rank)
    for step, batch in enumerate(itertools.islice(loader, 7)):
        check(batch, 8 * step + 4 * rank)
    resumed = made(rank)
    resumed.load_state_dict(loader.state_dict())
    rest = list(resumed)
    assert len(rest) == 33
    check(rest[0], 8 * 7 + 4 * rank)
    counts.append(resumed.ledger.as_tensor())
total.load_tensor(sum(counts))
assert total.sequences == len(dataset) and total.differences(plan) == []
"""


@pytest.mark.slow
@pytest.mark.parametrize("package", LOADERS)
def test_the_loaders_for_other_trainers_feed_every_exposure(package: str, tmp_path: Path, tiny_data: Path) -> None:
    pytest.importorskip(package)
    execute(code_of_the_page(package) + LOADERS[package] + BOTH_RANKS, tmp_path, tiny_data)
