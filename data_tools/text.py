"""Reads documents from text files, one at a time, with the place each came from.

Formats, by file name: ``.jsonl``/``.ndjson`` (one JSON object a line, the text under ``text_key``), ``.txt`` (documents
separated by blank lines), ``.tsv`` (a header line, the text in the column ``text_key``), each also as ``.gz`` and
``.zst``; and ``.parquet`` (a document a row, the text in the column ``text_key``).

A file is read whole or as one of the parts that ``plan_parts`` cuts it into, so that several processes share it and a
part can be done again alone. Documents come in the same order either way, and memory is bounded by the longest line.
"""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import orjson

from megatron_kis.errors import InputError, nearest

LONGEST_LINE = 128 << 20
"""Bytes of the longest line that is read: longer ones are no text, and would not fit into memory."""

_KINDS = (".jsonl", ".txt", ".tsv", ".parquet")
_PACKED = (".gz", ".zst")
_BUFFER = 1 << 20
_TO_THE_END = 1 << 62  # of a packed file, whose content is longer than its bytes on disk
_PARQUET_ROWS = 256  # a batch in memory: some hundred documents

Block = tuple[Sequence[int], list[str]]
"""Documents: the first line of each, from 1 within its part, and the texts."""

OnBad = Callable[[int, InputError], None]
"""Told of a line (from 1, within its part) that holds no document, and why."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document of general text."""

    text: str
    """The text, as it stands in the file."""
    source: Path
    """The file it came from."""
    line: int
    """Its first line there, or its row, from 1. Of a part that does not begin its file: from 1 within the part."""


@dataclass(frozen=True, slots=True)
class TextPart:
    """A file, or a piece of one that can be read without the rest."""

    path: Path
    """The file."""
    start: int
    """First byte of a .jsonl or .txt file, first row group of a .parquet file; 0 for a whole file of another kind."""
    stop: int
    """The byte, or row group, after the last. A line belongs to the part in which it begins."""
    size: int
    """Bytes on disk, for progress."""


def expand(patterns: Iterable[Path]) -> list[Path]:
    """Files of the patterns (``*``, ``?``, ``[...]``, ``**``) in sorted order; other paths stay as they are.

    Raises:
        InputError: a pattern matches nothing.
    """
    paths: list[Path] = []
    for pattern in patterns:
        found = [pattern]
        if glob.has_magic(str(pattern)) and not pattern.exists():
            names = glob.glob(str(pattern), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
            found = sorted(path for path in map(Path, names) if path.is_file())
            if not found:
                raise InputError("matches no file", where=str(pattern))
        paths += found
    return paths


def iter_documents(paths: Iterable[Path], *, text_key: str = "text") -> Iterator[Document]:
    """Yields the documents of all files in order. Documents without any visible character are skipped.

    Raises:
        InputError: a file is missing, of an unknown kind, damaged, not UTF-8, or a line is malformed (``file:line``).
    """
    for path in paths:
        for document in iter_part(whole(path), text_key=text_key):
            if document.text.strip():
                yield document


def iter_part(part: TextPart, *, text_key: str = "text", on_bad: OnBad | None = None) -> Iterator[Document]:
    """Yields the documents of a part in order, empty ones included; see :func:`iter_blocks`."""
    for lines, texts in iter_blocks(part, text_key=text_key, on_bad=on_bad):
        for line, text in zip(lines, texts, strict=True):
            yield Document(text, part.path, line)


def iter_blocks(part: TextPart, *, text_key: str = "text", on_bad: OnBad | None = None) -> Iterator[Block]:
    """Yields the documents of a part in order, empty ones included, some hundred at a time.

    Args:
        part: what to read.
        text_key: JSON key or column of the text.
        on_bad: told of each line that holds no document, which is then skipped; None raises instead.

    Yields:
        The first line of each document, and its text.

    Raises:
        InputError: the file is missing or damaged, or a line is malformed and ``on_bad`` is None. Of a part that does
            not begin its file the line is counted within the whole file, which takes a look at all before it.
    """
    kind, _ = _kind(part.path)
    try:
        if kind == ".parquet":
            yield from _iter_parquet(part, text_key, on_bad or _raise)
            return
        with _opened(part.path) as file:
            read = {".jsonl": _iter_jsonl, ".txt": _iter_txt, ".tsv": _iter_tsv}[kind]
            yield from read(part, file, text_key, on_bad or _raise)
    except BadLineError as error:
        first = _lines_before(part) if part.start else 0
        raise InputError(error.problem, where=f"{part.path}:{first + error.line}", remedy=error.remedy) from None
    except (gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"damaged gzip file ({error})", where=str(part.path)) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", where=str(part.path)) from None


class BadLineError(InputError):
    """A line that holds no document; the message names the line within its part."""

    def __init__(self, line: int, problem: str, remedy: str | None = None) -> None:
        """Describes what is wrong with ``line`` (from 1)."""
        super().__init__(problem, where=f"line {line}", remedy=remedy)
        self.line = line


def _raise(_line: int, error: InputError) -> None:
    raise error


def check_text_files(paths: Iterable[Path]) -> None:
    """Refuses missing files and unknown kinds before any work starts.

    Raises:
        InputError: names the file and the kinds that are read.
    """
    for path in paths:
        _kind(path)
        if not path.is_file():
            raise InputError("no such file", where=str(path))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line without its end) of a UTF-8 file; blank lines are skipped.

    Raises:
        InputError: the file cannot be read, or a line is not UTF-8 (``file:line``).
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    text = _decoded(number, line)
                except BadLineError as error:
                    raise InputError(error.problem, where=f"{path}:{number}") from None
                if text.strip():
                    yield number, text.rstrip("\r\n")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None


