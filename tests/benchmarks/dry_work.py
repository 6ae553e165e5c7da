"""A measurement of ``benchmarks.gpu.work`` on the dry device: ``torch.cuda`` answers with the bytes counted there."""

from __future__ import annotations

from typing import Any

from tests.dry_device import cuda, kernels, world
from tests.dry_device.counts import Counts, read_from_the_host

import torch  # isort: skip

TOTAL = 85_000_000_000


def answer_memory(counts: Counts) -> None:
    """Lets ``torch.cuda`` say what is alive, and the most since it was asked to begin again."""

    def begin_again() -> None:
        counts.peaks.clear()
        counts.begin("benchmark")

    answers: dict[str, Any] = {
        "memory_allocated": lambda *_: counts.alive,
        "max_memory_allocated": lambda *_: max(peak for peak, _ in counts.peaks.values()),
        "reset_peak_memory_stats": begin_again,
        "memory_reserved": lambda *_: counts.alive,
        "max_memory_reserved": lambda *_: counts.alive,
        "mem_get_info": lambda *_: (TOTAL - counts.alive, TOTAL),
    }
    for name, function in answers.items():
        setattr(torch.cuda, name, function)


def measured(name: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """All results, in a process of their own."""
    counts = Counts()
    world.open_world(0, 1, counts.say)
    mode = cuda.install(counts.sync)
    kernels.install()
    read_from_the_host(counts)
    answer_memory(counts)
    from benchmarks.gpu.work import results

    with mode, counts:
        return list(results(name, settings))
