"""In which order a stage passes its chunks forward and backward, as Megatron-Core's schedules do."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_kis.planning.split import Split


def passes(split: Split, stage: int, micro_batches: int) -> Iterator[tuple[bool, int]]:
    """Passes of a stage in their order: whether forward, and which of its chunks.

    One forward, one backward (Narayanan et al. 2021, section 2.2), after as many forward passes as it takes to keep
    the later stages busy; with several chunks, as many micro-batches as there are stages take turns on each.

    Args:
        split: the layout.
        stage: which.
        micro_batches: of a step.
    """
    stages, chunks = split.pipeline, split.virtual
    order = [
        chunk
        for start in range(0, micro_batches, stages)
        for chunk in range(chunks)
        for _ in range(start, min(start + stages, micro_batches))
    ]
    ahead = stages - stage - 1
    if chunks > 1:
        ahead = 2 * ahead + (chunks - 1) * stages
    ahead = min(ahead, len(order))
    for number in range(len(order) + ahead):
        if number < len(order):
            yield True, order[number]
        if number >= ahead:
            yield False, chunks - 1 - order[number - ahead]
