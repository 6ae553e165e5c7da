"""The ledger: exposures counted in the sequences that were really fed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_kis.common.terms import RENDERED_GROUPS
from megatron_kis.data.exposure_plan import SequenceLayout
from megatron_kis.data.exposure_store import ExposureStore
from megatron_kis.data.extension import Plan
from megatron_kis.data_tools.storage.ranges import ranges, starts_of

LEDGER_SCHEMA = "kis.ledger/1"
GROUPS = RENDERED_GROUPS


class Ledger:
    """Counts of whole exposures by fact, and of tokens."""

    def __init__(self, store: ExposureStore) -> None:
        """Makes an empty ledger for the facts of a store."""
        self._store = store
        self.received: dict[str, NDArray[np.int64]] = {
            group: np.zeros(len(store.ids(group)), dtype=np.int64) for group in RENDERED_GROUPS
        }
        self.sequences = 0
        self.tokens = 0
        self.infused_tokens = 0

    def observe(self, tokens: NDArray[np.int64], layout: SequenceLayout) -> None:
        """Counts one sequence that was fed.

        Args:
            tokens: int64 [L], the sequence as the model got it.
            layout: the sequence's layout by the plan; an exposure counts only if its tokens are where they should be.
        """
        self.observe_many((tokens,), (layout,))

    def observe_many(self, sequences: Sequence[NDArray[np.int64]], layouts: Sequence[SequenceLayout]) -> None:
        """Counts sequences that were fed, as ``observe`` does for one.

        Args:
            sequences: int64 [L] each.
            layouts: their layouts.
        """
        self.sequences += len(sequences)
        self.tokens += sum(map(len, sequences))
        exposures = [exposure for layout in layouts for exposure in layout.exposures]
        if not exposures:
            return
        expected = self._store.joined([exposure[:3] for exposure in exposures])
        rows = np.stack(sequences)
        owner = np.repeat(np.arange(len(rows)), [len(layout.exposures) for layout in layouts])
        starts = starts_of([exposure.length for exposure in exposures])
        firsts = owner * rows.shape[1] + [exposure.offset for exposure in exposures]
        fed = rows.reshape(-1)[ranges(firsts, starts)]
        wrong = np.add.reduceat(fed != expected, starts[:-1], dtype=np.int64)
        for exposure, differences in zip(exposures, wrong.tolist(), strict=True):
            if not differences:
                self.received[exposure.group][exposure.fact] += 1
                if exposure.group == "infused":
                    self.infused_tokens += exposure.length

    @property
    def infusion_ratio(self) -> float:
        """Share of the tokens fed so far that exposures of infused facts took."""
        return self.infused_tokens / self.tokens if self.tokens else 0.0

    def as_tensor(self) -> torch.Tensor:
        """Returns int64 [3 + facts], all counts, to be summed over data-parallel ranks or stored in a checkpoint."""
        totals = np.array([self.sequences, self.tokens, self.infused_tokens], dtype=np.int64)
        return torch.from_numpy(np.concatenate([totals, *(self.received[group] for group in RENDERED_GROUPS)]))

    def load_tensor(self, counts: torch.Tensor) -> None:
        """Replaces the counts by those of ``as_tensor``."""
        values = counts.cpu().numpy()
        self.sequences = int(values[0])
        self.tokens = int(values[1])
        self.infused_tokens = int(values[2])
        start = 3
        for group in RENDERED_GROUPS:
            size = len(self.received[group])
            self.received[group] = values[start : start + size].copy()
            start += size

    def differences(self, plan: Plan) -> list[str]:
        """Returns one line per fact that did not receive the planned exposures."""
        lines: list[str] = []
        for group in RENDERED_GROUPS:
            expected = self._promised(plan, group)
            lines += [
                f"{group} fact {self._store.ids(group)[row]}: {self.received[group][row]} exposures received, "
                f"{expected[row]} planned"
                for row in np.flatnonzero(expected != self.received[group])
            ]
        return lines

    def as_json(self, plan: Plan) -> dict[str, Any]:
        """Returns the content of ``exposures.json``."""
        return {
            "schema": LEDGER_SCHEMA,
            "plan": plan.identity(),
            "sequences": self.sequences,
            "tokens": self.tokens,
            "infused_tokens": self.infused_tokens,
            "infusion_ratio": self.infusion_ratio,
            "expected": {group: self._expected(plan, group) for group in RENDERED_GROUPS},
            "received": {
                group: dict(zip(self._store.ids(group), self.received[group].tolist(), strict=True))
                for group in RENDERED_GROUPS
            },
            "exact": not self.differences(plan),
        }

    def _expected(self, plan: Plan, group: str) -> dict[str, Any]:
        """Returns how many exposures each fact should get: one number, or one per fact if they differ."""
        expected = self._promised(plan, group)
        summary: dict[str, Any] = {"facts": len(expected), "exposures": int(expected.sum())}
        if not len(expected) or expected.min() == expected.max():
            return {**summary, "each": int(expected.max(initial=0))}
        return {**summary, "by_fact": dict(zip(self._store.ids(group), expected.tolist(), strict=True))}

    def _promised(self, plan: Plan, group: str) -> NDArray[np.int64]:
        """Returns [facts], the exposures of each fact: none if the plan has no facts of the group."""
        expected = plan.expected(group)
        return expected if len(expected) else np.zeros(len(self._store.ids(group)), dtype=np.int64)
