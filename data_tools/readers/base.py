"""The base classes of the readers, and the errors of lines that hold no document."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from megatron_kis.common.errors import InputError, not_utf8
from megatron_kis.data_tools.readers.open import BUFFER, check_head, open_text
from megatron_kis.data_tools.readers.parts import TextPart

LONGEST_LINE = 16_000_000
"""Default limit of the bytes of a line or document.

Encoding takes up to 155 bytes of memory per byte of one text (tokenizers 0.23.3, 20 MB in a line, a vocabulary of 400;
sentencepiece 40, gigatoken 15): with this limit a process stays under 2.6 GB.
"""

OnBad = Callable[[int, InputError], None]
"""Called with the number of a line that holds no document (from 1, within its part), and the reason."""

Block = tuple[Sequence[int], list[str]]
"""Documents: the first line of each, from 1 within its part, and the texts."""


class BadLineError(InputError):
    """A line that holds no document; the message names the line within its part."""

    def __init__(self, line: int, problem: str, remedy: str | None = None) -> None:
        """Describes the problem of ``line`` (from 1)."""
        super().__init__(problem, where=f"line {line}", remedy=remedy)
        self.line = line
        """Number of the line within its part, from 1."""


def too_long(line: int, what: str, longest: int) -> BadLineError:
    """Returns the error for a line or document (``line of 50000000 bytes``) where ``longest`` bytes are allowed."""
    remedy = "split it, or allow more with --longest-line of kis data (encoding takes up to 155 times as much memory)"
    return BadLineError(line, f"{what}; at most {longest}", remedy)


class Reader(ABC):
    """Reads the documents of a part; one subclass per kind of file."""

    def __init__(self, part: TextPart, *, text_key: str, on_bad: OnBad, longest: int) -> None:
        """Prepares to read ``part``; see ``readers.documents.iter_blocks`` for the arguments."""
        self.part = part
        self.text_key = text_key
        self.on_bad = on_bad
        self.longest = longest

    @abstractmethod
    def blocks(self) -> Iterator[Block]:
        """Yields the documents in order, empty ones included, some hundred at a time."""


class LineReader(Reader):
    """Reads a kind of file that consists of lines."""

    def blocks(self) -> Iterator[Block]:
        """Yields the documents of the opened file."""
        if self.part.start == 0:
            check_head(self.part.path, self.part.kind)
        with open_text(self.part.path) as file:
            yield from self._blocks(file)

    @abstractmethod
    def _blocks(self, file: IO[bytes]) -> Iterator[Block]:
        """Yields the documents of the part, of whose file this is the content."""

    def _lines(self, file: IO[bytes], refuse: OnBad) -> Iterator[tuple[int, list[bytes]]]:
        """Yields (number of the first, from 1; some lines without their newlines) of the lines that begin in the part.

        Memory stays bounded: a line of more than ``longest`` bytes (and more than ``BUFFER``) is refused and dropped.
        """
        offset = 0
        if self.part.start:
            offset = file.seek(self.part.start - 1)
            offset += skip_line(file)
        number = 1
        while offset < self.part.stop and (block := file.read(min(BUFFER, self.part.stop - offset))):
            dropped = 0
            offset += len(block)
            if not block.endswith(b"\n"):
                begun = len(block) - block.rfind(b"\n") - 1
                rest = file.readline(max(1, self.longest - begun + 1))
                offset += len(rest)
                if begun + len(rest) > self.longest and not rest.endswith(b"\n"):
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
                refuse(number, too_long(number, f"line of {size} bytes", self.longest))
                number += 1


def skip_line(file: IO[bytes]) -> int:
    """Reads to the end of a line in bounded memory and returns the number of its bytes."""
    skipped = 0
    while block := file.readline(BUFFER):
        skipped += len(block)
        if block.endswith(b"\n"):
            break
    return skipped


def decoded(number: int, line: bytes) -> str:
    """Returns a line as text; the first of a file may begin with a byte order mark.

    Raises:
        BadLineError: it is not UTF-8.
    """
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise BadLineError(number, *not_utf8(error, of=" of the line")) from None