def whole(path: Path) -> TextPart:
    """All of a file as one part."""
    kind, packed = _kind(path)
    size = path.stat().st_size if path.is_file() else 0
    stop = _row_groups(path) if kind == ".parquet" else _TO_THE_END if packed else size
    return TextPart(path, 0, stop, size)


def plan_parts(paths: Sequence[Path], *, part_bytes: int) -> list[TextPart]:
    """Cuts files into parts of about ``part_bytes`` where that is possible (.jsonl, .txt, .parquet), in order.

    Raises:
        InputError: a file is missing, of an unknown kind, or no parquet file in spite of its name.
    """
    check_text_files(paths)
    return [part for path in paths for part in _cut(whole(path), part_bytes)]


def _cut(part: TextPart, part_bytes: int) -> Iterator[TextPart]:
    kind, packed = _kind(part.path)
    pieces = -(-part.size // part_bytes)
    if packed or kind == ".tsv":
        pieces = 1
    elif kind == ".parquet":
        pieces = min(pieces, part.stop)
    for index in range(max(pieces, 1)):
        start, stop = (part.stop * edge // max(pieces, 1) for edge in (index, index + 1))
        yield replace(part, start=start, stop=stop, size=part.size // max(pieces, 1))


def _kind(path: Path) -> tuple[str, str]:
    """Kind of a text file, and how it is packed ("" where it is not)."""
    packed = path.suffix if path.suffix in _PACKED else ""
    suffix = Path(path.stem).suffix if packed else path.suffix
    kind = ".jsonl" if suffix == ".ndjson" else suffix
    if kind not in _KINDS or (kind == ".parquet" and packed):
        kinds = "expected .jsonl, .txt or .tsv (also .gz or .zst), or .parquet"
        raise InputError(f"unknown kind of text file {''.join(path.suffixes)!r}", where=str(path), remedy=kinds)
    return kind, packed


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """A buffered stream of the file's content, unpacked."""
    packed = path.suffix if path.suffix in _PACKED else ""
    with open(path, "rb") as raw:
        if packed == ".gz":
            with io.BufferedReader(gzip.GzipFile(fileobj=raw), _BUFFER) as file:
                yield file
        elif packed == ".zst":
            zstandard = _library("zstandard", "zst files")
            stream = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True, closefd=False)
            try:
                with io.BufferedReader(stream, _BUFFER) as file:
                    yield file
            except zstandard.ZstdError as error:
                raise InputError(f"damaged zstd file ({error})", where=str(path)) from None
        else:
            yield raw


def _library(name: str, purpose: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        remedy = "pip install 'megatron-kis[corpus]'"
        raise InputError(f"{name} is needed for {purpose}", remedy=remedy) from None


def _lines(part: TextPart, file: IO[bytes], on_bad: OnBad) -> Iterator[tuple[int, list[bytes]]]:
    """Yields (number of the first, from 1; some lines without their newlines) of the lines that begin in the part.

    Memory stays bounded: a line longer than any document is reported and dropped.
    """
    offset = 0
    if part.start:
        offset = file.seek(part.start - 1)
        offset += _skip_line(file)
    number = 1
    while offset < part.stop and (block := file.read(min(_BUFFER, part.stop - offset))):
        too_long = 0
        if not block.endswith(b"\n"):
            rest = file.readline(LONGEST_LINE)
            if len(rest) == LONGEST_LINE and not rest.endswith(b"\n"):
                too_long = len(rest) + _skip_line(file)
                offset += too_long
            else:
                block += rest
        offset += len(block)
        lines = block.removesuffix(b"\n").split(b"\n")
        if too_long:
            length = len(lines.pop()) + too_long
            yield number, lines
            number += len(lines)
            on_bad(number, BadLineError(number, f"line of {length} bytes", f"at most {LONGEST_LINE}"))
            number += 1
        else:
            yield number, lines
            number += len(lines)


def _skip_line(file: IO[bytes]) -> int:
    skipped = 0
    while block := file.readline(_BUFFER):
        skipped += len(block)
        if block.endswith(b"\n"):
            break
    return skipped


def _lines_before(part: TextPart) -> int:
    """Lines of the file that end before the part's first line."""
    return lines_before(part.path, [part.start])[part.start]


def lines_before(path: Path, starts: Iterable[int]) -> dict[int, int]:
    """Lines of a file before the first line of the parts that start at these bytes; reads the file once.

    Lines of a part are counted from 1: to these numbers the result is added. Rows of parquet files, and lines of files
    that are not cut, are counted in the whole file already.
    """
    if _kind(path)[0] == ".parquet":
        return dict.fromkeys(starts, 0)
    found: dict[int, int] = {}
    count, at, last = 0, 0, b"\n"
    with open(path, "rb") as file:
        for start in sorted(set(starts)):
            while at < start and (block := file.read(min(_BUFFER, start - at))):
                count += block.count(b"\n")
                at, last = at + len(block), block[-1:]
            found[start] = count + (last != b"\n")
    return found


def _iter_jsonl(part: TextPart, file: IO[bytes], text_key: str, on_bad: OnBad) -> Iterator[Block]:
    loads = orjson.loads
    for first, lines in _lines(part, file, on_bad):
        try:
            texts = [loads(line)[text_key] for line in lines]
        except (ValueError, KeyError, TypeError, IndexError):
            texts = []
        if texts and set(map(type, texts)) == {str}:
            yield range(first, first + len(lines)), texts
            continue
        # The standard library decides what is JSON, and says what is wrong; orjson is five times as fast.
        numbers, texts = [], []
        for number, line in enumerate(lines, start=first):
            if line.strip():
                try:
                    texts.append(_text_of(number, line, text_key))
                    numbers.append(number)
                except BadLineError as error:
                    on_bad(number, error)
        yield numbers, texts


def _text_of(number: int, line: bytes, text_key: str) -> str:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadLineError(number, f"malformed JSON line ({error})") from None
    if not isinstance(row, dict):
        raise BadLineError(number, "not a JSON object")
    if text_key not in row:
        raise BadLineError(number, f"no key {text_key!r}", nearest(text_key, row))
    text = row[text_key]
    if not isinstance(text, str):
        raise BadLineError(number, f"{text_key!r} is {type(text).__name__}, not a string")
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can escape half a surrogate pair, which no UTF-8 encoder accepts
        raise BadLineError(number, "holds half of a surrogate pair, which is not text") from None
    return text


def _decoded(number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise BadLineError(number, f"not UTF-8 (byte {error.start} of the line)") from None


def _iter_txt(part: TextPart, file: IO[bytes], _text_key: str, on_bad: OnBad) -> Iterator[Block]:
    """A paragraph belongs to the part in which the blank line before it begins, or its file."""
    inside = part.start == 0
    paragraph: list[str] = []
    damage: BadLineError | None = None
    first = 0

    def finished() -> Iterator[Block]:
        if damage:
            on_bad(damage.line, damage)
        elif paragraph:
            yield [first], ["\n".join(paragraph).strip("\r\n")]

    for number, line in _lines_to_blank(part, file, on_bad):
        try:
            text = _decoded(number if part.start == 0 else 0, line)
        except BadLineError as error:
            text, damage = "?", damage or (BadLineError(number, error.problem) if inside else None)
        if text.strip():
            first = first if paragraph else number
            if inside:
                paragraph.append(text)
            continue
        yield from finished()
        paragraph, damage, inside = [], None, True
    yield from finished()


def _lines_to_blank(part: TextPart, file: IO[bytes], on_bad: OnBad) -> Iterator[tuple[int, bytes]]:
    """The lines of a part, and those after it up to the first blank line."""
    number = 0
    for first, lines in _lines(part, file, on_bad):
        for number, line in enumerate(lines, start=first):
            yield number, line
    while (line := file.readline(LONGEST_LINE)) and part.stop < _TO_THE_END:
        number += 1
        yield number, line.removesuffix(b"\n")
        try:
            if not _decoded(0, line).strip():
                return
        except BadLineError:
            continue


def _iter_tsv(part: TextPart, file: IO[bytes], text_key: str, on_bad: OnBad) -> Iterator[Block]:
    columns: list[str] | None = None
    for first, lines in _lines(part, file, on_bad):
        numbers: list[int] = []
        texts: list[str] = []
        for number, line in enumerate(lines, start=first):
            try:
                row = _decoded(number, line).rstrip("\r\n")
                fields = next(csv.reader(io.StringIO(row), delimiter="\t", quoting=csv.QUOTE_NONE), [])
                if columns is not None and fields and len(fields) != len(columns):
                    raise BadLineError(number, f"{len(fields)} fields, the header has {len(columns)}")
            except (BadLineError, csv.Error) as error:
                on_bad(number, error if isinstance(error, BadLineError) else BadLineError(number, str(error)))
                continue
            if columns is None:
                columns = fields
                if text_key not in columns:
                    problem = f"no column {text_key!r}"
                    raise InputError(problem, where=f"{part.path}:1", remedy=nearest(text_key, columns))
            elif fields:
                numbers.append(number)
                texts.append(fields[columns.index(text_key)])
        yield numbers, texts


def _parquet(path: Path) -> Any:
    library = _library("pyarrow.parquet", "parquet files")
    try:
        return library.ParquetFile(path)
    except (ValueError, OSError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise InputError(f"no parquet file ({str(error).splitlines()[0]})", where=str(path)) from None


def _row_groups(path: Path) -> int:
    if not path.is_file():
        raise InputError("no such file", where=str(path))
    with _parquet(path) as file:
        return int(file.metadata.num_row_groups)


def _iter_parquet(part: TextPart, text_key: str, on_bad: OnBad) -> Iterator[Block]:
    with _parquet(part.path) as file:
        columns = file.schema_arrow.names
        if text_key not in columns:
            remedy = nearest(text_key, columns)
            raise InputError(f"no column {text_key!r}", where=str(part.path), remedy=remedy)
        row = sum(file.metadata.row_group(group).num_rows for group in range(part.start))
        groups = list(range(part.start, part.stop))
        try:
            for batch in file.iter_batches(_PARQUET_ROWS, row_groups=groups, columns=[text_key]) if groups else ():
                numbers: list[int] = []
                texts: list[str] = []
                # As bytes: one value that is not UTF-8 would otherwise stop the whole batch.
                for value in batch.column(0).cast("binary").to_pylist():
                    row += 1
                    try:
                        texts.append(value.decode())
                        numbers.append(row)
                    except AttributeError:
                        on_bad(row, BadLineError(row, f"{text_key!r} is null"))
                    except UnicodeDecodeError as error:
                        on_bad(row, BadLineError(row, f"not UTF-8 (byte {error.start} of the text)"))
                yield numbers, texts
        except (ValueError, NotImplementedError) as error:
            problem = f"column {text_key!r} cannot be read as text ({str(error).splitlines()[0]})"
            raise InputError(problem, where=str(part.path)) from None
