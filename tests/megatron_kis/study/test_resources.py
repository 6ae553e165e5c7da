from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.config.executor import ExecutorConfig
from megatron_kis.executor.interface import Slot, local_command
from megatron_kis.executor.resources import Machine, ResourcePool, this_machine
from tests.studies import run_of

CORES = tuple(range(8))


def pool_of(*, gpus: tuple[str, ...] = (), cores: tuple[int, ...] = CORES, **settings: Any) -> ResourcePool:
    return ResourcePool(Machine(gpus, cores), ExecutorConfig(**settings))


@pytest.mark.parametrize(
    ("gpus", "settings", "workers"),
    [
        ((), {}, 8),
        ((), {"threads": 3}, 2),
        ((), {"threads": 99}, 1),
        (("0", "1"), {}, 2),
        (("0", "1"), {"cells_per_gpu": 3}, 6),
        (("0", "1"), {"cells_per_gpu": 3, "workers": 4}, 4),
    ],
)
def test_there_are_as_many_workers_as_the_gpus_take_or_the_cores(
    gpus: tuple[str, ...], settings: dict[str, Any], workers: int
) -> None:
    assert pool_of(gpus=gpus, **settings).workers == workers


def test_small_runs_spread_over_gpus_and_then_share_them(tmp_path: Path) -> None:
    run = run_of(tmp_path, "a")
    pool = pool_of(gpus=("0", "1"), cells_per_gpu=2)
    taken = [pool.acquire(run) for _ in range(5)]
    assert [slot.gpus for slot in taken if slot] == [("0",), ("1",), ("0",), ("1",)]
    assert taken[4] is None
    assert taken[1] is not None
    pool.release(run, taken[1])
    again = pool.acquire(run)
    assert again is not None and again.gpus == ("1",)


def test_a_run_of_several_ranks_gets_whole_gpus_and_waits_for_them(tmp_path: Path) -> None:
    small = run_of(tmp_path, "small")
    large = run_of(tmp_path, "large", parallel={"tensor": 2, "replicas": 2})
    pool = pool_of(gpus=("0", "1", "2", "3", "4"), cells_per_gpu=2)
    other = pool.acquire(small)
    first = pool.acquire(large)
    assert other is not None and first is not None
    assert (other.gpus, first.gpus) == (("0",), ("1", "2", "3", "4"))
    assert pool.acquire(large) is None
    pool.release(large, first)
    assert pool.acquire(large) is not None
    assert local_command(large, Path("c"), first).environment["CUDA_VISIBLE_DEVICES"] == "1,2,3,4"
    assert "--nproc-per-node=4" in local_command(large, Path("c"), first).arguments


def test_a_run_that_fits_nowhere_is_refused_at_once(tmp_path: Path) -> None:
    large = run_of(tmp_path, "large", parallel={"pipeline": 4})
    with pytest.raises(InputError, match="run large: parallel: needs 4 GPUs; this machine has 2"):
        pool_of(gpus=("0", "1")).check([large])
    pool_of().check([large])  # processes on the host need no GPU
    pool_of(gpus=("0", "1")).check([run_of(tmp_path, "host", device="cpu", parallel={"pipeline": 4})])


def test_a_run_on_the_cpu_takes_no_gpu(tmp_path: Path) -> None:
    slot = pool_of(gpus=("0",), workers=2).acquire(run_of(tmp_path, "host", device="cpu"))
    assert slot is not None
    assert slot.gpus is None
    assert "CUDA_VISIBLE_DEVICES" not in slot.environment()


@pytest.mark.parametrize(
    ("settings", "cores"),
    [
        ({"workers": 2, "pin": True}, [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ({"workers": 3, "pin": True}, [(0, 1), (2, 3, 4), (5, 6, 7)]),
        ({"workers": 3}, [None, None, None]),  # cores are left over: the kernel knows better
        ({"workers": 2, "threads": 4}, [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ({"workers": 2, "threads": 4, "pin": False}, [None, None]),
        ({"workers": 9}, [(0,), (1,), (2,), (3,), (4,), (5,), (6,), (7,), (0,)]),
    ],
)
def test_cores_are_shared_out_among_the_workers(
    settings: dict[str, Any], cores: list[tuple[int, ...] | None], tmp_path: Path
) -> None:
    pool = pool_of(**settings)
    taken = [pool.acquire(run_of(tmp_path, "a")) for _ in cores]
    assert [slot.cores for slot in taken if slot] == cores


@pytest.mark.parametrize(
    ("visible", "gpus", "found"),
    [
        (None, "auto", ("0", "1", "2")),  # three device files, whatever their numbers
        ("", "auto", ()),
        ("3,5", "auto", ("3", "5")),
        ("GPU-a, GPU-b", "auto", ("GPU-a", "GPU-b")),
        ("3,-1,5", "auto", ("3",)),
        ("3,5", 1, ("3",)),
        ("3,5", 0, ()),
        (None, 4, ("0", "1", "2", "3")),
        ("3,5", ("7",), ("7",)),
    ],
)
def test_gpus_are_those_that_cuda_would_show(visible: str | None, gpus: Any, found: Any, tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia7", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    machine = this_machine(ExecutorConfig(gpus=gpus), environment=environment, devices=tmp_path)
    assert machine.gpus == found
    assert set(machine.cores) == os.sched_getaffinity(0)


def test_more_gpus_than_are_visible_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"executor\.gpus: is 3, and CUDA_VISIBLE_DEVICES shows 2"):
        this_machine(ExecutorConfig(gpus=3), environment={"CUDA_VISIBLE_DEVICES": "0,1"}, devices=tmp_path)


def test_one_rank_is_a_plain_process(tmp_path: Path) -> None:
    command = local_command(run_of(tmp_path, "a"), Path("c.yaml"), Slot(threads=3))
    assert command.arguments[1:] == ["-m", "megatron_kis", "train", "c.yaml"]
    assert command.environment == {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3"}
