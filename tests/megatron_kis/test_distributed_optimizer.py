"""Megatron-Core's distributed optimizer saved and resumed: real processes, real numbers, its own code on the host."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_kis.checkpoint import shards
from megatron_kis.common.files import read_json
from megatron_kis.config.run import RunConfig
from megatron_kis.distributed.collectives import gather
from megatron_kis.distributed.determinism import seed_device
from megatron_kis.distributed.device import open_device
from megatron_kis.distributed.groups import close_groups, open_groups
from megatron_kis.engine.engine import Engine
from tests.megatron_kis.cuda_on_host import install
from tests.megatron_kis.ranks import SERVER, Ranks, finish, free_port
from tests.run_files import losses, tensor_shapes

MakeRun = Callable[..., RunConfig]
pytestmark = [pytest.mark.distributed, pytest.mark.slow]
STEPS = 14
SETTINGS: dict[str, Any] = {
    "model": {"layers": 4, "width": 32, "heads": 4, "query_groups": 2},
    "training": {"token_budget": STEPS * 8 * 64, "optimizer": {"learning_rate": 2e-3}, "micro_batch_size": 2},
    "infusion": {"frequency": 4, "background": {"frequency": 3}},
    "probes": {"moments": {"shares": [1.0]}},
    "validation": {"moments": {"shares": [1.0]}},
    "logging": {"every": 1},
    "checkpoints": {"moments": {"every": 3}},
}


def settings(precision: str, **parallel: Any) -> dict[str, Any]:
    return {**SETTINGS, "training": {**SETTINGS["training"], "precision": precision}, "parallel": parallel}


def killed_at(config: RunConfig, size: int, step: int, before: Callable[[], None] | None = install) -> None:
    with Ranks(config, size, before=before) as ranks:
        ranks.wait_for_step(step)
        ranks.send(signal.SIGKILL, 0)
        assert ranks.processes[0].wait() == -signal.SIGKILL, ranks.said()
    assert not (config.output / "DONE").exists()


@pytest.fixture(scope="module")
def saved() -> dict[str, Path]:
    return {}


def fully_trained(make: MakeRun, saved: dict[str, Path], precision: str) -> Path:
    """The last checkpoint of two replicas, trained once."""
    if precision not in saved:
        config = make(name=precision, **settings(precision))
        finish(config, 2, before=install)
        saved[precision] = max((config.output / "checkpoints").iterdir())
    return saved[precision]


def assert_equal(found: dict[str, torch.Tensor], folder: Path) -> None:
    """The same names, shapes and bits as in a checkpoint."""
    ours = [name for name in tensor_shapes(folder) if not name.startswith(("random.", "ledger"))]
    assert sorted(found) == sorted(ours)
    for name, values in shards.read_tensors(folder, ours).items():
        assert found[name].dtype == values.dtype
        assert torch.equal(found[name], values), name


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_run_of_two_replicas_that_is_cut_has_the_bits_of_one_that_is_not(
    tiny_run: MakeRun, saved: dict[str, Path], precision: str
) -> None:
    theirs, cut = fully_trained(tiny_run, saved, precision), tiny_run(name="cut", **settings(precision))
    killed_at(cut, 2, 7)
    assert "resuming from step" in finish(cut, 2, before=install)
    assert losses(cut.output) == losses(theirs.parents[1])
    ours = max((cut.output / "checkpoints").iterdir())
    names = [name for name in tensor_shapes(ours) if not name.startswith(("random.", "ledger"))]
    assert any(name.startswith("main.") for name in names) == (precision == "bf16")
    assert_equal(shards.read_tensors(ours, names), theirs)
    assert max(shares(ours)) < 0.55  # one replica would have written all


def shares(folder: Path) -> list[float]:
    """The part of all numbers that each file of a checkpoint holds, from the first rank on."""
    numbers: dict[str, int] = {}
    for tensor in read_json(folder / shards.INDEX_NAME, shards.INDEX_SCHEMA)["tensors"].values():
        for _, sizes, file, _, _ in tensor["parts"]:
            numbers[file] = numbers.get(file, 0) + math.prod(sizes)
    return [numbers[file] / sum(numbers.values()) for file in sorted(numbers)]


def resave(config: RunConfig, source: Path, target: Path, cuda: bool) -> None:
    """In each rank of a layout: loads a checkpoint into an engine, and saves what the engine then has."""
    if cuda:
        install()
    device = open_device("cpu")
    parallel = config.parallel
    layout = open_groups(
        device, tensor=parallel.tensor, pipeline=parallel.pipeline, virtual=parallel.virtual, context=parallel.context
    )
    try:
        seed_device(device, 1, tensor_rank=layout.tensor_rank, pipeline_rank=layout.pipeline_rank)
        vocabulary = tensor_shapes(source)["embedding.word_embeddings.weight"][0]
        engine = Engine(config, vocabulary=vocabulary, layout=layout, device=device)
        wanted = {name: part for name, part in engine.sharded_state().items() if name != "random"}
        engine.load_state(shards.load(wanted, source))
        with silence():
            again = {name: part for name, part in engine.sharded_state().items() if name != "random"}
        staged = shards.stage(again, target)
        results = gather(staged.write())
        if layout.rank == 0:
            staged.finish(results)
    finally:
        close_groups()


@contextmanager
def silence() -> Iterator[None]:
    """No rank can give another what it holds."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the optimizer is gathered")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("all_gather", "all_gather_into_tensor", "gather", "all_reduce", "broadcast"):
            patch.setattr(dist, name, refuse)
        yield


def resaved(config: RunConfig, source: Path, target: Path, size: int, *, cuda: bool = True) -> dict[str, torch.Tensor]:
    """The whole tensors of a checkpoint that was loaded under another layout and saved there."""
    target.mkdir()
    address = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        SERVER.Process(target=in_environment, args=({**address, "RANK": str(rank)}, config, source, target, cuda))
        for rank in range(size)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=180)
    assert [rank.exitcode for rank in ranks] == [0] * size
    return shards.read_tensors(target, list(tensor_shapes(target)))


def in_environment(environment: dict[str, str], *arguments: Any) -> None:
    os.environ.update(environment)
    resave(*arguments)


LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "sequence": (2, {"tensor": 2, "sequence": True}),
    "interleaved": (2, {"pipeline": 2, "virtual": 2}),
    "context": (2, {"context": 2}),
    "tensor-replicas": (4, {"tensor": 2}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_replicas_saved_in_half_precision_loads_under_every_layout_to_the_bit(
    layout: str, tiny_run: MakeRun, tmp_path: Path, saved: dict[str, Path]
) -> None:
    source = fully_trained(tiny_run, saved, "bf16")
    size, parallel = LAYOUTS[layout]
    found = resaved(tiny_run(**settings("bf16", **parallel)), source, tmp_path / "again", size)
    assert_equal(found, source)


def test_full_precision_goes_from_cuda_to_the_host_and_back(
    tiny_run: MakeRun, tmp_path: Path, saved: dict[str, Path]
) -> None:
    source = fully_trained(tiny_run, saved, "fp32")
    on_host = resaved(tiny_run(**settings("fp32", tensor=2)), source, tmp_path / "host", 2, cuda=False)
    assert_equal(on_host, source)
    back = resaved(tiny_run(**settings("fp32")), tmp_path / "host", tmp_path / "cuda", 2)
    assert_equal(back, source)
