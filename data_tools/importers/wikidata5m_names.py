"""Names of Wikidata5M's entities, looked up in the file that holds them.

Memory holds 28 bytes an entity: the place and length of its line, and a hash of its name.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_tools.importers.wikidata5m_triples import Ints, number_of
from data_tools.names import name_key
from megatron_kis.errors import InputError
from megatron_kis.files import unreadable

Names = tuple[str, tuple[str, ...], bool]
"""Name, aliases, and whether another entity bears the name too."""


class EntityNames:
    """Names of entities, looked up in the file that holds them; a context manager."""

    def __init__(self, path: Path) -> None:
        """Indexes ``path``.

        Raises:
            InputError: an unreadable file, or a malformed or repeated id (``file:line``).
        """
        self._path = path
        ids, offsets, lengths, hashes = array("q"), array("q"), array("i"), array("Q")
        offset = 0
        try:
            with open(path, "rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        identifier, _, rest = line.partition(b"\t")
                        ids.append(number_of(identifier, b"Q", f"{path}:{number}"))
                        offsets.append(offset)
                        lengths.append(len(line))
                        shown = _names(rest.partition(b"\t")[0]) or _names(rest)[:1]
                        hashes.append(_hash(" ".join(shown)))
                    offset += len(line)
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise unreadable(error, path) from None
        order = np.argsort(np.frombuffer(ids, np.int64), kind="stable") if ids else np.empty(0, np.int64)
        self._ids: Ints = np.array(ids, np.int64)[order]
        self._offsets, self._lengths = np.array(offsets, np.int64)[order], np.array(lengths, np.int32)[order]
        repeated = np.flatnonzero(self._ids[1:] == self._ids[:-1])
        if len(repeated):
            raise InputError(f"Q{self._ids[repeated[0]]} stands in two lines", where=str(path))
        self._shared = _repeated(np.array(hashes, np.uint64)[order])

    def __enter__(self) -> EntityNames:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def __len__(self) -> int:
        """Number of entities."""
        return len(self._ids)

    def look_up(self, identifiers: Ints) -> dict[int, Names]:
        """The names of those entities, ``[n]``, that have one."""
        places = np.searchsorted(self._ids, identifiers)
        known = places < len(self._ids)
        known[known] = self._ids[places[known]] == identifiers[known]
        wanted, places = identifiers[known], places[known]
        found: dict[int, Names] = {}
        columns = (wanted, self._lengths[places], self._offsets[places], self._shared[places])
        for identifier, length, offset, shared in zip(*(column.tolist() for column in columns), strict=True):
            _, _, rest = os.pread(self._file, length, offset).partition(b"\t")
            if names := _names(rest):
                found[identifier] = (names[0], tuple(names[1:]), shared)
        return found


def _names(fields: bytes) -> list[str]:
    """The names of a line, each once; the entity is shown by the first."""
    names = (name.strip() for name in fields.decode("utf-8", "replace").split("\t"))
    return list(dict.fromkeys(name for name in names if name))


def _repeated(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Whether each hash stands in the array more than once."""
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    result: npt.NDArray[np.bool_] = (counts > 1)[inverse]
    return result


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name_key(name).encode(), digest_size=8).digest(), "little")
