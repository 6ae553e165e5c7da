"""A run's sequences in the form in which Megatron-LM's loaders and ``get_batch`` take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from megatron_kis.data.dataset import InfusedDataset, Sample
from megatron_kis.data.general_text import ValidationText

SEQUENCE = "sequence"
"""Next to Megatron-LM's tensors of a sample: int64 [], the number of the sequence in the plan, -1 of padding."""


class TrainingSamples(Dataset[Sample]):
    """The training sequences of a plan, each with its number."""

    def __init__(self, dataset: InfusedDataset, *, attention_mask: bool) -> None:
        """Takes the sequences.

        Args:
            dataset: the sequences.
            attention_mask: whether a sample has a mask (``--create-attention-mask-in-dataloader``); a causal one where
                the dataset keeps no documents apart.
        """
        self._dataset = dataset
        length = dataset.plan.sequence_length
        self._causal = torch.ones(1, length, length).triu(1).bool() if attention_mask else None

    def __len__(self) -> int:
        """Returns the number of sequences of the run and one more, which is padding.

        Megatron-LM's samplers refuse to begin at the end, as a run does that resumes from its last checkpoint.
        """
        return len(self._dataset) + 1

    def __getitem__(self, sequence: int | None) -> Sample:
        """Returns the tensors of a sequence; of None padding, in which no label counts."""
        return self.__getitems__((sequence,))[0]

    def __getitems__(self, sequences: Sequence[int | None]) -> list[Sample]:
        """Returns the tensors of a batch."""
        numbers = [None if number == len(self._dataset) else number for number in sequences]
        samples = self._dataset.__getitems__(numbers)
        for number, sample in zip(numbers, samples, strict=True):
            if self._causal is not None:
                sample.setdefault("attention_mask", self._causal)
            sample[SEQUENCE] = torch.tensor(-1 if number is None else number)
        return samples


class ValidationSamples(Dataset[Sample]):
    """The validation text of a run, again from its beginning as often as Megatron-LM's evaluations need it."""

    def __init__(self, text: ValidationText, *, samples: int, attention_mask: bool) -> None:
        """Takes the text.

        Args:
            text: held-out general text.
            samples: number of samples of all evaluations.
            attention_mask: as ``TrainingSamples``.
        """
        from megatron.core.datasets.utils import Split

        self._text, self._samples = text, samples
        length = text.sequence_length
        self._constant: dict[str, Any] = {"loss_mask": torch.ones(length), "position_ids": torch.arange(length)}
        if attention_mask:
            self._constant["attention_mask"] = torch.ones(1, length, length).triu(1).bool()
        self.index_split = Split.valid
        """By this name Megatron-LM's loader finds the batch size."""

    def __len__(self) -> int:
        """Returns the number of samples of all evaluations."""
        return self._samples

    def __getitem__(self, number: int | None) -> Sample:
        """Returns the tensors of a sample; of None padding, in which no label counts."""
        window = torch.from_numpy(self._text[(number or 0) % len(self._text)].astype("int64"))
        sample = {"tokens": window[:-1], "labels": window[1:], **self._constant}
        return sample if number is not None else {**sample, "loss_mask": torch.zeros(len(window) - 1)}


def needs_data() -> bool:
    """Returns whether this rank's stage reads batches, as Megatron-LM's own providers decide."""
    from megatron.core import parallel_state

    if parallel_state.get_tensor_model_parallel_rank() != 0:
        return False
    last = parallel_state.get_pipeline_model_parallel_world_size() - 1
    return parallel_state.get_pipeline_model_parallel_rank() in (0, last)
