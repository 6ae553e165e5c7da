"""Which files are read, and the parts they are cut into so that several processes share them."""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.readers.open import check_beginning, is_packed, kind_of, open_parquet

TO_THE_END = 1 << 62
"""Where a part ends that is a whole packed file: its content is longer than its bytes on disk."""


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
    kind: str
    """``.jsonl``, ``.txt``, ``.tsv`` or ``.parquet``."""


def expand(patterns: Iterable[Path]) -> list[Path]:
    """Files of the patterns (``*``, ``?``, ``[...]``, ``**``) in sorted order; other paths stay as they are.

    Raises:
        InputError: a pattern matches nothing, or a file is given twice, under two names too.
    """
    paths: list[Path] = []
    seen: dict[str | tuple[int, int], tuple[Path, Path]] = {}
    for pattern in patterns:
        found = [pattern]
        if glob.has_magic(str(pattern)) and not pattern.exists():
            names = glob.glob(str(pattern), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
            found = sorted(path for path in map(Path, names) if path.is_file())
            if not found:
                raise InputError("matches no file", where=str(pattern))
        for path in found:
            places = file_places(path)
            for place in places:
                if place in seen:
                    raise _twice(path, pattern, *seen[place])
            seen |= dict.fromkeys(places, (path, pattern))
        paths += found
    return paths


def file_places(path: Path) -> list[str | tuple[int, int]]:
    """What tells a file from others: where links lead, and its number on its device, which hard links share."""
    places: list[str | tuple[int, int]] = [os.path.realpath(path)]
    with suppress(OSError):  # a missing file is told later
        status = path.stat()
        if status.st_ino:  # some file systems number nothing
            places.append((status.st_dev, status.st_ino))
    return places


def _twice(path: Path, pattern: Path, other: Path, other_pattern: Path) -> InputError:
    problem = "would be read twice"
    if path != other:
        problem += f": it is the same file as {other}"
    elif pattern != other_pattern:
        problem += f": both {str(other_pattern)!r} and {str(pattern)!r} name it"
    return InputError(problem, where=str(path), remedy="name each file once")


def refuse_own_outputs(patterns: Iterable[Path], outputs: Iterable[Path]) -> None:
    """Refuses to write a file that is read as well, or would be the next time because a pattern matches it.

    A file counts by what it is, too: a hard link, or a name that differs in case where the file system takes it for
    the same.

    Raises:
        InputError: names the file and what matches it.
    """
    found = []
    for pattern in patterns:
        held = {place for path in _existing(pattern) for place in file_places(path)}
        found.append((pattern, Path(os.path.realpath(pattern)).parts, held))
    for output in outputs:
        place, own = Path(os.path.realpath(output)).parts, file_places(output)
        for pattern, parts, held in found:
            if _matches(place, parts) or not held.isdisjoint(own):
                problem = f"is written here, and {str(pattern)!r} reads it"
                raise InputError(problem, where=str(output), remedy="write it elsewhere")


def _existing(pattern: Path) -> list[Path]:
    """The files that a pattern or name stands for now."""
    if pattern.exists():
        return [pattern]
    return [path for path in map(Path, glob.glob(str(pattern), recursive=True)) if path.exists()]  # noqa: PTH207


def _matches(names: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether a path matches a pattern, folder by folder; ``**`` stands for any number of them that are not hidden."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        visible = itertools.takewhile(lambda at: at == 0 or not names[at - 1].startswith("."), range(len(names) + 1))
        return any(_matches(names[at:], pattern[1:]) for at in visible)
    if not names or (names[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    return fnmatch.fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


def check_text_files(paths: Iterable[Path], text_format: str | None = None) -> None:
    """Refuses missing files, unknown kinds and what is no text by its first bytes, before any work starts.

    Raises:
        InputError: names the file and what is read.
    """
    for path in paths:
        kind = kind_of(path, text_format)
        if not path.is_file():
            raise InputError("is no regular file" if path.exists() else "no such file", where=str(path))
        if kind != ".parquet":
            check_beginning(path, kind)


def whole(path: Path, text_format: str | None = None) -> TextPart:
    """All of a file as one part.

    Raises:
        InputError: it is missing, of an unknown kind, or no parquet file in spite of its name.
    """
    kind = kind_of(path, text_format)
    if not path.is_file():
        raise InputError("no such file", where=str(path))
    size = path.stat().st_size
    stop = _row_groups(path) if kind == ".parquet" else TO_THE_END if is_packed(path) else size
    return TextPart(path, 0, stop, size, kind)


def plan_parts(paths: Sequence[Path], *, part_bytes: int, text_format: str | None = None) -> list[TextPart]:
    """Cuts files into parts of about ``part_bytes`` where that is possible (.jsonl, .txt, .parquet), in order.

    Raises:
        InputError: a file is missing, of an unknown kind, or no parquet file in spite of its name.
    """
    return [part for path in paths for part in _cut(whole(path, text_format), part_bytes)]


def _cut(part: TextPart, part_bytes: int) -> Iterator[TextPart]:
    pieces = max(1, -(-part.size // part_bytes))
    if not _has_bytes(part):
        pieces = min(pieces, max(1, part.stop)) if part.kind == ".parquet" else 1
    for index in range(pieces):
        start, stop = (part.stop * edge // pieces for edge in (index, index + 1))
        yield replace(part, start=start, stop=stop, size=part.size // pieces)


def beginning(part: TextPart, size: int) -> TextPart:
    """The first ``size`` bytes of a part as a part, where that can be cut; the whole part otherwise."""
    return replace(part, stop=min(part.stop, part.start + size)) if _has_bytes(part) else part


def _has_bytes(part: TextPart) -> bool:
    """Whether a part is a range of bytes, which can be cut: lines need nothing of those before them."""
    return part.kind in (".jsonl", ".txt") and part.stop != TO_THE_END


def _row_groups(path: Path) -> int:
    with open_parquet(path) as file:
        return int(file.metadata.num_row_groups)
