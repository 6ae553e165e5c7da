"""A small study's data, made in seconds and without a network, for benchmarks that train real runs."""

from __future__ import annotations

from pathlib import Path

from megatron_kis.data_tools.preparation.prepare import DataPrepConfig, prepare_data
from megatron_kis.data_tools.selection.select import SelectConfig
from tests.sources import write_sources


def make_data(folder: Path, *, facts: int = 16) -> Path:
    """Text and facts of ``tests/sources.py``, prepared in ``folder / "data"``, which is returned.

    Args:
        folder: where to write; ``sources`` and ``data`` are made in it.
        facts: of each group: infused, background, control.
    """
    sources = write_sources(folder / "sources", facts_a_relation=3 * facts // 2)
    settings = DataPrepConfig(
        text=(sources.text,),
        facts=sources.triples,
        templates=sources.templates,
        vocab_size=400,
        select=SelectConfig(infused=facts, background=facts, control=facts),
        validation_share=0.05,
    )
    prepare_data(settings, folder / "data")
    return folder / "data"
