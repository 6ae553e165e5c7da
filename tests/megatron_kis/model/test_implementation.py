"""Which layers ``model.transformer_impl`` means; Transformer Engine and the CUDA device are made up."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from megatron_kis.device import Device
from megatron_kis.errors import InputError
from megatron_kis.model.build import resolve_implementation

HOST = Device("cpu", torch.device("cpu"), "gloo", "cpu")
CARD = Device("cuda", torch.device("cuda"), "nccl", "NVIDIA H100 80GB HBM3")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("transformer_engine", "transformer_engine.pytorch"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package without its libraries."""
    monkeypatch.setitem(sys.modules, "transformer_engine", types.ModuleType("transformer_engine"))
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", None)


@pytest.mark.usefixtures("installed")
def test_auto_takes_transformer_engine_where_it_can_be() -> None:
    assert resolve_implementation("auto", CARD) == "transformer_engine"
    assert resolve_implementation("auto", HOST) == "sdpa"
    assert resolve_implementation("auto", CARD, own_mask=True) == "sdpa"
    assert resolve_implementation("auto", CARD, precision="fp8") == "transformer_engine"
    with pytest.raises(InputError, match="documents would see each other"):
        resolve_implementation("transformer_engine", CARD, own_mask=True)


@pytest.mark.usefixtures("broken")
def test_a_transformer_engine_without_its_libraries_is_not_taken() -> None:
    assert resolve_implementation("auto", CARD) == "sdpa"
    with pytest.raises(InputError, match=r"asked for, and it cannot be imported \(.*transformer_engine\.pytorch"):
        resolve_implementation("transformer_engine", CARD)
    with pytest.raises(InputError, match="FP8 needs Transformer Engine"):
        resolve_implementation("auto", CARD, precision="fp8")


@pytest.mark.parametrize("asked", ["sdpa", "local"])
def test_what_is_asked_for_by_name_is_taken(asked: str) -> None:
    assert [resolve_implementation(asked, device) for device in (HOST, CARD)] == [asked, asked]
