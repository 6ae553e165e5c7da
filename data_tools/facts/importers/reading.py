"""Lists the files of a source and reads their lines, unpacked."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from megatron_kis.common.errors import InputError, not_utf8
from megatron_kis.common.files import unreadable
from megatron_kis.data_tools.readers.base import LONGEST_LINE
from megatron_kis.data_tools.readers.open import check_head, open_text
from megatron_kis.data_tools.readers.packed import packing_of

BOM = b"\xef\xbb\xbf"
"""Byte order mark with which some programs begin a UTF-8 file."""


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """Returns the sorted files of a folder that match, without hidden ones such as macOS's ``._P17.jsonl``."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith(".") and path.is_file())


def source_files_of(path: Path, pattern: str, *, but: Collection[str] = ()) -> list[Path]:
    """Returns a file itself, or those files of a folder that match.

    Args:
        path: the file or folder.
        pattern: pattern of the files' names.
        but: names to leave out in a folder.

    Raises:
        InputError: there are none; names a folder within that has some.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError("no such file or folder", where=str(path), remedy=f"expected a file or a folder of {pattern}")
    files = [file for file in visible_files(path, pattern) if file.name not in but]
    if not files:
        inside = sorted({file.parent for file in path.glob(f"*/{pattern}") if not file.parent.name.startswith(".")})
        remedy = f"give a folder in it that has some, such as {inside[0]}" if inside else None
        remedy = remedy or f"expected a file, or a folder of {pattern}"
        raise InputError(f"no {pattern} files with triples", where=str(path), remedy=remedy)
    return files


def relation_of(file: Path) -> str:
    """Returns the relation that a ``<relation>.jsonl`` file, packed or not, is named after."""
    name, jsonl, _ = file.name.partition(".jsonl")
    return name if jsonl else file.stem


def source_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields (number from 1, line with its end) of a text file, unpacked; blank lines are skipped.

    Raises:
        InputError: the file cannot be read to its end, or is not text in lines.
    """
    check_head(path, ".jsonl" if ".jsonl" in path.name else ".tsv")
    try:
        with open_text(path) as file:
            number = 0
            while line := file.readline(LONGEST_LINE):
                number += 1
                if len(line) == LONGEST_LINE:
                    remedy = "is it a text file, with a row per line?"
                    raise InputError(f"line of {LONGEST_LINE} bytes or more", where=f"{path}:{number}", remedy=remedy)
                if number == 1:
                    line = line.removeprefix(BOM)
                if line.strip():
                    yield number, line
    except OSError as error:
        raise unreadable(error, path) from None


def refuse_packed(beginning: bytes, path: Path) -> None:
    """Refuses a packed file, for readers that need byte offsets.

    Raises:
        InputError: it is packed; names the format.
    """
    if packing := packing_of(beginning[:16]):
        raise InputError(f"is packed with {packing}", where=str(path), remedy="unpack it")


def decoded(line: bytes, where: str) -> str:
    """Decodes a line, without its end.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        return line.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        problem, remedy = not_utf8(error, of=" of the line")
        raise InputError(problem, where=where, remedy=remedy) from None
