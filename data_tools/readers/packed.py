"""Unpacks gzip, zstd, bzip2 and xz files, and refuses those that are damaged or cut off.

Each may be several streams one after another (``cat a.gz b.gz``, bgzip, pzstd, seekable zstd, pbzip2). A cut between
two streams cannot be detected, except in bgzip files, which end with an empty block.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from megatron_kis.common.errors import InputError
from megatron_kis.common.extras import import_extra

_MAGIC = {"gzip": (b"\x1f\x8b",), "bzip2": (b"BZh",), "xz": (b"\xfd7zXZ\x00",), "zstd": (b"\x28\xb5\x2f\xfd",)}
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")  # what follows "BZh" and a digit, which may begin a text
_SKIPPABLE = 0x184D2A50  # of zstd; the last four bits are free
_LARGEST_WINDOW = 1 << 31  # of `zstd --long=31`; also the memory that an xz file may take
_BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
_CHUNK = 1 << 16


def packing_of(start: bytes) -> str:
    """Returns ``gzip``, ``zstd``, ``bzip2`` or ``xz`` by a file's first bytes (16 are enough), "" for others."""
    if int.from_bytes(start[:4], "little") & ~0xF == _SKIPPABLE:
        return "zstd"
    found = next((name for name, magics in _MAGIC.items() if start.startswith(magics)), "")
    return "" if found == "bzip2" and start[4:10] not in _BZIP2_BLOCKS else found


@contextmanager
def unpacked(raw: IO[bytes], packing: str, path: Path, *, buffer: int, head: bool = False) -> Iterator[IO[bytes]]:
    """Opens a buffered stream of a packed file's content.

    Args:
        raw: the file, at its start.
        packing: its packing, as :func:`packing_of` returns it.
        path: its name, for messages.
        buffer: number of bytes to read at a time.
        head: only the first bytes are wanted: the file's end is not checked.

    Raises:
        InputError: it is damaged or cut off, which may turn out anywhere while it is read.
    """
    try:
        with io.BufferedReader(_STREAMS[packing](raw, head), buffer) as file:
            yield file
    except EOFError:
        raise InputError(f"truncated {packing} file", where=str(path), remedy="copy or make it again") from None
    except _DamageError as error:
        raise InputError(f"damaged {packing} file ({error})", where=str(path)) from None
    except _WindowError as error:
        problem = f"needs a window of {error.size / 2**30:.4g} GiB to unpack; at most {_LARGEST_WINDOW >> 30} are taken"
        raise InputError(problem, where=str(path), remedy="pack it again: zstd --long=31, or less") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"damaged gzip file ({error})", where=str(path)) from None


class _DamageError(Exception):
    """A library's error about a damaged file."""


class _WindowError(Exception):
    """A frame whose window is too large."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


def _gzip(raw: IO[bytes], head: bool) -> io.RawIOBase:
    start = raw.read(16)
    if not head and (start[3:4], start[10:]) == (b"\x04", b"\x06\x00BC\x02\x00"):  # the extra field of bgzip
        raw.seek(-min(len(_BGZIP_END), os.fstat(raw.fileno()).st_size), os.SEEK_END)
        if raw.read() != _BGZIP_END:
            raise EOFError
    raw.seek(0)
    return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]  # a BufferedIOBase, of which readinto is enough


def _zstd(raw: IO[bytes], head: bool) -> io.RawIOBase:
    zstandard = import_extra("zstandard", "for zst files")
    _check_frames(raw, first=head)
    raw.seek(0)
    decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
    stream = decompressor.stream_reader(raw, read_across_frames=True, closefd=False)
    return _Checked(stream, zstandard.ZstdError)


def _check_frames(raw: IO[bytes], *, first: bool) -> None:
    """Checks the header of the first frame, or of all.

    Goes from block to block of a zstd file (RFC 8878, section 3) and reads one buffer per 128 KiB of text. The library
    itself takes a file that was cut off for one that ends there.

    Raises:
        EOFError: the file ends within a frame.
        _WindowError: a frame takes too much memory.
        _DamageError: something else follows a frame.
    """
    size = os.fstat(raw.fileno()).st_size
    at = 0

    def number(count: int) -> int:
        nonlocal at
        raw.seek(at)
        taken = raw.read(count)
        if len(taken) < count:
            raise EOFError
        at += count
        return int.from_bytes(taken, "little")

    while at < size:
        start = at
        magic = number(4)
        if magic & ~0xF == _SKIPPABLE:
            length = number(4)
            at += length
            continue
        if magic != int.from_bytes(_MAGIC["zstd"][0], "little"):
            raise _DamageError(f"no frame begins at byte {start}")
        descriptor = number(1)
        single = descriptor >> 5 & 1
        checksum = descriptor >> 2 & 1
        exponent, eighths = divmod(0 if single else number(1), 8)
        at += (0, 1, 2, 4)[descriptor & 3]
        content = number((single, 2, 4, 8)[descriptor >> 6])
        window = content if single else (8 + eighths) << (7 + exponent)
        if window > _LARGEST_WINDOW:
            raise _WindowError(window)
        if first:
            return
        last = 0
        while not last:
            block = number(3)
            last = block & 1
            at += 1 if block >> 1 & 3 == 1 else block >> 3
        at += 4 * checksum
    if at > size:
        raise EOFError


class _Checked(io.RawIOBase):
    """A stream that turns its library's error into :class:`_DamageError`."""

    def __init__(self, stream: Any, error: type[Exception]) -> None:
        self._stream = stream
        self._error = error

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return int(self._stream.readinto(buffer))
        except self._error as error:
            raise _DamageError(str(error)) from None


class _Streams(io.RawIOBase):
    """Streams of bzip2 or xz one after another; what follows the last is damage, unless it is padding."""

    def __init__(self, raw: IO[bytes], new: Callable[[], Any], padding: bytes) -> None:
        self._raw = raw
        self._new = new
        self._padding = padding
        self._stream = new()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            taken = b""
            if self._stream.eof:
                taken = (self._stream.unused_data or self._raw.read(_CHUNK)).lstrip(self._padding)
                while not taken:
                    taken = self._raw.read(_CHUNK)
                    if not taken:
                        return 0
                    taken = taken.lstrip(self._padding)
                self._stream = self._new()
            elif self._stream.needs_input:
                taken = self._raw.read(_CHUNK)
                if not taken:
                    raise EOFError
            try:
                text = self._stream.decompress(taken, len(buffer))
            except (OSError, lzma.LZMAError) as error:  # bz2 reports damage as an OSError
                raise _DamageError(str(error)) from None
            if text:
                buffer[: len(text)] = text
                return len(text)


def _bzip2(raw: IO[bytes], _head: bool) -> io.RawIOBase:
    return _Streams(raw, bz2.BZ2Decompressor, b"")


def _xz(raw: IO[bytes], _head: bool) -> io.RawIOBase:
    return _Streams(raw, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _LARGEST_WINDOW), b"\0")


_STREAMS: dict[str, Callable[[IO[bytes], bool], io.RawIOBase]] = {
    "gzip": _gzip,
    "zstd": _zstd,
    "bzip2": _bzip2,
    "xz": _xz,
}
