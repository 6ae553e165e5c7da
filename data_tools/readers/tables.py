"""Tables with the text in a column: .tsv files with a header line, and parquet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from megatron_kis.common.errors import InputError, nearest
from megatron_kis.data_tools.readers.base import BadLineError, Block, LineReader, Reader, decoded, too_long
from megatron_kis.data_tools.readers.open import open_parquet
from megatron_kis.data_tools.readers.parts import TextPart

_PARQUET_ROWS = 16  # in memory together, before their lengths are known


class TsvReader(LineReader):
    """Reads a table that begins with a header; quotes are letters.

    A header that does not name the column is an :class:`InputError`, whatever ``on_bad``.
    """

    def _blocks(self, file: IO[bytes]) -> Iterator[Block]:
        columns: list[str] = []
        column = -1

        def refuse(number: int, error: InputError) -> None:
            if number == 1:
                raise InputError(f"the header cannot be read: {error.problem}", where=f"{self.part.path}:1")
            self.on_bad(number, error)

        for first, lines in self._lines(file, refuse):
            numbers: list[int] = []
            texts: list[str] = []
            for number, line in enumerate(lines, start=first):
                try:
                    fields = decoded(number, line).rstrip("\r\n").split("\t")
                    if number == 1:
                        columns = fields
                        column = _column_of(self.part, self.text_key, fields)
                    elif fields == [""]:
                        continue
                    elif len(fields) == len(columns):
                        numbers.append(number)
                        texts.append(fields[column])
                    else:
                        raise BadLineError(number, f"{len(fields)} fields, the header has {len(columns)}")
                except BadLineError as error:
                    refuse(number, error)
            yield numbers, texts


class ParquetReader(Reader):
    """Reads a column of a parquet file; the rows are counted within the whole file."""

    def blocks(self) -> Iterator[Block]:
        """Yields the documents of the row groups."""
        with open_parquet(self.part.path) as file:
            _column_of(self.part, self.text_key, file.schema_arrow.names)
            row = sum(file.metadata.row_group(group).num_rows for group in range(self.part.start))
            groups = list(range(self.part.start, self.part.stop))
            try:
                for batch in (
                    file.iter_batches(_PARQUET_ROWS, row_groups=groups, columns=[self.text_key]) if groups else ()
                ):
                    numbers: list[int] = []
                    texts: list[str] = []
                    # As bytes: one value that is not UTF-8 would otherwise stop the whole batch.
                    for cell in batch.column(0).cast("binary"):
                        value = cell.as_py()
                        row += 1
                        try:
                            if len(value or b"") > self.longest:
                                self.on_bad(row, too_long(row, f"text of {len(value)} bytes", self.longest))
                                continue
                            texts.append(value.decode())
                            numbers.append(row)
                        except AttributeError:
                            self.on_bad(row, BadLineError(row, f"{self.text_key!r} is null"))
                        except UnicodeDecodeError as error:
                            self.on_bad(row, BadLineError(row, f"not UTF-8 (byte {error.start} of the text)"))
                    yield numbers, texts
            except (ValueError, NotImplementedError) as error:
                problem = f"column {self.text_key!r} cannot be read as text ({str(error).splitlines()[0]})"
                raise InputError(problem, where=str(self.part.path)) from None


def _column_of(part: TextPart, name: str, columns: list[str]) -> int:
    """Returns the index of a column.

    Raises:
        InputError: there is none of this name, or several.
    """
    where = f"{part.path}:1" if part.kind == ".tsv" else str(part.path)
    if name not in columns:
        raise InputError(f"no column {name!r}", where=where, remedy=nearest(name, columns))
    if columns.count(name) > 1:
        raise InputError(f"{columns.count(name)} columns are named {name!r}", where=where, remedy="rename one of them")
    return columns.index(name)
