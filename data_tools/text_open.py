"""Opens text files by their kind, which their name tells, and unpacks them."""

from __future__ import annotations

import gzip
import importlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from megatron_kis.errors import InputError

BUFFER = 1 << 20
"""Bytes that are read at a time."""

_KINDS = (".jsonl", ".txt", ".tsv", ".parquet")
_PACKED = (".gz", ".zst")


def kind_of(path: Path) -> tuple[str, str]:
    """Kind of a text file, and how it is packed ("" where it is not)."""
    packed = path.suffix if path.suffix in _PACKED else ""
    suffix = Path(path.stem).suffix if packed else path.suffix
    kind = ".jsonl" if suffix == ".ndjson" else suffix
    if kind not in _KINDS or (kind == ".parquet" and packed):
        kinds = "expected .jsonl, .txt or .tsv (also .gz or .zst), or .parquet"
        raise InputError(f"unknown kind of text file {''.join(path.suffixes)!r}", where=str(path), remedy=kinds)
    return kind, packed


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A buffered stream of the file's content, unpacked."""
    packed = path.suffix if path.suffix in _PACKED else ""
    with open(path, "rb") as raw:
        if packed == ".gz":
            with io.BufferedReader(gzip.GzipFile(fileobj=raw), BUFFER) as file:
                yield file
        elif packed == ".zst":
            zstandard = _library("zstandard", "zst files")
            stream = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True, closefd=False)
            try:
                with io.BufferedReader(stream, BUFFER) as file:
                    yield file
            except zstandard.ZstdError as error:
                raise InputError(f"damaged zstd file ({error})", where=str(path)) from None
        else:
            yield raw


def open_parquet(path: Path) -> Any:
    """A ``pyarrow.parquet.ParquetFile``; a context manager.

    Raises:
        InputError: the file is no parquet file, or pyarrow is not installed.
    """
    library = _library("pyarrow.parquet", "parquet files")
    try:
        return library.ParquetFile(path)
    except (ValueError, OSError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise InputError(f"no parquet file ({str(error).splitlines()[0]})", where=str(path)) from None


def _library(name: str, purpose: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        remedy = "pip install 'megatron-kis[corpus]'"
        raise InputError(f"{name} is needed for {purpose}", remedy=remedy) from None
