"""The exposures that a run was fed, counted on each rank for its own sequences and summed over the replicas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from megatron_kis.common.files import write_json
from megatron_kis.data.dataset import Sample
from megatron_kis.data.exposure_plan import SequenceLayout
from megatron_kis.data.ledger import Ledger
from megatron_kis.distributed.collectives import sum_over_data
from megatron_kis.distributed.groups import ParallelDims
from megatron_kis.distributed.megatron_imports import quiet_megatron
from megatron_kis.training.faults import exposures_in
from megatron_kis.training.inputs import FactInputs

with quiet_megatron():
    from megatron.core.dist_checkpointing.mapping import ShardedTensor


class ReplicatedLedger:
    """This rank's ledger. Sums over the data-parallel replicas are collective: every rank calls those methods."""

    def __init__(self, inputs: FactInputs, layout: ParallelDims, device: torch.device) -> None:
        """Begins with no exposures counted."""
        self._ledger = Ledger(inputs.store)
        self._plan = inputs.plan
        self._store = inputs.store
        self._layout = layout
        self._device = device

    def observe(self, samples: Sequence[Sample], layouts: Sequence[SequenceLayout]) -> None:
        """Counts the exposures of this rank's sequences of a step, which have these layouts by the plan."""
        self._ledger.observe_many([sample["tokens"].numpy() for sample in samples], layouts)

    def infusion_ratio(self) -> float:
        """Returns the infused share of the tokens that all replicas have seen so far; collective."""
        counts = torch.tensor([self._ledger.infused_tokens, self._ledger.tokens], dtype=torch.int64)
        infused, tokens = sum_over_data(counts.to(self._device)).tolist()
        return float(infused / tokens) if tokens else 0.0

    def sums(self) -> torch.Tensor:
        """Returns the counts of all replicas (``Ledger.as_tensor``); collective."""
        return sum_over_data(self._ledger.as_tensor().to(self._device))

    def sharded_state(self) -> ShardedTensor:
        """Returns the counts of all replicas, in the form that ``shards`` saves; collective."""
        return self._sharded(self.sums())

    def empty_state(self) -> ShardedTensor:
        """Returns zeros of the form of ``sharded_state``, which ``shards`` loads into."""
        return self._sharded(torch.zeros_like(self._ledger.as_tensor()))

    def _sharded(self, counts: torch.Tensor) -> ShardedTensor:
        return ShardedTensor.from_rank_offsets("ledger", counts, replica_id=self._layout.rank)

    def load_state(self, counts: torch.Tensor) -> None:
        """Restores the counts of ``sharded_state``; on the first replica alone, since they are summed again."""
        if self._layout.data_rank == 0:
            self._ledger.load_tensor(counts)

    def merge(self) -> None:
        """Gives every rank the counts of all replicas; collective. Nothing can be summed afterwards."""
        self._ledger.load_tensor(self.sums())

    def write(self, path: Path) -> None:
        """Writes ``exposures.json``, after ``merge``."""
        write_json(path, self._ledger.as_json(self._plan))

    def differences(self, skipped: Iterable[SequenceLayout]) -> list[str]:
        """Lists the facts that did not get their exposures, after ``merge``.

        Args:
            skipped: layouts of sequences whose steps were skipped: their exposures are known to be missing.
        """
        missing = exposures_in(skipped)
        if not missing:
            return self._ledger.differences(self._plan)
        lines = []
        for group, received in self._ledger.received.items():
            due = self._plan.expected(group).copy()
            for fact, count in missing.get(group, {}).items():
                due[fact] -= count
            lines += [
                f"{group} fact {self._store.ids(group)[fact]}: {received[fact]} exposures received,"
                f" {due[fact]} planned and trained"
                for fact in np.flatnonzero(due != received)
            ]
        return lines
