"""Fixtures that several parts share: prepared data, and runs small enough to train in a test."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.common.configuration import parse_config
from megatron_kis.common.log import show_messages
from megatron_kis.config.run import RunConfig
from megatron_kis.data_tools.preparation.prepare import DataPrepConfig, prepare_data
from megatron_kis.data_tools.selection.select import SelectConfig
from tests.dry_device.cases import ask_dry_device, run_case  # noqa: F401  fixtures
from tests.sources import Sources, write_sources

show_messages()
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small only lose time to threads
# Hundreds of processes import the package: without its bytecode each would compile it again, and each worker the tests.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

TINY_VOCABULARY = 400
TINY_SELECTION = {"infused": 16, "background": 16, "control": 16}


@pytest.fixture(scope="session")
def tiny_sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Text, triples and templates. Shared: read them, do not write beside them."""
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory, tiny_sources: Sources) -> Path:
    """Everything a run reads, 16 facts a group, as ``prepare_data`` makes it. Shared: copy it to damage it."""
    folder = tmp_path_factory.mktemp("data")
    settings = DataPrepConfig(
        text=(tiny_sources.text,),
        facts=tiny_sources.triples,
        templates=tiny_sources.templates,
        vocab_size=TINY_VOCABULARY,
        select=SelectConfig(**TINY_SELECTION),
        validation_share=0.05,
    )
    prepare_data(settings, folder)
    return folder


@pytest.fixture
def tiny_run(tiny_data: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """Makes the configuration of a run of 20 steps of 8 x 64 tokens, one to four seconds long.

    Keywords are sections or keys to change; sections are merged: ``tiny_run(infusion={"frequency": 4})``.
    """

    def make(**overrides: Any) -> RunConfig:
        name = overrides.get("name", "tiny")
        content: dict[str, Any] = {
            "name": name,
            "output": tmp_path / "runs" / name,
            "device": "cpu",
            "data": {
                "corpus": tiny_data / "corpus",
                "validation": tiny_data / "corpus.validation",
                "exposures": tiny_data / "exposures",
                "tokenizer": tiny_data / "tokenizer.model",
            },
            "model": {"layers": 2, "width": 16, "heads": 2},
            "training": {"token_budget": 20 * 8 * 64, "sequence_length": 64, "global_batch_size": 8},
            "infusion": {"frequency": 8, "background": {"frequency": 6}},
            "probes": {"moments": {"shares": [1.0]}, "templates": {"train": 2, "held_out": 1, "question": 1}},
            "validation": {"moments": {"shares": [0.5, 1.0]}},
            "logging": {"every": 5},
        }
        return parse_config(RunConfig, _merged(content, overrides), source="tiny_run")

    return make


def _merged(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(content)
    for key, value in changes.items():
        section = merged.get(key)
        both = isinstance(section, dict) and isinstance(value, dict) and "preset" not in value and key != "templates"
        merged[key] = _merged(section, value) if both else value
    return merged
