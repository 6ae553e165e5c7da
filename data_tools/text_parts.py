"""Which files are read, and the parts they are cut into so that several processes share them."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_tools.text_open import kind_of, open_parquet
from megatron_kis.errors import InputError

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


def expand(patterns: Iterable[Path]) -> list[Path]:
    """Files of the patterns (``*``, ``?``, ``[...]``, ``**``) in sorted order; other paths stay as they are.

    Raises:
        InputError: a pattern matches nothing, or a file is given twice.
    """
    paths: list[Path] = []
    seen: dict[str, tuple[Path, Path]] = {}
    for pattern in patterns:
        found = [pattern]
        if glob.has_magic(str(pattern)) and not pattern.exists():
            names = glob.glob(str(pattern), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
            found = sorted(path for path in map(Path, names) if path.is_file())
            if not found:
                raise InputError("matches no file", where=str(pattern))
        for path in found:
            place = os.path.realpath(path)
            if place in seen:
                raise _twice(path, pattern, *seen[place])
            seen[place] = (path, pattern)
        paths += found
    return paths


def _twice(path: Path, pattern: Path, other: Path, other_pattern: Path) -> InputError:
    problem = "would be read twice"
    if path != other:
        problem += f": it is the same file as {other}"
    elif pattern != other_pattern:
        problem += f": both {str(other_pattern)!r} and {str(pattern)!r} name it"
    return InputError(problem, where=str(path), remedy="name each file once")


def refuse_own_outputs(patterns: Iterable[Path], outputs: Iterable[Path]) -> None:
    """Refuses to write a file that is read as well, or would be the next time because a pattern matches it.

    Raises:
        InputError: names the file and what matches it.
    """
    patterns = list(patterns)
    for output in outputs:
        place = Path(os.path.realpath(output))
        for pattern in patterns:
            if _matches(place.parts, Path(os.path.realpath(pattern)).parts):
                problem = f"is written here, and {str(pattern)!r} reads it"
                raise InputError(problem, where=str(output), remedy="write it elsewhere")


def _matches(names: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether a path matches a pattern, folder by folder; ``**`` stands for any number of them."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(_matches(names[at:], pattern[1:]) for at in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


def check_text_files(paths: Iterable[Path]) -> None:
    """Refuses missing files and unknown kinds before any work starts.

    Raises:
        InputError: names the file and the kinds that are read.
    """
    for path in paths:
        kind_of(path)
        if not path.is_file():
            raise InputError("no such file", where=str(path))


def whole(path: Path) -> TextPart:
    """All of a file as one part."""
    kind, packed = kind_of(path)
    size = path.stat().st_size if path.is_file() else 0
    stop = _row_groups(path) if kind == ".parquet" else TO_THE_END if packed else size
    return TextPart(path, 0, stop, size)


def plan_parts(paths: Sequence[Path], *, part_bytes: int) -> list[TextPart]:
    """Cuts files into parts of about ``part_bytes`` where that is possible (.jsonl, .txt, .parquet), in order.

    Raises:
        InputError: a file is missing, of an unknown kind, or no parquet file in spite of its name.
    """
    check_text_files(paths)
    return [part for path in paths for part in _cut(whole(path), part_bytes)]


def _cut(part: TextPart, part_bytes: int) -> Iterator[TextPart]:
    kind, packed = kind_of(part.path)
    pieces = -(-part.size // part_bytes)
    if packed or kind == ".tsv":
        pieces = 1
    elif kind == ".parquet":
        pieces = min(pieces, part.stop)
    for index in range(max(pieces, 1)):
        start, stop = (part.stop * edge // max(pieces, 1) for edge in (index, index + 1))
        yield replace(part, start=start, stop=stop, size=part.size // max(pieces, 1))


def beginning(part: TextPart, size: int) -> TextPart:
    """The first ``size`` bytes of a part as a part, where that can be cut; the whole part otherwise."""
    kind, packed = kind_of(part.path)
    if packed or kind in (".tsv", ".parquet"):
        return part
    return replace(part, stop=min(part.stop, part.start + size))


def _row_groups(path: Path) -> int:
    if not path.is_file():
        raise InputError("no such file", where=str(path))
    with open_parquet(path) as file:
        return int(file.metadata.num_row_groups)
