from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_json
from megatron_kis.config.run import RunConfig
from megatron_kis.distributed.device import Device
from megatron_kis.training.callbacks.metrics import Throughput
from megatron_kis.training.trainer import train
from tests.run_files import losses, rows
from tests.runs import EVERY_5, cut_off, trained

MakeRun = Callable[..., RunConfig]


@pytest.mark.slow
def test_tensorboard_has_the_losses_of_the_log_also_after_a_crash(tiny_run: MakeRun) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny_run(logging={"every": 1, "tensorboard": True}, checkpoints=EVERY_5)
    cut_off(config, 8)
    train(config)
    events = EventAccumulator(str(config.output / "tensorboard"))
    events.Reload()
    shown = {event.step: event.value for event in events.Scalars("train/loss")}
    assert shown == pytest.approx(losses(config.output))
    assert len(events.Scalars("train/loss")) == 20
    assert events.Scalars("results/validation_loss")


@pytest.mark.slow
def test_a_run_that_begins_again_is_shown_once(tiny_run: MakeRun) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"logging": {"every": 1, "tensorboard": True}}
    cut_off(tiny_run(**settings), 14)
    (tiny_run().output / "wandb").mkdir()
    for restart in (False, True):  # by itself, as there is no checkpoint; and by demand
        config = tiny_run(**settings, training={"optimizer": {"learning_rate": 1e-4}})
        cut_off(config, 9, lambda config=config, restart=restart: train(config, restart=restart))  # type: ignore[misc]
        assert not (config.output / "wandb").exists()
    train(config, restart=True)
    events = EventAccumulator(str(config.output / "tensorboard"))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert [step for step, _ in shown] == list(range(1, 21))
    assert dict(shown) == pytest.approx(losses(config.output))


@pytest.mark.slow
def test_each_beginning_of_a_run_is_one_run_of_weights_and_biases(
    tiny_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def init(*, id: str, **_: Any) -> Any:
        seen.append(id)
        return SimpleNamespace(log=lambda *_, **__: None, finish=lambda **_: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, __spec__=importlib.util.find_spec("json")))
    settings: dict[str, Any] = {"logging": {"wandb": "offline"}, "checkpoints": EVERY_5}
    config = tiny_run(**settings)
    cut_off(config, 7, lambda: train(config))
    moved = tmp_path / "moved"
    shutil.move(config.output, moved)
    cut_off(tiny_run(**settings, output=moved), 12)
    cut_off(tiny_run(**settings, output=moved), 7, lambda: train(tiny_run(**settings, output=moved), restart=True))
    train(tiny_run(**settings, output=moved))
    assert seen[0] == seen[1] != seen[2] == seen[3]
    assert read_json(moved / "run.json", "kis.run/1")["beginning"] == seen[3]


@pytest.mark.slow
def test_weights_and_biases_offline_needs_no_network(tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = tiny_run(logging={"every": 5, "wandb": "offline"})
    train(config)
    assert list((config.output / "wandb").glob("offline-run-*/*.wandb"))
    assert (config.output / "DONE").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("key", "value"), [("tensorboard", True), ("wandb", "offline")])
def test_a_tracker_that_is_not_installed_is_named(
    key: str, value: object, tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == key else find(name, *rest))
    config = tiny_run(logging={key: value})
    with pytest.raises(InputError, match=rf"logging\.{key}: the package {key} is not installed; pip install {key}"):
        train(config)
    assert not config.output.exists()


@pytest.mark.slow
def test_rows_say_how_much_memory_was_taken(tiny_run: MakeRun) -> None:
    folder = trained(tiny_run())
    row = rows(folder, "metrics.jsonl")[0]
    assert 50e6 < row["memory_bytes"] < 50e9
    assert "mfu" not in row  # nobody knows the peak of this processor


def test_the_share_of_the_peak_is_that_of_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7)
    card = Device("cuda", torch.device("cpu"), "nccl", "NVIDIA H100 80GB HBM3")
    speed = Throughput(6e9, device=card, devices=8, precision="bf16")
    assert speed.measure(8 * 50_000) == {"mfu": round(50_000 * 6e9 / 989e12, 4), "memory_bytes": 7}
    assert "mfu" not in Throughput(6e9, device=card, devices=8, precision="fp32").measure(1.0)
