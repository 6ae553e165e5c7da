"""A torch dataset over a plan: sequence numbers to the tensors that Megatron-Core's models take."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from megatron_kis.common.errors import InputError
from megatron_kis.data.exposure_plan import SequenceLayout
from megatron_kis.data.exposure_store import ExposureStore
from megatron_kis.data.extension import Plan
from megatron_kis.data_tools.storage.ranges import ranges, starts_of

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

    def __init__(self, dataset: Dataset[Sample] | None, *, sequence_length: int, sequences: int) -> None:
        """Takes ``sequences`` samples of ``sequence_length`` tokens from a dataset, in its order.

        Args:
            dataset: the dataset; None on a rank that needs no data, where Megatron's builder makes none.
            sequence_length: L, tokens of a sequence.
            sequences: number of sequences of the plan.

        Raises:
            InputError: the dataset has fewer samples, or samples of another length.
        """
        self._dataset = dataset
        if dataset is None:
            return
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

    def read(self, sequence: int, tokens: int) -> NDArray[np.integer]:
        """Returns the first ``tokens`` tokens (at most L + 1) of a sample: its tokens, and the label of the last.

        Raises:
            InputError: there is no dataset on this rank.
        """
        if self._dataset is None:
            remedy = "read sequences only where Megatron's builder makes a dataset"
            raise InputError("this rank has no dataset", where="text", remedy=remedy)
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

    def __len__(self) -> int:
        """Returns the number of sequences of the run."""
        return len(self.plan)

    def __getitem__(self, sequence: int | None) -> Sample:
        """Returns the tensors of a sequence; of None padding, in which no label counts."""
        return self.__getitems__((sequence,))[0]

    def __getitems__(self, sequences: Sequence[int | None]) -> list[Sample]:
        """Returns the tensors of several sequences, as PyTorch's loaders request a batch: their layouts in one pass.

        Megatron-LM's samplers fill a batch up with None. It stands for the first sequence without a loss, as in
        Megatron-Core's ``GPTDataset``: it is no exposure, and a ledger must not be shown it.
        """
        numbers = [0 if sequence is None else index(sequence) for sequence in sequences]  # samplers give any integers
        self.plan.prefetch(numbers)
        samples = self.read(numbers, [self.plan[number] for number in numbers])
        for sequence, sample in zip(sequences, samples, strict=True):
            if sequence is None:
                sample["loss_mask"].zero_()
        return samples

    def read(self, sequences: Sequence[int], layouts: Sequence[SequenceLayout]) -> list[Sample]:
        """Returns the tensors of several sequences, made in one pass: each sample is a row of shared memory.

        Args:
            sequences: numbers of the sequences.
            layouts: their layouts by the plan.
        """
        length = self.plan.sequence_length
        rows = np.empty((len(sequences), length + 1), dtype=np.int64)
        counted = np.ones((len(sequences), length), dtype=np.float32)
        for number, (sequence, layout) in enumerate(zip(sequences, layouts, strict=True)):
            for place in self._lay_text(rows[number], sequence, layout):
                counted[number, place] = 0.0
        self._lay_exposures(rows, layouts)
        windows = torch.from_numpy(rows)
        batch = {
            "tokens": windows[:, :-1],
            "labels": windows[:, 1:],
            "loss_mask": torch.from_numpy(counted),
            "position_ids": self._positions.expand(len(sequences), -1),
        }
        if self._mask_boundaries or self._reset_attention or self._reset_positions:
            self._keep_documents_apart(batch)
        columns = {name: column.unbind() for name, column in batch.items()}
        return [{name: column[number] for name, column in columns.items()} for number in range(len(sequences))]

    def assemble(self, sequence: int, layout: SequenceLayout) -> tuple[NDArray[np.int64], tuple[int, ...]]:
        """Lays out a sequence's tokens.

        Returns:
            int64 [L + 1]: the sequence and the token that follows it; and the places of tokens whose labels are not
            real and should count in no loss. If an exposure ends the sequence these are the last token, as what would
            follow is unknown, and the one before the cut of the text: the end-of-document token there marks the cut and
            not the end of a document.
        """
        row = np.empty(self.plan.sequence_length + 1, dtype=np.int64)
        unpredicted = self._lay_text(row, sequence, layout)
        self._lay_exposures(row[None], (layout,))
        return row, unpredicted

    def _lay_text(self, row: NDArray[np.int64], sequence: int, layout: SequenceLayout) -> tuple[int, ...]:
        """Writes all but the exposures into a row, int64 [L + 1]; returns the places that ``assemble`` returns."""
        length = self.plan.sequence_length
        eod = self._store.eod_id
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
        return unpredicted

    def _lay_exposures(self, rows: NDArray[np.int64], layouts: Sequence[SequenceLayout]) -> None:
        """Writes the exposures of some sequences into their rows, int64 [sequences, L + 1]."""
        exposures = [exposure for layout in layouts for exposure in layout.exposures]
        if exposures:
            owner = np.repeat(np.arange(len(rows)), [len(layout.exposures) for layout in layouts])
            firsts = owner * rows.shape[1] + [one.offset for one in exposures]
            starts = starts_of([one.length for one in exposures])
            rows.reshape(-1)[ranges(firsts, starts)] = self._store.joined([one[:3] for one in exposures])

    def _keep_documents_apart(self, batch: Sample) -> None:
        """Adds to a batch what was requested: as ``megatron.core.datasets.gpt_dataset``, but for ``eod_begins``."""
        ends = batch["tokens"] == self._store.eod_id
        if self._mask_boundaries:
            batch["loss_mask"].masked_fill_(ends, 0.0)
        document = ends.cumsum(1)
        if not self._eod_begins:
            document = document - ends.long()
        if self._reset_positions:
            begins = torch.where(document.diff(prepend=document[:, :1] - 1) > 0, self._positions, 0).cummax(1).values
            batch["position_ids"] = self._positions - begins
        if self._reset_attention:
            seen = (document[:, :, None] == document[:, None, :]).tril()
            batch["attention_mask"] = seen.logical_not_().unsqueeze(1)
