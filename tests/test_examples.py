"""The examples for users, run as they would run them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.megatron_kis.ranks import free_port

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
    losses: dict[int, list[float]] = {}
    for step, loss in re.findall(r"^step +(\d+): .*? ([\d.]+)$", ended.stdout, re.M):
        losses.setdefault(int(step), []).append(float(loss))  # ranks do not wait for each other to print
    assert [len(losses[step]) for step in sorted(losses)] == [ranks] * len(losses) and len(losses) > 1
    assert max(losses[max(losses)]) < min(losses[min(losses)])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("infuse_ddp --data nowhere --output out", "kis: error: nowhere/exposures.idx: no such file; "),
        ("infuse_ddp --data {data} --output out --length 8", "kis: error: exposure_lengths: an exposure of "),
        ("infuse_trainer --data nowhere --output out", "kis: error: nowhere/exposures.idx: no such file; "),
        ("infuse_gpt_dataset --data nowhere", "kis: error: nowhere: no such file"),
        ("infuse_gpt_dataset --data {data} --frequency 100000", "kis: error: infusion_frequency: 16 infused facts x "),
        (
            "invented_domain out --minerals 100000",
            "invented_domain.py: error: --minerals and --districts: at most",
        ),
        ("infuse_ddp --data {data} --output out --workers -1", "infuse_ddp.py: error: --workers -1: 0 or more"),
        (
            "infuse_ddp --data {data} --output out --steps 0",
            "infuse_ddp.py: error: argument --steps: '0' is not a count of at least 1",
        ),
    ],
)
def test_wrong_input_ends_an_example_in_one_line(words: str, said: str, tiny_data: Path, tmp_path: Path) -> None:
    module, *options = words.format(data=tiny_data).split()
    script = str(ROOT / "run_scripts" / "examples" / f"{module}.py")
    environment = {**os.environ, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(free_port()), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, *options]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert ended.returncode == 2, ended.stderr
    assert any(line.startswith(said) for line in ended.stderr.splitlines()), ended.stderr
    assert "Traceback" not in ended.stderr


def trained(example: str, ranks: int, data: Path, output: Path, *more: str, refused: bool = False) -> str:
    """Runs 12 steps of 8 sequences in some processes, with workers that read the data, and returns what was said."""
    script = str(ROOT / "run_scripts" / "examples" / example)
    sizes = {"steps": 12, "batch": 8, "length": 64, "frequency": 4, "background": 6, "workers": 1}
    options = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [*start, script, "--data", str(data), "--output", str(output), *options, *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (ended.returncode != 0) == refused, ended.stderr
    return ended.stderr if refused else ended.stdout


@pytest.mark.distributed
def test_the_plain_loop_counts_over_ranks_workers_and_a_resume(tiny_data: Path, tmp_path: Path) -> None:
    said = trained("infuse_ddp.py", 2, tiny_data, tmp_path / "run", "--stop-after", "5")
    assert "received 4 to 4" not in said
    said = trained("infuse_ddp.py", 1, tiny_data, tmp_path / "run")
    assert "step 5:" not in said and "step 12:" in said
    assert "16 infused facts received 4 to 4 whole exposures" in said
    assert "background facts received" in said
    trained("infuse_ddp.py", 1, tiny_data, tmp_path / "run", "--stop-after", "5")
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 12  # not an earlier one with the weights and counts of the end


def test_each_rank_of_the_plain_loop_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_kis.run_scripts.examples import infuse_ddp

    class Joined(Exception):
        """Raised where a rank would join the others."""

    taken: list[torch.device] = []

    def join(backend: str) -> None:
        assert (backend, taken) == ("nccl", [torch.device("cuda", 3)])
        raise Joined

    monkeypatch.setattr(sys, "argv", ["infuse_ddp.py", "--data", "data", "--output", "out"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(infuse_ddp.dist, "init_process_group", join)
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(Joined):
        infuse_ddp.main()
    monkeypatch.delenv("LOCAL_RANK")
    with pytest.raises(SystemExit, match="2"):
        infuse_ddp.main()


@pytest.mark.distributed
def test_the_trainer_of_transformers_counts_over_ranks_workers_and_a_resume(tiny_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    output = tmp_path / "run"
    said = trained("infuse_trainer.py", 2, tiny_data, output, "--accumulate", "2", "--stop-after", "5")
    assert "received 4 to 4" not in said
    assert (output / "checkpoint-5" / "ledger.pt").is_file()
    said = trained("infuse_trainer.py", 2, tiny_data, output, "--accumulate", "2")
    assert (output / "checkpoint-12").is_dir() and not (output / "checkpoint-17").exists()
    assert "16 infused facts received 4 to 4 whole exposures" in said
    assert "background facts received" in said
    said = trained("infuse_trainer.py", 1, tiny_data, output, "--frequency", "5", refused=True)
    assert "checkpoint-12: was trained under another plan; choose another output" in said
    (output / "checkpoint-12" / "ledger.pt").unlink()
    said = trained("infuse_trainer.py", 1, tiny_data, output, refused=True)
    assert "checkpoint-12: has no ledger.pt: saving it was cut off" in said


def test_transformers_reads_in_order_and_its_labels_are_those_of_the_mask(tiny_data: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    from megatron_kis.data import ExposurePlan, InfusedDataset, InfusedFacts, TokenBudget
    from megatron_kis.data.exposure_store import ExposureStore
    from megatron_kis.data.general_text import GeneralText
    from megatron_kis.run_scripts.examples.infuse_trainer import InfusedTrainer, Samples

    store = ExposureStore(tiny_data / "exposures")
    plan = ExposurePlan(InfusedFacts(store.lengths("infused"), frequency=8), budget=TokenBudget(80 * 64, 64))
    dataset = InfusedDataset(plan, GeneralText(tiny_data / "corpus", sequence_length=64, seed=0), store)
    samples, masked = Samples(dataset), 0
    sampler = InfusedTrainer._get_train_sampler(SimpleNamespace(samples=samples))  # type: ignore[arg-type]
    assert list(sampler) == list(range(80))
    for number in range(len(samples)):
        labels, sample = samples[number]["labels"], dataset[number]
        counted = sample["loss_mask"][:-1] == 1  # what would follow the last token, transformers does not ask
        assert torch.equal(labels[1:][counted], sample["labels"][:-1][counted])
        assert (labels[1:][~counted] == -100).all()
        masked += int((~counted).sum())
    assert masked
