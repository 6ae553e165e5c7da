"""Reads the lines of a part in blocks, and says which line is at fault."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.readers.open import BUFFER
from megatron_kis.data_tools.readers.splits import TextPart

LONGEST_LINE = 16_000_000
"""Bytes of the longest line or document that is read, unless the user says otherwise.

Encoding takes up to 155 bytes of memory per byte of one text (tokenizers 0.23.3, 20 MB in a line, a vocabulary of 400;
sentencepiece 40, gigatoken 15): with this limit a process stays under 2.6 GB.
"""

OnBad = Callable[[int, InputError], None]
"""Told of a line (from 1, within its part) that holds no document, and why."""


class BadLineError(InputError):
    """A line that holds no document; the message names the line within its part."""

    def __init__(self, line: int, problem: str, remedy: str | None = None) -> None:
        """Describes what is wrong with ``line`` (from 1)."""
        super().__init__(problem, where=f"line {line}", remedy=remedy)
        self.line = line


def too_long(line: int, what: str, longest: int) -> BadLineError:
    """The error for a line or document (``line of 50000000 bytes``), where ``longest`` bytes are allowed."""
    remedy = "split it, or allow more with --longest-line of kis data (encoding takes up to 155 times as much memory)"
    return BadLineError(line, f"{what}; at most {longest}", remedy)


def iter_lines(
    part: TextPart, file: IO[bytes], on_bad: OnBad, longest: int = LONGEST_LINE
) -> Iterator[tuple[int, list[bytes]]]:
    """Yields (number of the first, from 1; some lines without their newlines) of the lines that begin in the part.

    Memory stays bounded: a line of more than ``longest`` bytes (and more than ``BUFFER``) is reported and dropped.
    """
    offset = 0
    if part.start:
        offset = file.seek(part.start - 1)
        offset += skip_line(file)
    number = 1
    while offset < part.stop and (block := file.read(min(BUFFER, part.stop - offset))):
        dropped = 0
        offset += len(block)
        if not block.endswith(b"\n"):
            begun = len(block) - block.rfind(b"\n") - 1
            rest = file.readline(max(1, longest - begun + 1))
            offset += len(rest)
            if begun + len(rest) > longest and not rest.endswith(b"\n"):
                more = skip_line(file)
                offset += more
                dropped = len(rest) + more
            else:
                block += rest
        lines = block.removesuffix(b"\n").split(b"\n")
        size = len(lines.pop()) + dropped if dropped else 0
        yield number, lines
        number += len(lines)
        if dropped:
            on_bad(number, too_long(number, f"line of {size} bytes", longest))
            number += 1


def skip_line(file: IO[bytes]) -> int:
    """Reads to the end of a line in bounded memory; returns how many bytes that were."""
    skipped = 0
    while block := file.readline(BUFFER):
        skipped += len(block)
        if block.endswith(b"\n"):
            break
    return skipped


def lines_before(path: Path, kind: str, starts: Iterable[int]) -> dict[int, int]:
    """Lines of a file of this kind before the first line of the parts that start at these bytes; reads the file once.

    Lines of a part are counted from 1: to these numbers the result is added. Rows of parquet files, and lines of files
    that are not cut, are counted in the whole file already.
    """
    if kind == ".parquet":
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
