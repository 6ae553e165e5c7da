"""A torch dataset over a plan: sequence numbers to the tensors that Megatron-Core's models take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from megatron_kis.common.errors import InputError
from megatron_kis.data.exposure_plan import SequenceLayout
from megatron_kis.data.exposure_store import ExposureStore
from megatron_kis.data.extension import Plan

Sample = dict[str, torch.Tensor]
"""One training sequence under the names and in the shapes of Megatron-Core's ``GPTDataset``:

``tokens`` int64 [L]; ``labels`` int64 [L], the token that follows each; ``loss_mask`` float32 [L], 0 where no label
counts; ``position_ids`` int64 [L]; and, if documents are kept apart, ``attention_mask`` bool [1, L, L], True where
masked.
"""


class TextSource(Protocol):
    """Where general text comes from: ``GeneralText``, ``MegatronText``, or any other by sequence number."""

    def read(self, sequence: int, tokens: int) -> NDArray[np.integer]:
        """Returns the first ``tokens`` tokens (at most L + 1) of the window of ``sequence``."""
        ...


class MegatronText:
    """A Megatron-Core dataset (``GPTDataset``, ``BlendedDataset``) as the source of general text."""

    def __init__(self, dataset: Dataset[Sample], *, sequence_length: int, sequences: int) -> None:
        """Takes ``sequences`` samples of ``sequence_length`` tokens from a dataset, in its order.

        Raises:
            InputError: the dataset has fewer samples, or samples of another length.
        """
        available = len(dataset)  # type: ignore[arg-type]  # torch's Dataset declares no length, Megatron's have one
        if available < sequences:
            raise InputError(
                f"the dataset has {available} samples, the plan {sequences} sequences",
                where="text",
                remedy="build it with at least that many samples",
            )
        length = len(dataset[0]["tokens"])
        if length != sequence_length:
            raise InputError(
                f"the dataset's samples have {length} tokens, the plan's sequences {sequence_length}",
                where="text",
                remedy="build both with the same sequence length",
            )
        self._dataset = dataset

    def read(self, sequence: int, tokens: int) -> NDArray[np.integer]:
        """Returns the first ``tokens`` tokens (at most L + 1) of a sample: its tokens, and the label of the last."""
        sample = self._dataset[sequence]
        window = np.append(sample["tokens"].numpy(), sample["labels"][-1].numpy())
        return window[:tokens]


class InfusedDataset(Dataset[Sample]):
    """The training sequences of a plan."""

    def __init__(
        self,
        plan: Plan,
        text: TextSource,
        store: ExposureStore,
        *,
        reset_attention: bool = False,
        eod_begins: bool = False,
        reset_positions: bool = False,
        mask_boundaries: bool = False,
    ) -> None:
        """Joins a plan, its general text and its exposures.

        Args:
            plan: which exposures are in which sequence, and where.
            text: general text by sequence number.
            store: tokens of the exposures.
            reset_attention: whether to add an ``attention_mask`` under which no token sees another document.
            eod_begins: whether an end-of-document token is the first of the next document, and not the last of the one
                that it ends (as in Megatron-Core's ``GPTDataset``).
            reset_positions: whether ``position_ids`` start again with each document (they do not matter to a model with
                rotary embeddings, which knows distances only).
            mask_boundaries: whether no loss counts where the first token of a document would be predicted from the one
                before.
        """
        self.plan = plan
        self._text = text
        self._store = store
        self._reset_attention = reset_attention
        self._eod_begins = eod_begins
        self._reset_positions = reset_positions
        self._mask_boundaries = mask_boundaries
        self._positions = torch.arange(plan.sequence_length)
        self._every_label = torch.ones(plan.sequence_length)

    def __len__(self) -> int:
        """Returns the number of sequences of the run."""
        return len(self.plan)

    def __getitem__(self, sequence: int) -> Sample:
        """Returns the tensors of a sequence."""
        row, unpredicted = self.assemble(sequence, self.plan[sequence])
        window = torch.from_numpy(row)
        mask = self._every_label.clone()  # trainers mask more of it in place
        for place in unpredicted:
            mask[place] = 0.0
        sample = {
            "tokens": window[:-1],
            "labels": window[1:],
            "loss_mask": mask,
            "position_ids": self._positions,
        }
        if self._mask_boundaries or self._reset_attention or self._reset_positions:
            self._keep_documents_apart(sample)
        return sample

    def __getitems__(self, sequences: Sequence[int]) -> list[Sample]:
        """Returns the tensors of several sequences, as PyTorch's loaders request a batch: their layouts in one pass."""
        self.plan.prefetch(sequences)
        return [self[sequence] for sequence in sequences]

    def assemble(self, sequence: int, layout: SequenceLayout) -> tuple[NDArray[np.int64], tuple[int, ...]]:
        """Lays out a sequence's tokens.

        Returns:
            int64 [L + 1]: the sequence and the token that follows it; and the places of tokens whose labels are not
            real and should count in no loss. If an exposure ends the sequence these are the last token, as what would
            follow is unknown, and the one before the cut of the text: the end-of-document token there marks the cut and
            not the end of a document.
        """
        length = self.plan.sequence_length
        eod = self._store.eod_id
        row = np.empty(length + 1, dtype=np.int64)
        first = layout.general_offset
        tokens = layout.general_tokens
        end = first + tokens
        unpredicted: tuple[int, ...] = (length - 1,)
        if end == length and tokens:
            row[first:] = self._text.read(sequence, tokens + 1)
            unpredicted = ()
        else:
            row[length] = eod
        if tokens and unpredicted:
            row[first : end - 1] = self._text.read(sequence, tokens - 1)
            row[end - 1] = eod
            if end > 1:
                unpredicted = (end - 2, length - 1)
        for exposure in layout.exposures:
            offset = exposure.offset
            row[offset : offset + exposure.length] = self._store.tokens(*exposure[:3])
        return row, unpredicted

    def _keep_documents_apart(self, sample: Sample) -> None:
        """Adds to a sample what was requested: as ``megatron.core.datasets.gpt_dataset``, but for ``eod_begins``."""
        ends = sample["tokens"] == self._store.eod_id
        if self._mask_boundaries:
            sample["loss_mask"] = sample["loss_mask"].masked_fill(ends, 0.0)
        document = ends.cumsum(0)
        if not self._eod_begins:
            document = document - ends.long()
        if self._reset_positions:
            begins = torch.where(document.diff(prepend=document[:1] - 1) > 0, self._positions, 0).cummax(0).values
            sample["position_ids"] = self._positions - begins
        if self._reset_attention:
            seen = (document[:, None] == document[None, :]).tril()
            sample["attention_mask"] = ~seen.unsqueeze(0)
