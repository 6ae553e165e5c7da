"""The index of an exposure store: from a fact and a template to a row of its tokens.

| file | content |
|---|---|
| ``PREFIX.json`` | schema ``kis.exposures/2``: counts, fingerprints, the names of ``groups`` and ``relations`` |
| ``PREFIX.facts.npy`` | int64 [facts, 4]: first row, templates, group and relation as places in these names |
| ``PREFIX.ids.txt`` | one id per line, in the same order |

Rows ``first row`` to ``first row + templates - 1`` of ``PREFIX.bin``/``.idx`` are a fact's train templates in their
order. The table is mapped, not read, so that opening a million facts takes no time; ids are read at their first
use. Schema ``kis.exposures/1``, in which ``PREFIX.json`` holds a list with one object per fact, is still read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import atomic_path, atomic_write, read_json, read_text, unreadable, write_json
from megatron_kis.common.parsing import damage
from megatron_kis.common.terms import RENDERED_GROUPS
from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.storage.indexed import suffixed

SCHEMA = "kis.exposures/2"
_LIST_SCHEMA = "kis.exposures/1"  # of older stores

_KEYS = ("content_fingerprint", "tokenizer_fingerprint", "eod_id", "facts")
_REMEDY = "render the facts again"


@dataclass(frozen=True)
class ExposureIndex:
    """The rows of each fact's exposures."""

    header: dict[str, Any]
    """Content of the store's ``PREFIX.json``."""
    table: NDArray[np.int64]
    """[facts, 4]: first row, templates, group, relation."""
    groups: list[str]
    """Names of the groups."""
    relations: list[str]
    """Names of the relations."""
    _ids: list[str] | Path

    @cached_property
    def ids(self) -> list[str]:
        """Ids of the facts, in the order of the table.

        Raises:
            InputError: their number is not that of the table.
        """
        if not isinstance(self._ids, Path):
            return self._ids
        ids = read_text(self._ids).split("\n")[:-1]
        if len(ids) != len(self.table):
            problem = f"{len(ids)} ids, the table has {len(self.table)} facts"
            raise InputError(problem, where=str(self._ids), remedy=_REMEDY)
        return ids

    def rows_of(self, group: str) -> NDArray[np.int64]:
        """Returns the rows of the table that belong to a group."""
        if group not in self.groups:
            return np.empty(0, np.int64)
        rows: NDArray[np.int64] = np.flatnonzero(self.table[:, 2] == self.groups.index(group))
        return rows


def write_exposure_index(prefix: Path, facts: Sequence[Fact], templates: Sequence[int], header: dict[str, Any]) -> None:
    """Writes the three files; ``PREFIX.json`` last.

    Args:
        prefix: prefix of the store.
        facts: the facts that were rendered, in the order of their rows.
        templates: [facts] number of rows of each.
        header: further keys of ``PREFIX.json``.

    Raises:
        InputError: an id holds a line break.
    """
    relations = sorted({fact.relation for fact in facts})
    places = {relation: place for place, relation in enumerate(relations)}
    table = np.zeros((len(facts), 4), dtype="<i8")
    table[:, 1] = templates
    table[:, 0] = np.cumsum(table[:, 1]) - table[:, 1]
    table[:, 2] = [RENDERED_GROUPS.index(fact.group) for fact in facts]
    table[:, 3] = [places[fact.relation] for fact in facts]
    for fact in facts:
        if "\n" in fact.id or "\r" in fact.id:
            raise InputError(f"the id {fact.id!r} holds a line break", remedy="give the fact another id")
    with atomic_path(suffixed(prefix, ".facts.npy")) as partial, open(partial, "wb") as file:
        np.save(file, table, allow_pickle=False)
    with atomic_write(suffixed(prefix, ".ids.txt")) as lines:
        lines.writelines(f"{fact.id}\n" for fact in facts)
    content = {
        "schema": SCHEMA,
        **header,
        "facts": len(facts),
        "exposures": int(table[:, 1].sum()),
        "groups": list(RENDERED_GROUPS),
        "relations": relations,
        "index_fingerprint": index_fingerprint(prefix),
    }
    write_json(suffixed(prefix, ".json"), content)


