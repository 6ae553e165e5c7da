"""Reads the lines of a part in blocks, and says which line is at fault."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from data_tools.text_open import BUFFER, kind_of
from data_tools.text_parts import TextPart
from megatron_kis.errors import InputError

LONGEST_LINE = 128 << 20
"""Bytes of the longest line that is read: longer ones are no text, and would not fit into memory."""

OnBad = Callable[[int, InputError], None]
"""Told of a line (from 1, within its part) that holds no document, and why."""


class BadLineError(InputError):
    """A line that holds no document; the message names the line within its part."""

    def __init__(self, line: int, problem: str, remedy: str | None = None) -> None:
        """Describes what is wrong with ``line`` (from 1)."""
        super().__init__(problem, where=f"line {line}", remedy=remedy)
        self.line = line


def iter_lines(part: TextPart, file: IO[bytes], on_bad: OnBad) -> Iterator[tuple[int, list[bytes]]]:
    """Yields (number of the first, from 1; some lines without their newlines) of the lines that begin in the part.

    Memory stays bounded: a line longer than any document is reported and dropped.
    """
    offset = 0
    if part.start:
        offset = file.seek(part.start - 1)
        offset += _skip_line(file)
    number = 1
    while offset < part.stop and (block := file.read(min(BUFFER, part.stop - offset))):
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
    while block := file.readline(BUFFER):
        skipped += len(block)
        if block.endswith(b"\n"):
            break
    return skipped


def lines_before(path: Path, starts: Iterable[int]) -> dict[int, int]:
    """Lines of a file before the first line of the parts that start at these bytes; reads the file once.

    Lines of a part are counted from 1: to these numbers the result is added. Rows of parquet files, and lines of files
    that are not cut, are counted in the whole file already.
    """
    if kind_of(path)[0] == ".parquet":
        return dict.fromkeys(starts, 0)
    found: dict[int, int] = {}
    count, at, last = 0, 0, b"\n"
    with open(path, "rb") as file:
        for start in sorted(set(starts)):
            while at < start and (block := file.read(min(BUFFER, start - at))):
                count += block.count(b"\n")
                at, last = at + len(block), block[-1:]
            found[start] = count + (last != b"\n")
    return found


def decoded(number: int, line: bytes) -> str:
    """A line as text; the first of a file may begin with a byte order mark.

    Raises:
        BadLineError: it is not UTF-8.
    """
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise BadLineError(number, f"not UTF-8 (byte {error.start} of the line)") from None
