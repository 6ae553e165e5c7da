r"""Megatron's indexed token files, written as a stream and read through memory maps, without torch.

``PREFIX.bin`` holds the token ids of all documents one after another, little-endian, without any header.
``PREFIX.idx`` describes it (n sequences in m documents; a document is one sequence, or several where it is split into
sentences, or none where it is empty):

| bytes | type | content |
|---|---|---|
| 0-8 | 9 bytes | magic ``MMIDIDX\0\0`` |
| 9-16 | uint64 | version, 1 |
| 17 | uint8 | code of the token type: 1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 6 float64, 7 float32, 8 uint16 |
| 18-25 | uint64 | number of sequences, n |
| 26-33 | uint64 | number of document boundaries, m + 1 |
| 34 | int32[n] | tokens of each sequence |
| then | int64[n] | offset of each sequence in ``.bin``, in bytes |
| then | int64[m + 1] | document d is the sequences from entry d up to entry d + 1: 0, ..., n |

The format is that of ``megatron.core.datasets.indexed_dataset`` (``_IndexWriter``), which reads these files; the bytes
equal those of its ``IndexedDatasetBuilder``.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import steadily, unreadable
from megatron_kis.data_tools.storage.ranges import ranges, starts_of

CORPUS_SCHEMA = "kis.corpus/1"
"""Schema of ``PREFIX.meta.json`` next to the files of a corpus."""

_MAGIC = b"MMIDIDX\x00\x00"
_WRITERS = "expected one that kis data corpus, kis data render or Megatron-LM's preprocess_data.py writes"
_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_TOKEN_TYPES: dict[int, npt.DTypeLike] = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_UINT16_VOCABULARY = 65_500  # Megatron's own limit (DType.optimal_dtype): smaller vocabularies take two bytes per token
_BUFFER_TOKENS = 1 << 18
_INDEX_CHUNK = 1 << 16
_COPIED = 1 << 22  # bytes
_SPOOLED = 1 << 22  # bytes of lengths, and of boundaries, that are kept in memory


def suffixed(prefix: Path, suffix: str) -> Path:
    """Returns ``PREFIX`` + suffix. Unlike ``Path.with_suffix`` it keeps dots in the prefix (``corpus.validation``).

    Raises:
        InputError: the prefix has no name, as ``.`` and ``/``.
    """
    if not prefix.name:
        remedy = "name the files' beginning in it, such as data/corpus"
        raise InputError("is a folder", where=str(prefix), remedy=remedy)
    return prefix.with_name(prefix.name + suffix)


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Returns the type of a token id: uint16 for vocabularies under 65,500, int32 otherwise, as in Megatron."""
    return np.dtype("<u2") if vocab_size < _UINT16_VOCABULARY else np.dtype("<i4")


