"""What makes runs repeat their bits on CUDA; the device is made up, what is set is not."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from megatron_kis.common.errors import InputError
from megatron_kis.config.ladder import preset
from megatron_kis.distributed.determinism import set_determinism
from megatron_kis.distributed.device import Device
from megatron_kis.distributed.groups import ParallelDims
from megatron_kis.model.build import ModelSpec, transformer_config

HOST = Device("cpu", torch.device("cpu"), "gloo", "cpu")
CARD = Device("cuda", torch.device("cuda"), "nccl", "NVIDIA H100 80GB HBM3")
NAMES = ("CUBLAS_WORKSPACE_CONFIG", "NVTE_ALLOW_NONDETERMINISTIC_ALGO", "NCCL_ALGO")


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


def test_all_libraries_are_told_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_ALGO", "Tree")  # deterministic, too
    set_determinism(CARD, asked=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert [os.environ[name] for name in NAMES] == [":4096:8", "0", "Tree"]


@pytest.mark.parametrize(("device", "expected"), [(HOST, True), (CARD, False)])
def test_otherwise_the_host_repeats_its_bits_and_cuda_is_fast(device: Device, expected: bool) -> None:
    torch.use_deterministic_algorithms(not expected)
    set_determinism(device, asked=False)
    assert torch.are_deterministic_algorithms_enabled() is expected
    assert not any(name in os.environ for name in NAMES)


@pytest.mark.parametrize(
    ("name", "value"), [("NCCL_ALGO", "NVLS"), ("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "1"), (NAMES[0], ":0:0")]
)
def test_an_environment_that_asks_for_something_else_is_refused(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=rf"training\.deterministic: is true, and {name} is {value}"):
        set_determinism(CARD, asked=True)
    set_determinism(HOST, asked=True)  # which reads none of them


@pytest.mark.parametrize(("device", "expected"), [(HOST, False), (CARD, True)])
def test_megatron_core_chooses_deterministic_code_on_cuda(device: Device, expected: bool) -> None:
    alone = ParallelDims(1, 0, 1, 0, 1, 0, 1, 0)
    config = transformer_config(ModelSpec(preset("70m"), 512, 64, alone, device, "bf16", deterministic=True))
    assert config.deterministic_mode is expected
