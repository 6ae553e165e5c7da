"""Names of Wikidata5M's entities, looked up in the file that holds them.

Memory holds 28 bytes per entity: the offset and length of its line, and a hash of its name.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import unreadable
from megatron_kis.data_tools.facts.fields import is_text, one_line
from megatron_kis.data_tools.facts.importers.base import Dropped, malformed
from megatron_kis.data_tools.facts.importers.reading import refuse_packed
from megatron_kis.data_tools.facts.importers.wikidata5m_triples import Ints, parse_id_line
from megatron_kis.data_tools.facts.names import name_key
from megatron_kis.data_tools.readers.open import check_head

Names = tuple[str, tuple[str, ...], bool]
"""Name, aliases, and whether another entity has the same name."""


class EntityNames:
    """Names of entities, looked up in the file that holds them; a context manager."""

    def __init__(self, path: Path, *, skip_errors: bool = False) -> None:
        """Indexes ``path``.

        Args:
            path: the file.
            skip_errors: leave malformed lines out, and record them in ``dropped``.

        Raises:
            InputError: an unreadable file; a malformed line or repeated id, unless errors are skipped
                (``file:line``).
        """
        self._path = path
        self.dropped: list[Dropped] = []
        ids, offsets, lengths, hashes = array("q"), array("q"), array("i"), array("Q")
        offset = 0
        try:
            with open(path, "rb") as file:
                for number, line in enumerate(file, start=1):
                    if number == 1:
                        refuse_packed(line, path)
                        check_head(path, ".txt")
                    if line.strip():
                        try:
                            identifier, names = parse_id_line(line, b"Q", f"{path}:{number}")
                        except InputError as error:
                            if not skip_errors:
                                raise
                            self.dropped.append(malformed(error, "line of names"))
                        else:
                            ids.append(identifier)
                            offsets.append(offset)
                            lengths.append(len(line))
                            shown = _names(names.partition("\t")[0]) or _names(names)[:1]
                            hashes.append(_hash(" ".join(shown)))
                    offset += len(line)
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise unreadable(error, path) from None
        order = np.argsort(np.frombuffer(ids, np.int64), kind="stable") if ids else np.empty(0, np.int64)
        self._ids: Ints = np.array(ids, np.int64)[order]
        self._offsets = np.array(offsets, np.int64)[order]
        self._lengths = np.array(lengths, np.int32)[order]
        hashed = np.array(hashes, np.uint64)[order]
        first = np.ones(len(self._ids), np.bool_)
        first[1:] = self._ids[1:] != self._ids[:-1]
        if not first.all():
            place = int(np.flatnonzero(~first)[self._offsets[~first].argmin()])
            where = f"{path}:{_line_at(path, int(self._offsets[place]))}"
            before = _line_at(path, int(self._offsets[np.searchsorted(self._ids, self._ids[place])]))
            problem = f"Q{self._ids[place]} is in two lines, the first of which is {before}"
            if not skip_errors:
                raise InputError(problem, where=where, remedy="keep one of them")
            count = int(np.count_nonzero(~first))
            self.dropped.append(Dropped("", "malformed line of names (an id in two lines)", count=count, where=where))
            self._ids = self._ids[first]
            self._offsets = self._offsets[first]
            self._lengths = self._lengths[first]
            hashed = hashed[first]
        self._shared = _repeated(hashed)

    def __enter__(self) -> EntityNames:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def __len__(self) -> int:
        """Returns the number of entities."""
        return len(self._ids)

    def look_up(self, identifiers: Ints) -> dict[int, Names]:
        """Looks up the names of entities, ``[n]``; those without a name are left out."""
        places = np.searchsorted(self._ids, identifiers)
        known = places < len(self._ids)
        known[known] = self._ids[places[known]] == identifiers[known]
        wanted = identifiers[known]
        places = places[known]
        found: dict[int, Names] = {}
        columns = (wanted, self._lengths[places], self._offsets[places], self._shared[places])
        for identifier, length, offset, shared in zip(*(column.tolist() for column in columns), strict=True):
            _, _, fields = os.pread(self._file, length, offset).decode("utf-8", "replace").partition("\t")
            if names := _names(fields):
                found[identifier] = (names[0], tuple(names[1:]), shared)
        return found


def _line_at(path: Path, offset: int) -> int:
    """Returns the number of the line that begins at an offset."""
    number = 1
    with open(path, "rb") as file:
        while offset > 0 and (block := file.read(min(offset, 1 << 20))):
            number += block.count(b"\n")
            offset -= len(block)
    return number


def _names(fields: str) -> list[str]:
    """Splits the names between tabs, each once; the first is the entity's name."""
    names = list(dict.fromkeys(name.strip() for name in fields.split("\t") if name.strip()))
    if not is_text("".join(names)):  # rare: control characters
        names = list(map(one_line, names)) if is_text(one_line(names[0])) else []
    return [*names[:1], *filter(is_text, names[1:])]


def _repeated(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Returns whether each hash is in the array more than once."""
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    result: npt.NDArray[np.bool_] = (counts > 1)[inverse]
    return result


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name_key(name).encode(), digest_size=8).digest(), "little")