class IndexedWriter:
    """Writes ``PREFIX.bin`` and ``PREFIX.idx``; a context manager.

    Memory is bounded whatever the size: tokens go through a buffer of 256k ids, lengths and boundaries into side
    files where they take more than 4 MB. Both files appear under their names only when all is written, the index last:
    an index that exists is whole. After an exception nothing is left.
    """

    def __init__(
        self,
        prefix: Path,
        *,
        vocab_size: int,
        dtype: np.dtype[Any] | None = None,
        sync: bool = True,
        scratch: Path | None = None,
    ) -> None:
        """Prepares to write token ids in ``[0, vocab_size)`` to ``prefix``.

        Args:
            prefix: where to write.
            vocab_size: ids are smaller.
            dtype: type of a token id; None for the one that Megatron chooses.
            sync: wait for the disk. Otherwise files may be damaged after the machine itself went down.
            scratch: folder on the same file system for unfinished files; None for that of ``prefix``.
        """
        self._prefix = prefix
        self._vocab_size = vocab_size
        self._synced = sync
        self._dtype = token_dtype(vocab_size) if dtype is None else dtype
        self._digest = hashlib.sha256()
        self._buffer: list[int] = []
        self._lengths: list[int] = []
        self.documents = 0
        """Documents added so far."""
        self.sequences = 0
        """Sequences added so far."""
        self.tokens = 0
        """Tokens added so far."""
        self.content_fingerprint = ""
        """Hexadecimal SHA-256 of the bytes of ``.bin`` followed by those of ``.idx``; set when closed."""
        self._scratch = scratch or prefix.parent
        self._partial = {
            name: self._scratch / f".{prefix.name}.{name}.{os.getpid()}.partial" for name in ("bin", "idx")
        }
        self._files: dict[str, IO[bytes]] = {}

    def __enter__(self) -> IndexedWriter:
        self._prefix.parent.mkdir(parents=True, exist_ok=True)
        self._files["bin"] = open(self._partial["bin"], "wb")
        for name in ("lengths", "boundaries"):
            self._files[name] = SpooledTemporaryFile(_SPOOLED, dir=str(self._scratch))
        return self

    def add(self, tokens: Sequence[int]) -> None:
        """Appends one document of one sequence.

        Args:
            tokens: its token ids, at least one, the end-of-document token included.
        """
        if not tokens:
            raise ValueError("a document needs at least one token")
        self._buffer.extend(tokens)
        self._lengths.append(len(tokens))
        if len(self._buffer) >= _BUFFER_TOKENS:
            self._flush()

    def add_batch(
        self, tokens: npt.NDArray[Any], lengths: npt.NDArray[Any], sequences: npt.NDArray[Any] | None = None
    ) -> None:
        """Appends documents.

        Args:
            tokens: ids of all sequences one after another, ``[n]``.
            lengths: tokens of each sequence, ``[sequences]``.
            sequences: sequences of each document, ``[documents]``; None where every sequence is a document.

        Raises:
            ValueError: an id is outside the vocabulary, or the sums do not agree.
        """
        self._flush()
        self._write(tokens, lengths, np.ones(len(lengths), np.int64) if sequences is None else sequences)

    def _flush(self) -> None:
        tokens = np.asarray(self._buffer, dtype=np.int64)
        lengths = np.asarray(self._lengths, dtype=np.int64)
        self._buffer.clear()
        self._lengths.clear()
        self._write(tokens, lengths, np.ones(len(lengths), np.int64))

    def _write(self, tokens: npt.NDArray[Any], lengths: npt.NDArray[Any], sequences: npt.NDArray[Any]) -> None:
        if len(tokens) and not (tokens.min() >= 0 and tokens.max() < self._vocab_size):
            raise ValueError(f"token id outside [0, {self._vocab_size}): {tokens.min()} to {tokens.max()}")
        if lengths.sum() != len(tokens) or sequences.sum() != len(lengths):
            raise ValueError(f"{len(tokens)} tokens, {lengths.sum()} in {len(lengths)} of {sequences.sum()} sequences")
        block = tokens.astype(self._dtype).tobytes()
        self._digest.update(block)
        self._files["bin"].write(block)
        self._files["lengths"].write(lengths.astype("<i4").tobytes())
        self._files["boundaries"].write((self.sequences + np.cumsum(sequences)).astype("<i8").tobytes())
        self.documents += len(sequences)
        self.sequences += len(lengths)
        self.tokens += len(tokens)

    def copy(self, reader: IndexedReader) -> None:
        """Appends all documents of another pair of files; tokens are copied as they are.

        Raises:
            ValueError: its tokens are of another type.
        """
        if reader.dtype != self._dtype:
            raise ValueError(f"token type {reader.dtype.name}, expected {self._dtype.name}")
        self._flush()
        with open(suffixed(reader.prefix, ".bin"), "rb") as file:  # read: pages of a map would count as our memory
            while block := file.read(_COPIED):
                self._digest.update(block)
                self._files["bin"].write(block)
        for first in range(0, len(reader), _INDEX_CHUNK):
            self._files["lengths"].write(reader.lengths[first : first + _INDEX_CHUNK].tobytes())
        for first in range(1, reader.documents + 1, _INDEX_CHUNK):
            boundaries = self.sequences + reader.boundaries[first : first + _INDEX_CHUNK]
            self._files["boundaries"].write(boundaries.astype("<i8").tobytes())
        self.documents += reader.documents
        self.sequences += len(reader)
        self.tokens += reader.tokens

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            for file in self._files.values():
                with suppress(OSError):  # a full disk fails once more when the buffers are emptied
                    file.close()
            for path in self._partial.values():
                path.unlink(missing_ok=True)

    def _finish(self) -> None:
        self._flush()
        with open(self._partial["idx"], "wb") as index:
            self._write_index(index)
            self._sync(index)
        self._sync(self._files["bin"])
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
        put(_HEADER.pack(_MAGIC, _VERSION, code, self.sequences, self.documents + 1))
        for block in self._blocks("lengths"):
            put(block)
        offset = 0
        for block in self._blocks("lengths"):
            sizes = np.frombuffer(block, dtype="<i4").astype(np.int64) * self._dtype.itemsize
            ends = offset + np.cumsum(sizes)
            put((ends - sizes).astype("<i8").tobytes())
            offset = int(ends[-1])
        put(bytes(8))
        for block in self._blocks("boundaries"):
            put(block)

    def _sync(self, file: IO[bytes]) -> None:
        file.flush()
        if self._synced:
            os.fsync(file.fileno())

    def _blocks(self, name: str) -> Iterator[bytes]:
        file = self._files[name]
        file.seek(0)
        while block := file.read(_INDEX_CHUNK * 8):
            yield block


