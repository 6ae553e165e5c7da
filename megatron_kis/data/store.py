"""The exposure store: rendered and tokenized (fact, template) pairs, and the index back to fact and template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.indexed import IndexedReader, suffixed
from megatron_kis.errors import InputError
from megatron_kis.files import read_json

EXPOSURES_SCHEMA = "kis.exposures/1"
_INDEX_KEYS = ("content_fingerprint", "tokenizer_fingerprint", "eod_id", "facts")


@dataclass(frozen=True)
class _Group:
    ids: list[str]
    first_rows: NDArray[np.int64]  # [facts]
    lengths: NDArray[np.int64]  # [facts, templates], 0 where a fact has fewer


class ExposureStore:
    """Exposures by group, fact and template."""

    def __init__(self, prefix: Path) -> None:
        """Opens ``prefix``.bin, .idx and .json.

        Raises:
            InputError: missing or truncated files, or an index that does not fit its tokens.
        """
        self.prefix = prefix
        index_path = suffixed(prefix, ".json")
        index = read_json(index_path, EXPOSURES_SCHEMA, keys=_INDEX_KEYS)
        self._reader = IndexedReader(prefix)
        self.fingerprint = str(index["content_fingerprint"])
        self.tokenizer_fingerprint = str(index["tokenizer_fingerprint"])
        self.eod_id = int(index["eod_id"])
        try:
            rows = sum(int(fact["templates"]) for fact in index["facts"])
            self._groups = {group: self._group(group, index["facts"]) for group in ("infused", "background")}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"not an index of exposures ({type(error).__name__}: {error})",
                where=str(index_path),
                remedy="render the facts again",
            ) from None
        if rows != len(self._reader):
            raise InputError(
                f"names {rows} exposures, {prefix}.idx holds {len(self._reader)}",
                where=str(index_path),
                remedy="render the facts again",
            )

    def _group(self, name: str, facts: list[dict[str, Any]]) -> _Group:
        members = [fact for fact in facts if fact["group"] == name]
        widest = max((int(fact["templates"]) for fact in members), default=1)
        lengths = np.zeros((len(members), widest), dtype=np.int64)
        first_rows = np.array([fact["first_row"] for fact in members], dtype=np.int64)
        for row, fact in enumerate(members):
            first, count = int(fact["first_row"]), int(fact["templates"])
            if not 0 <= first < first + count <= len(self._reader):
                raise ValueError(f"rows {first} to {first + count - 1} of fact {fact['id']}")
            lengths[row, :count] = self._reader.lengths[first : first + count]
        return _Group([str(fact["id"]) for fact in members], first_rows, lengths)

    def ids(self, group: str) -> list[str]:
        """Identifiers of a group's facts, in the order of the plan's rows."""
        return self._groups[group].ids

    def lengths(self, group: str) -> NDArray[np.int64]:
        """[facts, templates] tokens of a group's exposures, the end-of-document token included."""
        return self._groups[group].lengths

    def tokens(self, group: str, fact: int, template: int) -> NDArray[np.integer]:
        """The tokens of one exposure; the last one ends the document."""
        return self._reader[int(self._groups[group].first_rows[fact]) + template]
