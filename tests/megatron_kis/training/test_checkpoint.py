"""Checkpoints in one process: exact resume, what is refused and kept, damage, full disks, no code from disk."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader

from megatron_kis.checkpoint import shards
from megatron_kis.checkpoint.folders import CheckpointWriter, write_manifest
from megatron_kis.common.errors import InputError, JobError
from megatron_kis.common.files import read_json, sha256_file
from megatron_kis.config.run import RunConfig
from megatron_kis.training.trainer import train
from tests.run_files import losses, rows, tensor_shapes
from tests.runs import EVERY_5, OFTEN, MakeRun, cut_off, trained


def steps_kept(config: RunConfig) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (config.output / "checkpoints").iterdir())


def tensors(config: RunConfig) -> dict[str, str]:
    """Hashes of every part of the newest checkpoint."""
    folder = max((config.output / "checkpoints").iterdir())
    return {path.name: sha256_file(path) for path in sorted(folder.glob("*.distcp"))}


def test_a_resumed_run_has_the_bits_of_the_uninterrupted_one(tiny_run: MakeRun) -> None:
    whole, cut = tiny_run(name="whole", **OFTEN), tiny_run(name="cut", **OFTEN)
    trained(whole)
    cut_off(cut, 13)
    assert max(losses(cut.output)) == 13
    train(cut)
    assert losses(cut.output) == losses(whole.output)
    assert tensors(cut) == tensors(whole)  # weights, moments, random states, ledger
    for name in ("probes.jsonl", "metrics.jsonl"):
        unlike = {"seconds", "tokens_per_second", "mfu", "memory_bytes"}
        ours, theirs = (
            [{key: value for key, value in row.items() if key not in unlike} for row in rows(config.output, name)]
            for config in (cut, whole)
        )
        assert ours == theirs
    assert (cut.output / "exposures.json").read_bytes() == (whole.output / "exposures.json").read_bytes()
    assert sorted(path.name for path in (cut.output / "outcomes").iterdir()) == sorted(
        path.name for path in (whole.output / "outcomes").iterdir()
    )
    for path in (whole.output / "outcomes").glob("*.npz"):
        with np.load(path) as theirs_, np.load(cut.output / "outcomes" / path.name) as ours_:
            assert set(ours_) == set(theirs_)
            for name in theirs_:  # a margin is NaN where its rule does not apply
                np.testing.assert_array_equal(ours_[name], theirs_[name])


@pytest.mark.slow
def test_a_run_cut_off_before_done_is_closed_without_a_step(tiny_run: MakeRun) -> None:
    config = tiny_run(**OFTEN)
    folder = trained(config)
    done = read_json(folder / "DONE", "kis.done/1")
    (folder / "DONE").unlink()
    train(config)
    again = read_json(folder / "DONE", "kis.done/1")
    assert again["loss"] == done["loss"]
    assert again["files"]["metrics.jsonl"] == done["files"]["metrics.jsonl"]
    assert again["files"]["exposures.json"] == done["files"]["exposures.json"]


@pytest.mark.slow
def test_restart_forgets_what_there_is(tiny_run: MakeRun) -> None:
    config = tiny_run(**OFTEN)
    cut_off(config, 12)
    train(config, restart=True)
    assert [s["from_step"] for s in read_json(config.output / "run.json", "kis.run/1")["sessions"]] == [0]
    assert sorted(losses(config.output)) == list(range(1, 21))


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["changed", "truncated", "missing"])
@pytest.mark.parametrize("name", ["__0_0.distcp", "index.json", "checkpoint.json"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(
    name: str, damage: str, tiny_run: MakeRun, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run(**OFTEN)
    cut_off(config, 11)
    path = config.output / "checkpoints" / "step-00000010" / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    cut_off(config, 7)
    said = capfd.readouterr().err
    assert "step-00000010 is damaged" in said
    assert "resuming from step 5 of 20" in said
    assert sorted(losses(config.output)) == list(range(1, 8))


@pytest.fixture
def own_data(tiny_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


def on(make: MakeRun, data: Path, **changes: Any) -> RunConfig:
    names = {
        "corpus": "corpus",
        "validation": "corpus.validation",
        "exposures": "exposures",
        "tokenizer": "tokenizer.model",
    }
    return make(data={key: data / name for key, name in names.items()}, **{**OFTEN, **changes})


@pytest.mark.slow
def test_a_corpus_made_anew_at_the_same_place_is_refused(tiny_run: MakeRun, own_data: Path) -> None:
    cut_off(tiny_run(**OFTEN), 7)
    config = on(tiny_run, own_data)
    meta = json.loads((own_data / "corpus.meta.json").read_text())
    meta["content_fingerprint"], before = "0" * 64, meta["content_fingerprint"]
    (own_data / "corpus.meta.json").write_text(json.dumps(meta))
    said = rf"another corpus .*checkpoint {before[:16]}, now 0000000000000000.*--restart"
    with pytest.raises(InputError, match=said):
        train(config)
    assert max(losses(config.output)) == 7


@pytest.mark.slow
def test_other_settings_are_refused_and_named(tiny_run: MakeRun) -> None:
    config = tiny_run(**OFTEN)
    cut_off(config, 7)
    with pytest.raises(InputError, match=r"other settings .*training\.optimizer\.learning_rate 0\.003 -> 0\.001"):
        train(tiny_run(**OFTEN, training={"optimizer": {"learning_rate": 1e-3}}))
    with pytest.raises(InputError, match=r"other settings .*infusion\.frequency 8\.0 -> 9\.0"):
        train(tiny_run(**OFTEN, infusion={"frequency": 9}))


@pytest.mark.slow
def test_what_changes_no_result_may_change(tiny_run: MakeRun) -> None:
    cut_off(tiny_run(**OFTEN), 7)
    changed = tiny_run(**{**OFTEN, "training": {"micro_batch_size": 2}, "logging": {"every": 2}})
    train(changed)
    assert (changed.output / "DONE").exists()


@pytest.mark.slow
def test_a_file_that_is_gone_is_named(tiny_run: MakeRun, own_data: Path) -> None:
    cut_off(tiny_run(**OFTEN), 7)
    config = on(tiny_run, own_data)
    (own_data / "corpus.bin").unlink()
    with pytest.raises(InputError, match=r"corpus\.bin"):
        train(config)


@pytest.mark.slow
def test_room_is_made_but_for_milestones_and_the_best(tiny_run: MakeRun) -> None:
    config = tiny_run(
        checkpoints={"moments": {"every": 2, "shares": [0.2]}, "keep_last": 2, "asynchronous": False},
        validation={"moments": {"shares": [0.3, 1.0]}},
    )
    train(config)
    measured = {row["step"]: row["loss"] for row in rows(config.output, "metrics.jsonl") if row["kind"] == "validation"}
    assert steps_kept(config) == [4, 18, 20]
    assert measured[20] < measured[6]  # hence 6 was the best until 20 came
    assert not list((config.output / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_the_best_stays_when_later_ones_are_worse(tiny_run: MakeRun) -> None:
    config = tiny_run(
        training={"optimizer": {"learning_rate": 0.1, "warmup_share": 0.5, "minimum_share": 1.0}},
        checkpoints={"moments": {"every": 1}, "keep_last": 1, "asynchronous": False},
        validation={"moments": {"every": 1}},
    )
    train(config)
    measured = {row["loss"]: row["step"] for row in rows(config.output, "metrics.jsonl") if row["kind"] == "validation"}
    best = measured[min(measured)]
    assert best != 20
    assert steps_kept(config) == sorted([best, 20])


def full_disk(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The disk is full for all checkpoints but the first ``after``."""
    write, count = shards.Staged.write, [0]

    def fail(self: shards.Staged) -> Any:
        count[0] += 1
        if count[0] > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self)

    monkeypatch.setattr(shards.Staged, "write", fail)


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_checkpoint_and_fails_at_the_end(
    tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run(**OFTEN)
    with monkeypatch.context() as patch:
        full_disk(patch, after=1)
        with pytest.raises(JobError, match="No space left on device"):
            train(config)
    assert "a checkpoint could not be written" in capfd.readouterr().err  # at steps 10 and 15, which went on
    assert steps_kept(config) == [5]
    assert not (config.output / "DONE").exists()
    train(config)
    assert "resuming from step 5" in capfd.readouterr().err
    assert sorted(losses(config.output)) == list(range(1, 21))


@pytest.mark.slow
def test_a_disk_that_is_full_for_the_last_file_is_noticed(tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: CheckpointWriter, written: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(CheckpointWriter, "_finish", fail)
    config = tiny_run()
    with pytest.raises(JobError, match="No space left on device"):
        train(config)
    assert steps_kept(config) == []


@pytest.mark.slow
def test_nothing_on_disk_is_unpickled(tiny_run: MakeRun, tmp_path: Path) -> None:
    """``.metadata`` is a pickle, and reading it the usual way runs what it says; we do not read it."""
    config = tiny_run(**{**OFTEN, "checkpoints": {**EVERY_5, "keep_last": 9}})
    cut_off(config, 7)
    folder = config.output / "checkpoints" / "step-00000005"
    mark = tmp_path / "ran"
    (folder / ".metadata").write_bytes(f"cos\nsystem\n(S'touch {mark}'\ntR.".encode())
    manifest = json.loads((folder / "checkpoint.json").read_text())
    manifest["files"][".metadata"] = {
        "bytes": (folder / ".metadata").stat().st_size,
        "sha256": sha256_file(folder / ".metadata"),
    }
    write_manifest(folder / "checkpoint.json", manifest)
    train(config)
    assert [s["from_step"] for s in read_json(config.output / "run.json", "kis.run/1")["sessions"]] == [0, 5]
    assert not mark.exists()
    with pytest.raises(AttributeError):
        FileSystemReader(folder).read_metadata()
    assert mark.exists()  # so it would have run


def test_an_index_that_points_outside_its_folder_is_refused(tmp_path: Path) -> None:
    part = [[0], [4], "../secret.distcp", 0, 8]
    index = {"schema": "kis.index/1", "tensors": {"w": {"dtype": "float32", "shape": [4], "parts": [part]}}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="outside the checkpoint"):
        shards._IndexReader(tmp_path)


def test_an_index_of_something_that_is_no_type_is_refused(tmp_path: Path) -> None:
    index = {"schema": "kis.index/1", "tensors": {"w": {"dtype": "load", "shape": [4], "parts": []}}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert callable(torch.load)
    with pytest.raises(InputError, match="dtype load"):
        shards._IndexReader(tmp_path)


@pytest.mark.slow
def test_other_tools_can_read_the_checkpoint(tiny_run: MakeRun) -> None:
    """PyTorch's own converter, over the metadata that PyTorch wrote."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    folder = trained(tiny_run()) / "checkpoints" / "step-00000020"
    target = folder.parents[1] / "weights.pt"
    dcp_to_torch_save(folder, target)
    weights = torch.load(target, weights_only=True)
    assert weights["embedding.word_embeddings.weight"].shape == (512, 16)
    assert tensor_shapes(folder)["embedding.word_embeddings.weight"] == (512, 16)
