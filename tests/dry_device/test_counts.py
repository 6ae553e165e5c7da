"""The counts themselves, on a model small enough to count by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.dry_device import shim
from tests.dry_device.cases import missing, need


@pytest.fixture(scope="module")
def found(ask_dry_device: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    need(missing())
    return ask_dry_device("tests.dry_device.by_hand:counted")


def test_bytes_alive_and_their_peak(found: dict[str, Any]) -> None:
    layer, inputs, outputs = 2 * 256 * 512, 2 * 128 * 256, 2 * 128 * 512
    assert found["layer and inputs"] == layer + inputs
    assert found["with outputs"] == layer + inputs + outputs
    # in the backward pass the sum, its gradient (512 bytes each), and the gradient of the weight
    assert layer + inputs + outputs + layer <= found["peak"] <= layer + inputs + outputs + layer + 4 * 512
    assert found["in the end"] == layer + inputs
    assert found["after all"] == 0


def test_flops(found: dict[str, Any]) -> None:
    product = 2 * 128 * 256 * 512
    assert found["flops"] == {"matmul.forward": product, "matmul.backward": product}  # the inputs want no gradient
    causal = 2 * 2 * (2 * 4 * 64 * 64 * 32) // 2
    assert found["attention"] == {"attention.forward": causal, "attention.backward": 2 * causal}
    assert found["kernel"] == ["cudnn q=(2, 4, 64, 32) k=(2, 4, 64, 32) torch.bfloat16 mask=False causal=True"]


def test_the_host_knows_its_own_numbers_and_waits_for_the_device(found: dict[str, Any]) -> None:
    assert found["known"] == [3, [3, 4, 5], True]
    assert found["syncs of the host alone"] == 0
    assert [what.split(" @ ")[0] for what in found["syncs"]] == ["item", "copy to the host"]
    assert found["copied"] == 2 * 128 * 256


def test_messages_have_their_group_and_size(found: dict[str, Any]) -> None:
    same = {"group": "tp", "ranks": [1, 3], "bytes": 2 * 128 * 256, "dtype": "torch.bfloat16", "part": "passes"}
    assert found["messages"] == [{"operator": "allreduce", **same}, {"operator": "send", **same, "peer": 3}]


def test_a_host_tensor_does_not_meet_one_of_the_device(found: dict[str, Any]) -> None:
    assert "cpu" in found["mixed"]
    assert "cuda" in found["mixed"]


def test_every_installed_pytorch_has_a_device_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It loads that PyTorch's libraries by their place: one environment may be removed while another stays."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shim, "_compile", lambda module, torch: module.write_text(str(torch)))
    found = []
    for name in ("one", "two"):
        place = SimpleNamespace(origin=str(tmp_path / name / "torch" / "__init__.py"))
        monkeypatch.setattr(shim.importlib.util, "find_spec", lambda _, place=place: place)
        found.append(shim.compiled().read_text())
    assert found == [str(tmp_path / name / "torch") for name in ("one", "two")]
