r"""Megatron's indexed token files, written as a stream and read through memory maps, without torch.

``PREFIX.bin`` holds the token ids of all documents one after another, little-endian, without any header.
``PREFIX.idx`` describes it (n documents; every document is one sequence here):

| bytes | type | content |
|---|---|---|
| 0-8 | 9 bytes | magic ``MMIDIDX\0\0`` |
| 9-16 | uint64 | version, 1 |
| 17 | uint8 | code of the token type: 1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 6 float64, 7 float32, 8 uint16 |
| 18-25 | uint64 | number of sequences, n |
| 26-33 | uint64 | number of document indices, n + 1 |
| 34 | int32[n] | tokens of each sequence |
| then | int64[n] | offset of each sequence in ``.bin``, in bytes |
| then | int64[n + 1] | document boundaries as sequence numbers: 0, 1, ..., n |

The format is that of ``megatron.core.datasets.indexed_dataset`` (``_IndexWriter``), which reads these files; the bytes
equal those of its ``IndexedDatasetBuilder``.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from megatron_kis.errors import InputError

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_TOKEN_TYPES: dict[int, npt.DTypeLike] = {3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_UINT16_VOCABULARY = 65_500  # Megatron's own limit (DType.optimal_dtype): smaller vocabularies take two bytes a token
_BUFFER_TOKENS = 1 << 18
_INDEX_CHUNK = 1 << 16


def suffixed(prefix: Path, suffix: str) -> Path:
    """``PREFIX`` + suffix. Unlike ``Path.with_suffix`` it keeps dots in the prefix (``corpus.validation``)."""
    return prefix.with_name(prefix.name + suffix)


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The type of a token id: uint16 for vocabularies under 65,500, int32 otherwise, as in Megatron."""
    return np.dtype("<u2") if vocab_size < _UINT16_VOCABULARY else np.dtype("<i4")


class IndexedWriter:
    """Writes ``PREFIX.bin`` and ``PREFIX.idx``; a context manager.

    Memory is bounded whatever the size: tokens go through a buffer of 256k ids and lengths through a side file.
    Both files appear under their names only when all is written, the index last: an index that exists is whole. After
    an exception nothing is left.
    """

    def __init__(self, prefix: Path, *, vocab_size: int) -> None:
        """Prepares to write token ids in ``[0, vocab_size)`` to ``prefix``."""
        self._prefix, self._vocab_size = prefix, vocab_size
        self._dtype = token_dtype(vocab_size)
        self._digest = hashlib.sha256()
        self._buffer: list[int] = []
        self._lengths: list[int] = []
        self.documents = 0
        """Documents added so far."""
        self.tokens = 0
        """Tokens added so far."""
        self.content_fingerprint = ""
        """Hexadecimal SHA-256 of the bytes of ``.bin`` followed by those of ``.idx``; set when closed."""
        self._partial = {
            name: prefix.with_name(f".{prefix.name}.{name}.{os.getpid()}.partial") for name in ("bin", "lengths", "idx")
        }
        self._bin: IO[bytes]
        self._side: IO[bytes]

    def __enter__(self) -> IndexedWriter:
        self._prefix.parent.mkdir(parents=True, exist_ok=True)
        self._bin = open(self._partial["bin"], "wb")
        self._side = open(self._partial["lengths"], "w+b")
        return self

    def add(self, tokens: Sequence[int]) -> None:
        """Appends one document.

        Args:
            tokens: its token ids, at least one, the end-of-document token included.
        """
        if not tokens:
            raise ValueError("a document needs at least one token")
        self._buffer.extend(tokens)
        self._lengths.append(len(tokens))
        self.documents += 1
        self.tokens += len(tokens)
        if len(self._buffer) >= _BUFFER_TOKENS:
            self._flush()

    def _flush(self) -> None:
        ids = np.asarray(self._buffer, dtype=np.int64)
        if len(ids) and not (ids.min() >= 0 and ids.max() < self._vocab_size):
            raise ValueError(f"token id outside [0, {self._vocab_size}): {ids.min()} to {ids.max()}")
        block = ids.astype(self._dtype).tobytes()
        self._digest.update(block)
        self._bin.write(block)
        self._side.write(np.asarray(self._lengths, dtype="<i4").tobytes())
        self._buffer.clear()
        self._lengths.clear()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._bin.close()
            self._side.close()
            for path in self._partial.values():
                path.unlink(missing_ok=True)

    def _finish(self) -> None:
        self._flush()
        self._side.flush()
        with open(self._partial["idx"], "wb") as index:
            self._write_index(index)
            _sync(index)
        _sync(self._bin)
        # An old index must not describe the new tokens, not even between the two renames.
        suffixed(self._prefix, ".idx").unlink(missing_ok=True)
        self._partial["bin"].replace(suffixed(self._prefix, ".bin"))
        self._partial["idx"].replace(suffixed(self._prefix, ".idx"))
        self.content_fingerprint = self._digest.hexdigest()

    def _write_index(self, index: IO[bytes]) -> None:
        def put(block: bytes) -> None:
            self._digest.update(block)
            index.write(block)

        code = next(code for code, dtype in _TOKEN_TYPES.items() if np.dtype(dtype) == self._dtype)
        put(_HEADER.pack(_MAGIC, _VERSION, code, self.documents, self.documents + 1))
        for block in self._length_blocks():
            put(block.tobytes())
        offset = 0
        for block in self._length_blocks():
            ends = offset + np.cumsum(block, dtype=np.int64) * self._dtype.itemsize
            put((ends - block.astype(np.int64) * self._dtype.itemsize).astype("<i8").tobytes())
            offset = int(ends[-1])
        for first in range(0, self.documents + 1, _INDEX_CHUNK):
            put(np.arange(first, min(first + _INDEX_CHUNK, self.documents + 1), dtype="<i8").tobytes())

    def _length_blocks(self) -> Any:
        self._side.seek(0)
        while block := self._side.read(_INDEX_CHUNK * 4):
            yield np.frombuffer(block, dtype="<i4")


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


