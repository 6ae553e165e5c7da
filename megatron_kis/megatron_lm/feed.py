"""What a loop was really fed: the sequences that it took from its loader since the last step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from megatron_kis.common.errors import JobError
from megatron_kis.data.dataset import Sample
from megatron_kis.megatron_lm.samples import SEQUENCE


class Feed:
    """Batches on their way from Megatron-LM's loader to its loop, in the loop's process and not the loader's workers.

    It is inside Megatron-LM's ``RerunDataIterator``: what that gives again, when it computes a step twice, passes once.
    """

    def __init__(self) -> None:
        """Starts with nothing taken."""
        self._samples: dict[int, Sample] = {}

    def put_into(self, iterators: Any, *, chunk: int = 0) -> None:
        """Observes what a rank's iterator gives from now on.

        Args:
            iterators: a ``RerunDataIterator``, or one for each chunk of layers; None on ranks that need no data.
            chunk: the chunk that is observed: one that reads every batch.
        """
        one = iterators[chunk] if isinstance(iterators, list) else iterators
        if one is not None:
            one.iterable = self._observed(one.iterable)

    def _observed(self, batches: Iterator[dict[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
        for batch in batches:
            numbers = batch.pop(SEQUENCE).tolist()  # what cuts a batch for context parallelism would not know it
            rows = batch["tokens"].unbind()
            self._samples.update({number: {"tokens": row} for number, row in zip(numbers, rows, strict=True)})
            yield batch

    def take(self, step: range) -> tuple[list[int], list[Sample]]:
        """Returns the sequences that were taken since the last call, and their samples; padding is left out.

        Args:
            step: the sequences of the step.

        Raises:
            JobError: there is another among them.
        """
        samples, self._samples = self._samples, {}
        samples.pop(-1, None)
        for number in samples:
            if number not in step:
                raise JobError(
                    f"Megatron-LM's loader gave sequence {number} to the step of the sequences {step[0]} to {step[-1]};"
                    " sequences are to be read in order (--dataloader-type single)"
                )
        return list(samples), list(samples.values())
