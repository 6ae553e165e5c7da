"""Which CUDA device a rank takes (the devices are made up), and when Megatron-Core's functions are compiled."""

from __future__ import annotations

import logging
import os

import pytest
import torch

from megatron_kis.common.errors import InputError
from megatron_kis.distributed.device import open_device
from megatron_kis.distributed.megatron_imports import quiet_megatron


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A node of four devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"device {device.index}")
    return monkeypatch


def test_a_rank_takes_the_device_of_its_number_or_the_only_one(node: pytest.MonkeyPatch) -> None:
    node.setenv("LOCAL_RANK", "3")
    assert open_device("cuda").name == "device 3"
    node.setattr(torch.cuda, "device_count", lambda: 1)  # as srun --gpus-per-task=1 has it
    assert open_device("cuda").name == "device 0"
    node.setenv("LOCAL_WORLD_SIZE", "4")  # as torchrun has it where four ranks would share the one
    with pytest.raises(InputError, match="rank 3 of this node finds 1 CUDA devices"):
        open_device("cuda")


def test_more_ranks_than_devices_are_refused(node: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="rank 4 of this node finds 4 CUDA devices; start at most 4 ranks per node"):
        open_device("cuda", local_rank=4)


@pytest.mark.parametrize(
    ("capability", "in_order", "own", "expected"),
    [((9, 0), True, None, "1"), ((9, 0), False, None, None), ((10, 0), True, None, None), ((9, 0), True, "8", "8")],
)
def test_kernels_start_in_order_where_messages_overlap_with_products(
    node: pytest.MonkeyPatch, capability: tuple[int, int], in_order: bool, own: str | None, expected: str | None
) -> None:
    name = "CUDA_DEVICE_MAX_CONNECTIONS"
    node.setenv(name, own or "")
    if own is None:
        node.delenv(name)
    seen: list[str | None] = []  # the variable counts as it is when the device is first used
    asked: list[str | None] = []  # to ask the device what it is may be the first use

    def capability_of(number: int) -> tuple[int, int]:
        asked.append(os.environ.get(name))
        return capability

    node.setattr(torch.cuda, "get_device_capability", capability_of)
    node.setattr(torch.cuda, "set_device", lambda number: seen.append(os.environ.get(name)))
    open_device("cuda", in_order=in_order)
    assert seen == [expected]
    assert asked == (["1"] if in_order and own is None else [])


def test_a_device_that_is_not_there_or_unknown_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no CUDA device is available"):
        open_device("cuda")
    with pytest.raises(InputError, match="unknown device 'gpu'"):
        open_device("gpu")


def test_what_is_decorated_to_be_compiled_is_compiled_once_at_its_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, object]]] = []

    def compiler(function, **settings):
        asked.append((function.__name__, settings))
        return lambda value: function(value) + 0.5

    monkeypatch.setattr(torch, "compile", compiler)
    with quiet_megatron():

        @torch.compile
        def doubled(value: float) -> float:
            """Twice."""
            return 2 * value

        @torch.compile(dynamic=True)
        def halved(value: float) -> float:
            return value / 2

    assert torch.compile is compiler
    assert asked == []
    assert (doubled.__name__, doubled.__doc__) == ("doubled", "Twice.")
    assert [doubled(2.0), doubled(3.0), halved(3.0)] == [4.5, 6.5, 2.0]
    assert asked == [("doubled", {}), ("halved", {"dynamic": True})]


def test_megatrons_advice_to_use_what_only_its_newer_versions_have_is_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("megatron.core.models.gpt.gpt_model")
    logger.warning("GPTModel IS DEPRECATED. GPTModel is only accepting critical bug fixes")
    logger.warning("anything else")
    assert caplog.messages == ["anything else"]
