"""Plain text: documents between blank lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.readers.base import BadLineError, Block, LineReader, OnBad, decoded, skip_line, too_long
from megatron_kis.data_tools.readers.parts import TO_THE_END


class TxtReader(LineReader):
    """Reads plain text; a document belongs to the part, or file, in which the blank line before it begins."""

    def _blocks(self, file: IO[bytes]) -> Iterator[Block]:
        document = _Paragraph(self.on_bad, self.longest, inside=self.part.start == 0)

        def belongs(number: int, line: bytes) -> bool:
            """Adds a line to the document, and returns whether it belongs to one; a blank one does not."""
            try:
                text = decoded(number if self.part.start == 0 else 0, line)
            except BadLineError as error:
                document.refuse(number, BadLineError(number, error.problem))
                return True
            if text.strip():
                document.add(number, text, len(line))
                return True
            return False

        number = 0
        for first, lines in self._lines(file, document.refuse):
            for number, line in enumerate(lines, start=first):
                if not belongs(number, line):
                    yield from document.end()
        # The last document may continue after the part.
        while document.inside and self.part.stop != TO_THE_END and (line := file.readline(self.longest + 1)):
            number += 1
            if len(line) > self.longest and not line.endswith(b"\n"):
                size = len(line) + skip_line(file)
                document.refuse(number, too_long(number, f"line of {size} bytes", self.longest))
            elif not belongs(number, line.removesuffix(b"\n")):
                break
        if document.inside:
            yield from document.end()


class _Paragraph:
    """The document between blank lines that is being read."""

    def __init__(self, on_bad: OnBad, longest: int, *, inside: bool) -> None:
        self.inside = inside
        """Whether the document belongs to the part: the first lines of a part may continue one of the part before."""
        self._on_bad = on_bad
        self._longest = longest
        self._clear()

    def _clear(self) -> None:
        self._lines: list[str] = []
        self._first = 0
        self._size = 0
        self._bad = False

    def refuse(self, line: int, error: InputError) -> None:
        """Reports once why there is no document, and drops its lines until it ends."""
        if self.inside and not self._bad:
            self._on_bad(line, error)
        self._bad = True
        self._lines = []

    def add(self, number: int, text: str, size: int) -> None:
        """Adds a line that is not blank."""
        self._first = self._first or number
        self._size += size + 1
        if self._size - 1 > self._longest:
            what = f"document of {self._size - 1} bytes or more"
            self.refuse(self._first, too_long(self._first, what, self._longest))
        if self.inside and not self._bad:
            self._lines.append(text)

    def end(self) -> Iterator[Block]:
        """Yields the document, if there is one; the next one belongs to the part."""
        if self._lines:
            yield [self._first], ["\n".join(self._lines).strip("\r\n")]
        self._clear()
        self.inside = True
