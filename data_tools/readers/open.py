"""Opens text files. The kind follows from the name or is given by the user; the packing follows from the content."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from megatron_kis.common.errors import FIRST_BYTES, InputError, nearest, wider_encoding
from megatron_kis.common.extras import import_extra
from megatron_kis.common.files import unreadable
from megatron_kis.data_tools.readers.json_depth import too_deep
from megatron_kis.data_tools.readers.packed import packing_of, unpacked

BUFFER = 1 << 20
"""Number of bytes that are read at a time."""

FORMATS = ("jsonl", "txt", "tsv", "parquet")
"""The formats that a user can give for files of any name."""

_KINDS = {f".{name}": f".{name}" for name in FORMATS} | {".ndjson": ".jsonl", ".json": ".jsonl"}
_PACKED = {".gz": "gzip", ".bgz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bzip2", ".xz": "xz"}
_EXPECTED = (
    "expected .jsonl (or .json, .ndjson), .txt or .tsv, also .gz, .zst, .bz2 or .xz, or .parquet; files of another name"
    " are read with --format, or data.text_format of a study"
)
_ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar", ".lz4", ".z", ".br", ".lzma")
_TABLES = (".csv", ".arrow", ".feather", ".avro", ".orc")
_NOT_READ = dict.fromkeys(_ARCHIVES, "unpack it first")
_NOT_READ |= dict.fromkeys(_TABLES, "convert it to .jsonl, .tsv or .parquet")
_OTHERS = {
    b"PK\x03\x04": "a zip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!\x1a\x07": "a rar archive",
    b"\x04\x22\x4d\x18": "an lz4 file",
    b"\x1f\x9d": "a file of compress",
    b"PAR1\x15": "a parquet file",
    b"ARROW1\x00": "an arrow file",
}
_TAR = b"ustar"
_TAR_AT = 257


def kind_of(path: Path, text_format: str | None = None) -> str:
    """Returns the kind of a text file: ``.jsonl``, ``.txt``, ``.tsv`` or ``.parquet``, by its name or as given.

    Raises:
        InputError: an unknown kind or format.
    """
    if text_format is not None:
        if text_format not in FORMATS:
            raise InputError(f"unknown format {text_format!r}", remedy=nearest(text_format, FORMATS))
        return f".{text_format}"
    name = Path(path.name.lower())
    packed = name.suffix if name.suffix in _PACKED else ""
    suffix = Path(name.stem).suffix if packed else name.suffix
    if path.is_dir():
        raise InputError("is a folder", where=str(path), remedy=f"name its files, as '{path}/*.jsonl'")
    kind = _KINDS.get(suffix)
    if kind is None or (kind == ".parquet" and packed):
        remedy = _NOT_READ.get(suffix, _EXPECTED)
        raise InputError(f"unknown kind of text file {suffix + packed!r}", where=str(path), remedy=remedy)
    return kind


def is_packed(path: Path) -> bool:
    """Returns whether a file is packed, by its content or else by its name."""
    try:
        with open(path, "rb") as raw:
            return bool(packing_of(raw.read(16)) or path.suffix.lower() in _PACKED)
    except OSError as error:
        raise unreadable(error, path) from None


@contextmanager
def open_text(path: Path, *, head: bool = False) -> Iterator[IO[bytes]]:
    """Opens a buffered stream of the file's content, unpacked.

    Args:
        path: the file.
        head: only the first bytes are wanted.

    Raises:
        InputError: it is damaged or cut off, or not packed as its name says.
    """
    with open(path, "rb") as raw:
        start = raw.read(16)
        raw.seek(0)
        found = packing_of(start)
        named = _PACKED.get(path.suffix.lower(), "")
        if named and not found:
            problem = (
                f"no {named} file in spite of its name" if start else f"empty, which no {named} file is (truncated?)"
            )
            remedy = "if it is unpacked already, name it so" if start else None
            raise InputError(problem, where=str(path), remedy=remedy)
        if found:
            with unpacked(raw, found, path, buffer=FIRST_BYTES if head else BUFFER, head=head) as file:
                yield file
        else:
            yield raw


def check_head(path: Path, kind: str) -> None:
    """Refuses a file whose first bytes show that it is no text of this kind.

    Raises:
        InputError: names the file, what it is, and how to make it readable.
    """
    try:
        with open_text(path, head=True) as file:
            start = file.peek(FIRST_BYTES)[:FIRST_BYTES]  # type: ignore[attr-defined]  # all of them are buffered
            ends_with_returns = kind in (".txt", ".tsv") and b"\0" not in start and _only_returns(file)
    except OSError as error:
        raise unreadable(error, path) from None
    other = next((what for magic, what in _OTHERS.items() if start.startswith(magic)), None)
    if start[_TAR_AT:].startswith(_TAR):
        other = "a tar archive"
    if packing := packing_of(start):
        problem = f"is packed twice: its content is a {packing} file again"
        raise InputError(problem, where=str(path), remedy="unpack it once")
    if other:
        raise InputError(f"is {other}, not text", where=str(path), remedy=f"unpack or convert it to {kind} first")
    if encoding := wider_encoding(start):
        problem, remedy = encoding
        raise InputError(problem, where=str(path), remedy=remedy)
    if ends_with_returns:
        problem = r"has no line ends but '\r', as of an old Mac"
        raise InputError(problem, where=str(path), remedy=r"convert them: tr '\r' '\n'")
    if kind == ".jsonl" and (what := _one_document(start.removeprefix(b"\xef\xbb\xbf").lstrip())):
        problem = f"is one JSON {what}, not one object per line"
        remedy = f"convert it: jq -c {repr('.[]') if what == 'array' else '.'}"
        raise InputError(problem, where=str(path), remedy=remedy)


def _only_returns(file: IO[bytes]) -> bool:
    r"""Returns whether ``\r`` ends lines and ``\n`` none. Reads to the first ``\n``, or all in bounded memory."""
    found = False
    before = b""
    while block := file.readline(BUFFER):
        if block.endswith(b"\n"):
            return False
        text = (before + block).lstrip()
        found = found or b"\r" in text.rstrip()  # one after all text ends no line but the last
        before = text[:1] + (b"\r" if b"\r" in text[len(text.rstrip()) :] else b"")
    return found


def _one_document(start: bytes) -> str | None:
    """Returns ``array`` or ``object`` where a file begins as one JSON document instead of JSON lines."""
    line, _, rest = start.partition(b"\n")
    if line.strip() == b"{":
        return "object"
    if not line.startswith(b"["):
        return None
    if b"\n" not in start and not line[1:].lstrip().startswith((b"{", b"[")):
        return None  # a long line of something else, which ends later
    if too_deep(line):
        return "array"
    try:
        json.loads(line)
    except ValueError:
        return "array"
    return None if rest.strip() else "array"  # one wrong line among others is an error of that line


def open_parquet(path: Path) -> Any:
    """Opens a ``pyarrow.parquet.ParquetFile``, which is a context manager.

    Raises:
        InputError: the file is no parquet file, or pyarrow is not installed.
    """
    parquet = import_extra("pyarrow.parquet", "for parquet files")
    try:
        return parquet.ParquetFile(path, page_checksum_verification=True)
    except (ValueError, OSError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise InputError(f"not a parquet file ({str(error).splitlines()[0]})", where=str(path)) from None