def index_fingerprint(prefix: Path) -> str:
    """Returns the SHA-256 of the table followed by the ids."""
    digest = hashlib.sha256()
    for suffix in (".facts.npy", ".ids.txt"):
        path = suffixed(prefix, suffix)
        try:
            digest.update(path.read_bytes())
        except OSError as error:
            raise unreadable(error, path, remedy=_REMEDY) from None
    return digest.hexdigest()


def read_exposure_index(prefix: Path, *, exposures: int) -> ExposureIndex:
    """Reads an index of either schema, and checks that it fits the rows.

    Args:
        prefix: prefix of the store.
        exposures: rows of ``PREFIX.idx``.

    Raises:
        InputError: a file is missing or damaged, or names other rows.
    """
    path = suffixed(prefix, ".json")
    header = _header(path)
    try:
        index = _from_list(header) if header["schema"] == _LIST_SCHEMA else _from_table(prefix, header)
    except (KeyError, TypeError, ValueError) as error:
        problem = f"not an index of exposures ({damage(error)})"
        raise InputError(problem, where=str(path), remedy=_REMEDY) from None
    table = index.table
    named = int(table[:, 1].sum())
    if named != exposures:
        problem = f"names {named} exposures, {prefix}.idx holds {exposures}"
        raise InputError(problem, where=str(path), remedy=_REMEDY)
    wrong = np.flatnonzero((table[:, 0] < 0) | (table[:, 1] < 1) | (table[:, 0] + table[:, 1] > exposures))
    if len(wrong):
        first, count = table[wrong[0], :2].tolist()
        problem = f"fact {index.ids[wrong[0]]} has rows {first} to {first + count - 1} of {exposures}"
        raise InputError(problem, where=str(path), remedy=_REMEDY)
    return index


def _header(path: Path) -> dict[str, Any]:
    try:
        return read_json(path, SCHEMA, keys=(*_KEYS, "groups", "relations"))
    except InputError as error:
        if f"schema is {_LIST_SCHEMA!r}" not in error.problem:
            raise
    return read_json(path, _LIST_SCHEMA, keys=_KEYS)


def _from_table(prefix: Path, header: dict[str, Any]) -> ExposureIndex:
    path = suffixed(prefix, ".facts.npy")
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise unreadable(error, path, remedy=_REMEDY) from None
    except (ValueError, EOFError) as error:
        raise InputError(f"not a whole array ({error})", where=str(path), remedy=_REMEDY) from None
    groups = list(map(str, header["groups"]))
    relations = list(map(str, header["relations"]))
    if table.dtype != np.dtype("<i8") or table.shape != (int(header["facts"]), 4):
        problem = f"{table.dtype} {list(table.shape)}, expected int64 [{header['facts']}, 4]"
        raise InputError(problem, where=str(path), remedy=_REMEDY)
    limits = (len(groups), len(relations))
    if len(table) and ((table[:, 2:] < 0).any() or (table[:, 2:] >= limits).any()):
        raise InputError("names a group or relation that is not there", where=str(path), remedy=_REMEDY)
    return ExposureIndex(header, table, groups, relations, suffixed(prefix, ".ids.txt"))


def _from_list(header: dict[str, Any]) -> ExposureIndex:
    facts = header["facts"]
    groups = list(dict.fromkeys(str(fact["group"]) for fact in facts))
    relations = list(dict.fromkeys(str(fact["relation"]) for fact in facts))
    rows = [
        (fact["first_row"], fact["templates"], groups.index(fact["group"]), relations.index(fact["relation"]))
        for fact in facts
    ]
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    return ExposureIndex(header, table, groups, relations, [str(fact["id"]) for fact in facts])
