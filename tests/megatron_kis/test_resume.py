"""Runs that are killed, stopped or moved to another layout, and go on as if nothing had happened."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_kis.checkpoint import shards
from megatron_kis.common.files import read_json
from megatron_kis.config.run import RunConfig
from megatron_kis.training.trainer import train
from tests.megatron_kis.ranks import SERVER, Ranks, finish
from tests.run_files import losses, rows

pytestmark = pytest.mark.slow

MakeRun = Callable[..., RunConfig]
STEPS = 26
SETTINGS: dict[str, Any] = {
    "model": {"layers": 4, "width": 32, "heads": 4, "query_groups": 2},
    "training": {"token_budget": STEPS * 8 * 64, "optimizer": {"learning_rate": 2e-3}},
    "infusion": {"frequency": 8},
    "probes": {"moments": {"every": 10}},
    "validation": {"moments": {"every": 10}},
    "logging": {"every": 1},
    "checkpoints": {"moments": {"every": 3}},
}
LONG = {**SETTINGS, "training": {**SETTINGS["training"], "token_budget": 40 * 8 * 64}}
"""Steps to spare after the one that a test waits for."""


def killed_at(config: RunConfig, size: int, step: int, rank: int = 0) -> None:
    """Starts a run and kills one of its ranks when its log shows ``step``."""
    with Ranks(config, size) as ranks:
        ranks.wait_for_step(step)
        ranks.send(signal.SIGKILL, rank)
        assert ranks.processes[rank].wait() == -signal.SIGKILL, ranks.said()
    assert not (config.output / "DONE").exists()


def assert_same_run(ours: Path, theirs: Path, *, atol: float) -> None:
    """Every step is reported once with the same loss, all probes and validations are there, the ledger is exact."""
    first, second = losses(ours), losses(theirs)
    assert sorted(first) == sorted(second) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(first.values()), list(second.values()), rtol=0, atol=atol)
    for name, columns in (("metrics.jsonl", ("kind", "step")), ("probes.jsonl", ("step", "group", "split", "scoring"))):
        keys = [[tuple(row[column] for column in columns) for row in rows(folder, name)] for folder in (ours, theirs)]
        assert keys[0] == keys[1]
    margins = [[row["margin"] for row in rows(folder, "probes.jsonl")] for folder in (ours, theirs)]
    np.testing.assert_allclose(margins[0], margins[1], rtol=0, atol=1e3 * atol)
    ledgers = [read_json(folder / "exposures.json", "kis.ledger/1") for folder in (ours, theirs)]
    assert ledgers[0] == ledgers[1]
    assert ledgers[0]["exact"]


@pytest.fixture(scope="module")
def trained() -> dict[int, Path]:
    return {}


@pytest.fixture(scope="module")
def killed() -> dict[str, Path]:
    return {}


def uninterrupted(make: MakeRun, size: int, trained: dict[int, Path]) -> Path:
    """The run that was never cut off, on ``size`` processes, trained once."""
    if size not in trained:
        config = make(name=f"whole-{size}", **SETTINGS)
        finish(config, size)
        trained[size] = config.output
    return trained[size]


@pytest.mark.distributed
def test_a_run_whose_ranks_are_killed_at_random_goes_on_exactly(tiny_run: MakeRun, trained: dict[int, Path]) -> None:
    config = tiny_run(name="killed", **SETTINGS)
    chance = random.Random(8)
    for lowest in (7, 14):
        killed_at(config, 2, lowest + chance.randrange(4), rank=chance.randrange(2))
    said = finish(config, 2)
    assert "resuming from step" in said
    assert_same_run(config.output, uninterrupted(tiny_run, 2, trained), atol=0.0)
    record = read_json(config.output / "run.json", "kis.run/1")
    assert len(record["sessions"]) == 3
    assert all(session["from_step"] % 3 == 0 for session in record["sessions"])


@pytest.mark.distributed
def test_a_run_goes_on_under_any_other_layout(tiny_run: MakeRun, trained: dict[int, Path]) -> None:
    """Replicas, one process, tensor ranks, interleaved stages, ranks that share sequences: the run of two replicas."""
    config = tiny_run(name="moved", **SETTINGS)
    killed_at(config, 2, 7)
    killed_at(config, 1, 10)
    killed_at(tiny_run(name="moved", **{**SETTINGS, "parallel": {"tensor": 2}}), 2, 13, rank=1)
    chunks = {"parallel": {"pipeline": 2, "virtual": 2}, "training": {**SETTINGS["training"], "micro_batch_size": 2}}
    killed_at(tiny_run(name="moved", **{**SETTINGS, **chunks}), 2, 16, rank=1)
    finish(tiny_run(name="moved", **{**SETTINGS, "parallel": {"context": 2}}), 2)
    assert_same_run(config.output, uninterrupted(tiny_run, 2, trained), atol=2e-6)
    record = read_json(config.output / "run.json", "kis.run/1")
    layouts = [{name: size for name, size in session["parallel"].items() if size > 1} for session in record["sessions"]]
    assert layouts == [
        {"world_size": 2, "data_size": 2},
        {},
        {"world_size": 2, "tensor_size": 2},
        {"world_size": 2, "pipeline_size": 2, "virtual_size": 2},
        {"world_size": 2, "context_size": 2},
    ]


def _train_and_never_finish_writing(config: RunConfig, step: int) -> None:
    """Trains; the checkpoint of ``step`` is written to its last byte but never gets its name."""
    write = shards.Staged.write

    def write_and_hang(staged: shards.Staged) -> list[Any]:
        results = write(staged)
        if staged._folder.name == f".step-{step:08d}.partial":
            time.sleep(600)
        return results

    shards.Staged.write = write_and_hang  # type: ignore[method-assign] # in a process of its own
    train(config)


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(
    tiny_run: MakeRun, trained: dict[int, Path]
) -> None:
    config = tiny_run(name="writing", **{**SETTINGS, "checkpoints": {"moments": {"every": 6}, "asynchronous": True}})
    process = SERVER.Process(target=_train_and_never_finish_writing, args=(config, 12))
    process.start()
    deadline = time.monotonic() + 120
    while max(losses(config.output), default=0) < 15 and time.monotonic() < deadline and process.is_alive():
        time.sleep(0.01)  # training goes on while the checkpoint is written
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    folder = config.output / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [".step-00000012.partial", "step-00000006"]
    assert "resuming from step 6" in finish(config, 1)
    assert not list(folder.glob(".*"))
    assert_same_run(config.output, uninterrupted(tiny_run, 1, trained), atol=0.0)


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["metrics.jsonl", "probes.jsonl"])
def test_a_killed_run_that_loses_a_log_goes_on_as_if_it_had_not(
    name: str, tiny_run: MakeRun, trained: dict[int, Path], killed: dict[str, Path]
) -> None:
    config = tiny_run(name="lost", **SETTINGS)
    if not killed:
        killed_at(config, 1, 16)
        killed["lost"] = Path(shutil.copytree(config.output, config.output.with_name("killed")))
    else:
        shutil.copytree(killed["lost"], config.output)
    (config.output / name).unlink()
    said = finish(config, 1)
    assert "restored from the checkpoint" in said
    assert_same_run(config.output, uninterrupted(tiny_run, 1, trained), atol=0.0)


@pytest.mark.distributed
def test_stages_save_the_logs_of_the_rank_that_writes_them(tiny_run: MakeRun) -> None:
    config = tiny_run(name="stages", **{**SETTINGS, "parallel": {"pipeline": 2}})
    killed_at(config, 2, 10)
    (config.output / "metrics.jsonl").unlink()
    assert "restored from the checkpoint" in finish(config, 2)
    assert sorted(losses(config.output)) == list(range(1, STEPS + 1))


@pytest.mark.distributed
def test_ranks_without_a_usable_checkpoint_all_end_with_the_reason(tiny_run: MakeRun) -> None:
    config = tiny_run(name="unusable", **SETTINGS)
    killed_at(config, 2, 8)
    folders = sorted(path for path in (config.output / "checkpoints").iterdir() if path.name.startswith("step-"))
    for folder in folders:
        (folder / "__1_0.distcp").write_bytes(b"damaged")
    with Ranks(config, 2) as ranks:
        assert ranks.wait(seconds=60) == [2, 2], ranks.said()
        assert ranks.said().count("none of the checkpoints can be used") == 2
        assert "--restart" in ranks.said() and "Traceback" not in ranks.said()
    assert all(folder.exists() for folder in folders)


@pytest.mark.distributed
def test_a_signal_to_one_rank_saves_the_run_and_leaves_with_its_own_status(tiny_run: MakeRun) -> None:
    config = tiny_run(name="asked", **{**LONG, "checkpoints": {"moments": {"every": None}}})
    for number, step, rank in ((signal.SIGTERM, 3, 1), (signal.SIGUSR1, 7, 0)):
        with Ranks(config, 2) as ranks:
            ranks.wait_for_step(step)
            ranks.send(number, rank)
            assert ranks.wait(seconds=30) == [75, 75], ranks.said()
            assert f"stopped by {number.name} after step" in ranks.said()
            assert "Traceback" not in ranks.said()
        newest = max((config.output / "checkpoints").iterdir())
        manifest = read_json(newest / "checkpoint.json", "kis.checkpoint/1")
        assert manifest["step"] == max(losses(config.output)) >= step


@pytest.mark.distributed
def test_a_rank_that_hangs_ends_the_others_with_their_stacks(tiny_run: MakeRun) -> None:
    settings = {**LONG, "training": {**LONG["training"], "guard": {"hang_minutes": 0.1}}}
    config = tiny_run(name="hung", **settings)
    with Ranks(config, 2) as ranks:
        ranks.wait_for_step(5)
        ranks.send(signal.SIGSTOP, 1)
        assert ranks.processes[0].wait(timeout=60) == 1
    stacks = (config.output / "stacks" / "rank-0.txt").read_text(encoding="utf-8")
    assert "Timeout (0:00:06)!" in stacks
    assert "distributed_c10d.py" in stacks, (
        "the step's sum of gradients or a checkpoint's exchange, wherever it was caught"
    )
    assert "megatron_kis/training/trainer.py" in stacks
    finish(tiny_run(name="hung", **LONG), 1)
    assert not (config.output / "stacks" / "rank-0.txt").exists()


def test_a_data_file_that_vanishes_does_not_end_a_run_that_has_it_open(
    tiny_run: MakeRun, tiny_data: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "data")
    places = {"corpus": data / "corpus", "exposures": data / "exposures"}
    config = tiny_run(name="vanished", data=places, **SETTINGS)
    with Ranks(config, 1) as ranks:
        ranks.wait_for_step(3)
        (data / "corpus.bin").unlink()
        assert ranks.wait() == [0], ranks.said()
    assert read_json(config.output / "exposures.json", "kis.ledger/1")["exact"]
    (config.output / "DONE").unlink()
    with Ranks(config, 1) as ranks:
        assert ranks.wait() == [2]
        assert "corpus.bin" in ranks.said()
        assert "Traceback" not in ranks.said()