class IndexedReader:
    """Reads ``PREFIX.bin``/``.idx`` through memory maps, whichever program wrote them.

    Opening takes the same time whatever the size: it checks the header, the sizes of both files and the last entry of
    the index; :meth:`verify` checks all of it. ``reader[i]`` is sequence i: a read-only array of its token ids, shape
    ``[lengths[i]]``.
    """

    def __init__(self, prefix: Path) -> None:
        """Opens the pair of files.

        Raises:
            InputError: a file is missing, truncated, or does not hold what the index says; names the file and the
                expected and found bytes.
        """
        self.prefix = prefix
        index_path = suffixed(prefix, ".idx")
        bin_path = suffixed(prefix, ".bin")
        index_size = _size(index_path)
        bin_size = _size(bin_path)
        where = str(index_path)
        if index_size < _HEADER.size:
            raise _truncated(index_path, _HEADER.size, index_size, "header")
        index = np.memmap(index_path, dtype=np.uint8, mode="r")
        magic, version, code, sequences, boundaries = _HEADER.unpack(index[: _HEADER.size].tobytes())
        if magic != _MAGIC:
            raise InputError(f"not a Megatron index (starts with {magic!r})", where=where, remedy=_WRITERS)
        if version != _VERSION:
            raise InputError(f"index version {version}, not {_VERSION}", where=where, remedy=_WRITERS)
        if code not in _TOKEN_TYPES:
            raise InputError(
                f"token type code {code}, which Megatron-LM does not have",
                where=where,
                remedy=_WRITERS,
            )
        expected = _HEADER.size + 12 * sequences + 8 * boundaries
        if index_size != expected:
            raise _truncated(index_path, expected, index_size, f"{sequences} sequences and {boundaries} boundaries")
        self.dtype: np.dtype[Any] = np.dtype(_TOKEN_TYPES[code])
        """Type of a token id in the file."""
        at = _HEADER.size
        self.lengths: npt.NDArray[np.int32] = np.frombuffer(index, "<i4", sequences, at)
        """Tokens of each sequence, ``[sequences]``."""
        self.offsets: npt.NDArray[np.int64] = np.frombuffer(index, "<i8", sequences, at + 4 * sequences)
        """Offset of each sequence in ``.bin`` in bytes, ``[sequences]``."""
        self.boundaries: npt.NDArray[np.int64] = np.frombuffer(index, "<i8", boundaries, at + 12 * sequences)
        """Document d is the sequences ``boundaries[d]`` up to ``boundaries[d + 1]``, ``[documents + 1]``."""
        if not boundaries or self.boundaries[0] != 0 or self.boundaries[-1] != sequences:
            raise InputError(f"document boundaries do not go from 0 to {sequences}", where=where)
        self.tokens = self._end(sequences - 1) if sequences else 0
        """Tokens of all sequences."""
        if bin_size != self.tokens * self.dtype.itemsize:
            raise _truncated(bin_path, self.tokens * self.dtype.itemsize, bin_size, f"{self.tokens} tokens")
        tokens = np.memmap(bin_path, dtype=self.dtype, mode="r") if self.tokens else np.empty(0, self.dtype)
        self._bin: npt.NDArray[Any] = np.asarray(tokens)  # a plain array over the map: slices of it cost half as much

    def _end(self, sequence: int) -> int:
        """Returns the position after the last token of a sequence, counted over the whole file."""
        offset = int(self.offsets[sequence])
        length = int(self.lengths[sequence])
        if offset < 0 or length < 0 or offset % self.dtype.itemsize:
            raise self._impossible(sequence)
        return offset // self.dtype.itemsize + length

    def _impossible(self, sequence: int) -> InputError:
        problem = f"sequence {sequence} has an impossible length or offset"
        return InputError(problem, where=str(suffixed(self.prefix, ".idx")))

    def __len__(self) -> int:
        """Returns the number of sequences."""
        return len(self.lengths)

    @property
    def documents(self) -> int:
        """Number of documents, empty ones included."""
        return len(self.boundaries) - 1

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        """Returns the token ids of a sequence, ``[lengths[index]]``."""
        end = self._end(index)
        if end > self.tokens:
            raise self._impossible(index)
        return self._bin[end - int(self.lengths[index]) : end]

    def joined(self, indices: Sequence[int]) -> npt.NDArray[Any]:
        """Returns the token ids of several sequences, one after the other: in one pass, however many there are."""
        chosen = np.asarray(indices, dtype=np.int64)
        lengths, offsets = self.lengths[chosen].astype(np.int64), self.offsets[chosen]
        firsts = offsets // self.dtype.itemsize
        wrong = (offsets < 0) | (lengths < 0) | (offsets % self.dtype.itemsize != 0) | (firsts + lengths > self.tokens)
        if wrong.any():
            raise self._impossible(int(chosen[wrong.argmax()]))
        return self.at(ranges(firsts, starts_of(lengths)))

    def at(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Returns the token ids at positions counted over the whole file, ``[n]``."""
        return np.asarray(self._bin[positions])

    def read(self, start: int, count: int) -> npt.NDArray[Any]:
        """Returns ``count`` token ids from token ``start`` of the whole stream, across document boundaries."""
        return self._bin[start : start + count]

    def verify(self) -> None:
        """Checks every entry of the index, which opening does not; memory is bounded whatever the size.

        Raises:
            InputError: lengths, offsets or boundaries contradict each other; names the first damaged sequence.
        """
        expected = 0
        for first in range(0, len(self), _INDEX_CHUNK):
            sizes = self.lengths[first : first + _INDEX_CHUNK].astype(np.int64) * self.dtype.itemsize
            ends = expected + np.cumsum(sizes)
            wrong = np.flatnonzero((sizes < 0) | (self.offsets[first : first + _INDEX_CHUNK] != ends - sizes))
            if len(wrong):
                raise self._impossible(first + int(wrong[0]))
            expected = int(ends[-1])
        for first in range(0, self.documents, _INDEX_CHUNK):
            falls = np.flatnonzero(np.diff(self.boundaries[first : first + _INDEX_CHUNK + 1]) < 0)
            if len(falls):
                problem = f"document {first + int(falls[0])} ends before it begins"
                raise InputError(problem, where=str(suffixed(self.prefix, ".idx")))


def content_fingerprint(prefix: Path) -> str:
    """Returns the hexadecimal SHA-256 of ``.bin`` followed by ``.idx``.

    Raises:
        InputError: a file is missing or cannot be read.
        JobError: the disk or the file server fails.
    """

    def read(path: Path, before: Any) -> Any:
        digest = before.copy()
        with open(path, "rb") as file:
            while block := file.read(_COPIED):
                digest.update(block)
        return digest

    digest: Any = hashlib.sha256()
    for suffix in (".bin", ".idx"):
        path = suffixed(prefix, suffix)
        digest = steadily(partial(read, path, digest), path)
    return str(digest.hexdigest())


def _size(path: Path) -> int:
    try:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_size
    except OSError as error:
        prefix = path.with_suffix("")
        if isinstance(error, FileNotFoundError) and prefix.suffix in (".bin", ".idx") and prefix.exists():
            remedy = f"give its prefix, {prefix.with_suffix('')}"
            raise InputError("is one file of a corpus", where=str(prefix), remedy=remedy) from None
        if isinstance(error, FileNotFoundError) and prefix.is_dir():
            remedy = f"give the prefix of a corpus, such as {prefix / 'corpus'}"
            raise InputError("is a folder, not a prefix", where=str(prefix), remedy=remedy) from None
        remedy = "a corpus is a pair of files PREFIX.bin and PREFIX.idx; build it again"
        raise unreadable(error, path, remedy=remedy) from None


def _truncated(path: Path, expected: int, found: int, content: str) -> InputError:
    state = "truncated" if found < expected else "too long"
    return InputError(f"{state}: expected {expected} bytes for {content}, found {found}", where=str(path))
