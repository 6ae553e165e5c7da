"""A torch dataset over a plan: sequence numbers to the tensors that Megatron-Core's models take."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from megatron_kis.data.plan import ExposurePlan, SequenceLayout
from megatron_kis.data.store import ExposureStore


class TextSource(Protocol):
    """Where general text comes from: ``GeneralText``, or any other source with stretches by sequence number."""

    def stretch(self, sequence: int, tokens: int) -> NDArray[np.integer]:
        """The first ``tokens`` tokens of the stretch of ``sequence``."""
        ...


class Sample(NamedTuple):
    """One training sequence, with Megatron's names and shapes."""

    tokens: torch.Tensor
    """int64 [L]."""

    labels: torch.Tensor
    """int64 [L], the token that follows each."""

    loss_mask: torch.Tensor
    """float32 [L]; 0 where no token follows within the plan (the last one, if an exposure ends the sequence)."""

    position_ids: torch.Tensor
    """int64 [L]."""


class InfusedDataset(Dataset[Sample]):
    """The training sequences of a plan."""

    def __init__(self, plan: ExposurePlan, text: TextSource, store: ExposureStore) -> None:
        """Joins a plan, its general text and its exposures."""
        self.plan, self._text, self._store = plan, text, store
        self._positions = torch.arange(plan.sequence_length)

    def __len__(self) -> int:
        """Sequences of the run."""
        return len(self.plan)

    def __getitem__(self, sequence: int) -> Sample:
        """The tensors of a sequence."""
        length = self.plan.sequence_length
        row, follows = self.assemble(sequence, self.plan[sequence])
        window = torch.from_numpy(row)
        mask = torch.ones(length, dtype=torch.float32)
        if not follows:
            mask[-1] = 0.0
        return Sample(window[:-1], window[1:], mask, self._positions)

    def assemble(self, sequence: int, layout: SequenceLayout) -> tuple[NDArray[np.int64], bool]:
        """Lays out a sequence's tokens.

        Returns:
            int64 [L + 1]: the sequence and the token that follows it; and whether that one is real, which it is if
            general text ends the sequence (otherwise it is an end-of-document token that no loss should count).
        """
        length = self.plan.sequence_length
        row = np.full(length + 1, self._store.eod_id, dtype=np.int64)
        ends_in_text = layout.general_tokens > 0 and layout.general_offset + layout.general_tokens == length
        if layout.general_tokens:
            count = layout.general_tokens + ends_in_text
            row[layout.general_offset : layout.general_offset + count] = self._text.stretch(sequence, count)
        for exposure in layout.exposures:
            tokens = self._store.tokens(exposure.group, exposure.fact, exposure.template)
            row[exposure.offset : exposure.offset + exposure.length] = tokens
        return row, ends_in_text
