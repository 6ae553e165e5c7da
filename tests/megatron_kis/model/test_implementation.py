"""Which layers ``model.transformer_impl`` means; Transformer Engine, the CUDA device and the compiler are made up."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from megatron_kis.common.errors import InputError
from megatron_kis.config.ladder import preset
from megatron_kis.distributed.device import Device
from megatron_kis.distributed.groups import ParallelDims
from megatron_kis.distributed.megatron_imports import quiet_megatron
from megatron_kis.model import support
from megatron_kis.model.build import ModelSpec, resolve_implementation, transformer_config

with quiet_megatron():
    from megatron.core.models.gpt import gpt_layer_specs

HOST = Device("cpu", torch.device("cpu"), "gloo", "cpu")
CARD = Device("cuda", torch.device("cuda"), "nccl", "NVIDIA H100 80GB HBM3")
Installed = Callable[..., None]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    """Says which Transformer Engine is installed, and whether Megatron-Core could import it."""
    real = importlib.metadata.version

    def say(found: str, *, core: str = "0.16.1", usable: bool = True) -> None:
        versions = {"transformer_engine": found, "megatron-core": core}
        monkeypatch.setattr(importlib.metadata, "version", lambda name: versions.get(name) or real(name))
        monkeypatch.setattr(gpt_layer_specs, "HAVE_TE", usable)

    support._warn.cache_clear()
    yield say
    support._warn.cache_clear()


def test_auto_takes_transformer_engine_where_it_can_be(
    installed: Installed, capsys: pytest.CaptureFixture[str]
) -> None:
    installed("2.11.0")
    assert resolve_implementation("auto", CARD) == "transformer_engine"
    assert resolve_implementation("auto", HOST) == "sdpa"
    assert resolve_implementation("auto", CARD, own_mask=True) == "sdpa"
    assert resolve_implementation("auto", CARD, precision="fp32") == "sdpa"
    assert resolve_implementation("auto", CARD, precision="fp8") == "transformer_engine"
    with pytest.raises(InputError, match="documents would see each other"):
        resolve_implementation("transformer_engine", CARD, own_mask=True)
    assert capsys.readouterr().err == ""


def test_a_transformer_engine_that_megatron_core_cannot_use_is_not_taken(
    installed: Installed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The package can be imported, and what Megatron-Core imports of it cannot."""
    for name in ("transformer_engine", "transformer_engine.pytorch"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    installed("2.30.1", usable=False)
    assert resolve_implementation("auto", CARD) == "sdpa"
    assert resolve_implementation("auto", CARD) == "sdpa"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "kis: Transformer Engine's layers are not used: Megatron-Core cannot use the installed version"
    )
    assert "2.30.1" in line and "transformer-engine>=2.9,<2.12" in line
    with pytest.raises(InputError, match=r"asked for, and Megatron-Core cannot use the installed version 2\.30\.1"):
        resolve_implementation("transformer_engine", CARD)
    with pytest.raises(InputError, match=r"FP8 needs Transformer Engine.*2\.30\.1"):
        resolve_implementation("auto", CARD, precision="fp8")


def test_without_transformer_engine_its_absence_is_said_only_where_it_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert resolve_implementation("auto", CARD) == "sdpa"
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match=r"asked for, and it is not installed \(Megatron-Core .*>=2\.9"):
        resolve_implementation("transformer_engine", CARD)


@pytest.mark.parametrize(
    ("found", "core", "said"),
    [
        ("2.12.0", "0.16.1", True),
        ("2.9.0", "0.16.1", False),
        ("2.20.2+cu13", "0.19.2", False),
        ("2.8.0", "0.19.2", True),
    ],
)
def test_a_version_that_was_not_tried_is_used_and_said(
    found: str, core: str, said: bool, installed: Installed, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(found, core=core)
    assert resolve_implementation("auto", CARD) == "transformer_engine"
    line = capsys.readouterr().err
    assert (f"Transformer Engine {found} is used, but Megatron-Core {core} is known to work with" in line) is said


def test_the_installation_asks_for_the_versions_that_are_known_to_work() -> None:
    text = (Path(__file__).parents[3] / "setup.py").read_text(encoding="utf-8")
    asked = re.findall(r"transformer-engine\[\S+\]>=([\d.]+),<([\d.]+);", text)
    assert asked == list(support.TRANSFORMER_ENGINE.values())


@pytest.mark.parametrize("asked", ["sdpa", "local"])
def test_what_is_asked_for_by_name_is_taken(asked: str) -> None:
    assert [resolve_implementation(asked, device) for device in (HOST, CARD)] == [asked, asked]


@pytest.mark.parametrize("missing", ["triton", "compiler", None])
def test_without_a_compiler_nothing_is_fused_and_that_is_said_once(
    missing: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    support._warn.cache_clear()
    monkeypatch.setitem(sys.modules, "triton", None if missing == "triton" else types.ModuleType("triton"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(support.shutil, "which", lambda name: None if missing == "compiler" else f"/usr/bin/{name}")
    alone = ParallelDims(1, 0, 1, 0, 1, 0, 1, 0)
    for _ in range(2):
        config = transformer_config(ModelSpec(preset("70m"), 512, 64, alone, CARD, precision="bf16"))
    assert config.bias_activation_fusion is config.bias_dropout_fusion is (missing is None)
    assert config.use_te_activation_func is (missing is not None)  # the gate that `_layers` names
    said = capsys.readouterr().err.splitlines()
    assert len(said) == (missing is not None)
    support._warn.cache_clear()


def test_a_compiler_named_by_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", types.ModuleType("triton"))
    monkeypatch.setattr(support.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert "no C compiler" in str(support.why_no_compiler())
    monkeypatch.setenv("CC", "/opt/bin/cc")
    assert support.why_no_compiler() is None