class IndexedReader:
    """Reads ``PREFIX.bin``/``.idx`` through memory maps, after checking that index and sizes agree.

    ``reader[i]`` is document i: a read-only array of its token ids, shape ``[lengths[i]]``.
    """

    def __init__(self, prefix: Path) -> None:
        """Opens the pair of files.

        Raises:
            InputError: a file is missing, truncated, or does not hold what the index says; names the file and the
                expected and found bytes.
        """
        self.prefix = prefix
        index_path, bin_path = suffixed(prefix, ".idx"), suffixed(prefix, ".bin")
        index_size, bin_size = _size(index_path), _size(bin_path)
        if index_size < _HEADER.size:
            raise _truncated(index_path, _HEADER.size, index_size, "header")
        with open(index_path, "rb") as file:
            magic, version, code, sequences, boundaries = _HEADER.unpack(file.read(_HEADER.size))
        where = str(index_path)
        if magic != _MAGIC:
            raise InputError(
                f"not a Megatron index (starts with {magic!r})", where=where, remedy=f"expected {_MAGIC!r}"
            )
        if version != _VERSION:
            raise InputError(f"index version {version}", where=where, remedy=f"expected {_VERSION}")
        if code not in _TOKEN_TYPES:
            raise InputError(f"token type code {code}", where=where, remedy=f"expected one of {sorted(_TOKEN_TYPES)}")
        expected = _HEADER.size + 12 * sequences + 8 * boundaries
        if index_size != expected:
            raise _truncated(index_path, expected, index_size, f"{sequences} sequences and {boundaries} boundaries")
        self.dtype: np.dtype[Any] = np.dtype(_TOKEN_TYPES[code])
        """Type of a token id in the file."""
        index = np.memmap(index_path, dtype=np.uint8, mode="r")
        at = _HEADER.size
        self.lengths: npt.NDArray[np.int32] = np.frombuffer(index, "<i4", sequences, at)
        """Tokens of each document, ``[documents]``."""
        self.offsets: npt.NDArray[np.int64] = np.frombuffer(index, "<i8", sequences, at + 4 * sequences)
        """Offset of each document in ``.bin`` in bytes, ``[documents]``."""
        self.boundaries: npt.NDArray[np.int64] = np.frombuffer(index, "<i8", boundaries, at + 12 * sequences)
        """Document boundaries as sequence numbers."""
        self.tokens = int(self.lengths.sum(dtype=np.int64))
        """Tokens of all documents."""
        if bin_size != self.tokens * self.dtype.itemsize:
            raise _truncated(bin_path, self.tokens * self.dtype.itemsize, bin_size, f"{self.tokens} tokens")
        self._bin: npt.NDArray[Any] = (
            np.memmap(bin_path, dtype=self.dtype, mode="r") if self.tokens else np.empty(0, self.dtype)
        )

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.lengths)

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        """Token ids of a document, ``[lengths[index]]``."""
        start = int(self.offsets[index]) // self.dtype.itemsize
        return self._bin[start : start + int(self.lengths[index])]

    def at(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Token ids at positions counted over the whole file, ``[n]``."""
        return np.asarray(self._bin[positions])

    def read(self, start: int, count: int) -> npt.NDArray[Any]:
        """``count`` token ids from token ``start`` of the whole stream, across document boundaries."""
        return self._bin[start : start + count]

    def verify(self) -> None:
        """Checks every entry of the index, which opening does not.

        Raises:
            InputError: lengths, offsets or boundaries contradict each other; names the first damaged document.
        """
        where = str(suffixed(self.prefix, ".idx"))
        sizes = self.lengths.astype(np.int64) * self.dtype.itemsize
        wrong = np.flatnonzero((self.lengths <= 0) | (self.offsets != np.cumsum(sizes) - sizes))
        if len(wrong):
            raise InputError(f"document {wrong[0]} has an impossible length or offset", where=where)
        if not np.array_equal(self.boundaries, np.arange(len(self) + 1)):
            raise InputError("document boundaries are not one a sequence", where=where)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        remedy = "a corpus is a pair of files PREFIX.bin and PREFIX.idx; build it again"
        raise InputError(f"cannot be read ({error.strerror})", where=str(path), remedy=remedy) from None


def _truncated(path: Path, expected: int, found: int, content: str) -> InputError:
    state = "truncated" if found < expected else "too long"
    return InputError(f"{state}: expected {expected} bytes for {content}, found {found}", where=str(path))
