"""The exposure store: rendered and tokenized (fact, template) pairs, and the index back to fact and template."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_kis.common.terms import RENDERED_GROUPS
from megatron_kis.data_tools.storage.exposures import ExposureIndex, read_exposure_index
from megatron_kis.data_tools.storage.indexed import IndexedReader


class _Group:
    """The facts of a group: where the exposures of each begin in the token file, and their lengths."""

    def __init__(self, index: ExposureIndex, name: str, row_lengths: NDArray[np.int32]) -> None:
        self._index = index
        self._rows = index.rows_of(name)
        counts = np.asarray(index.table[self._rows, 1])
        self.first_rows: NDArray[np.int64] = np.asarray(index.table[self._rows, 0])  # [facts]
        # [facts, templates], 0 where a fact has fewer
        self.lengths: NDArray[np.int64] = np.zeros((len(self._rows), counts.max(initial=1)), dtype=np.int64)
        for template in range(self.lengths.shape[1]):
            has = counts > template
            self.lengths[has, template] = row_lengths[self.first_rows[has] + template]

    @cached_property
    def ids(self) -> list[str]:
        ids = self._index.ids
        return [ids[row] for row in self._rows.tolist()]

    def by_relation(self, which: NDArray[np.bool_]) -> dict[str, int]:
        names = self._index.relations
        counts = np.bincount(self._index.table[self._rows[which], 3], minlength=len(names))
        return {name: count for name, count in zip(names, counts.tolist(), strict=True) if count}


class ExposureStore:
    """Exposures by group, fact and template."""

    def __init__(self, prefix: Path) -> None:
        """Opens the files of ``prefix`` that ``megatron_kis.data_tools.storage.exposures`` describes.

        Raises:
            InputError: missing or truncated files, or an index that does not fit its tokens.
        """
        self.prefix = prefix
        self._reader = IndexedReader(prefix)
        index = read_exposure_index(prefix, exposures=len(self._reader))
        self.fingerprint = str(index.header["content_fingerprint"])
        self.tokenizer_fingerprint = str(index.header["tokenizer_fingerprint"])
        self.eod_id = int(index.header["eod_id"])
        self._groups = {group: _Group(index, group, self._reader.lengths) for group in RENDERED_GROUPS}

    def ids(self, group: str) -> list[str]:
        """Returns the identifiers of a group's facts, in the order of the plan's rows."""
        return self._groups[group].ids

    def facts_by_relation(self, group: str, which: NDArray[np.bool_]) -> dict[str, int]:
        """Returns how many of some facts of a group each relation has.

        Args:
            group: the group.
            which: [facts] the facts to count.
        """
        return self._groups[group].by_relation(which)

    def lengths(self, group: str) -> NDArray[np.int64]:
        """Returns [facts, templates], the tokens of a group's exposures, including the end-of-document token."""
        return self._groups[group].lengths

    def tokens(self, group: str, fact: int, template: int) -> NDArray[np.integer]:
        """Returns the tokens of one exposure; the last one ends the document."""
        return self._reader[int(self._groups[group].first_rows[fact]) + template]

    def joined(self, exposures: Iterable[tuple[str, int, int]]) -> NDArray[np.integer]:
        """Returns the tokens of several exposures, each a group, a fact and a template, one after the other."""
        groups = self._groups
        return self._reader.joined([int(groups[group].first_rows[fact]) + at for group, fact, at in exposures])
