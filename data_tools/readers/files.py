"""Finds the files of patterns, and refuses to read one twice or to write over one."""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.readers.open import check_head, kind_of

FileIdentity = str | tuple[int, int]
"""A path without links, or the numbers of a file's device and inode."""


def expand(patterns: Iterable[Path]) -> list[Path]:
    """Returns the files of patterns (``*``, ``?``, ``[...]``, ``**``) in sorted order; other paths stay as they are.

    Raises:
        InputError: a pattern matches nothing, or a file is given twice, under two names too.
    """
    paths: list[Path] = []
    seen: dict[FileIdentity, tuple[Path, Path]] = {}
    for pattern in patterns:
        found = [pattern]
        if glob.has_magic(str(pattern)) and not pattern.exists():
            names = glob.glob(str(pattern), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
            found = sorted(path for path in map(Path, names) if path.is_file())
            if not found:
                raise InputError("matches no file", where=str(pattern))
        for path in found:
            identities = file_identities(path)
            for identity in identities:
                if identity in seen:
                    raise _twice(path, pattern, *seen[identity])
            seen |= dict.fromkeys(identities, (path, pattern))
        paths += found
    return paths


def file_identities(path: Path) -> list[FileIdentity]:
    """Returns what identifies a file: its path without links, and its inode, which hard links share."""
    identities: list[FileIdentity] = [os.path.realpath(path)]
    with suppress(OSError):  # a missing file is reported later
        status = path.stat()
        if status.st_ino:  # some file systems number nothing
            identities.append((status.st_dev, status.st_ino))
    return identities


def _twice(path: Path, pattern: Path, other: Path, other_pattern: Path) -> InputError:
    problem = "would be read twice"
    if path != other:
        problem += f": it is the same file as {other}"
    elif pattern != other_pattern:
        problem += f": both {str(other_pattern)!r} and {str(pattern)!r} name it"
    return InputError(problem, where=str(path), remedy="name each file once")


def refuse_own_outputs(patterns: Iterable[Path], outputs: Iterable[Path]) -> None:
    """Refuses to write a file that is read as well, or would be the next time because a pattern matches it.

    A file is recognised by its identity, too: a hard link, or a name in another case where that makes no difference.

    Raises:
        InputError: names the file and what matches it.
    """
    found = []
    for pattern in patterns:
        held = {identity for path in _existing(pattern) for identity in file_identities(path)}
        found.append((pattern, Path(os.path.realpath(pattern)).parts, held))
    for output in outputs:
        names = Path(os.path.realpath(output)).parts
        own = file_identities(output)
        for pattern, pattern_names, held in found:
            if _matches(names, pattern_names) or not held.isdisjoint(own):
                problem = f"is written here, and {str(pattern)!r} reads it"
                raise InputError(problem, where=str(output), remedy="write it elsewhere")


def _existing(pattern: Path) -> list[Path]:
    """Returns the files that a pattern or name means now."""
    if pattern.exists():
        return [pattern]
    return [path for path in map(Path, glob.glob(str(pattern), recursive=True)) if path.exists()]  # noqa: PTH207


def _matches(names: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Returns whether a path matches a pattern by folders; ``**`` is any number of folders that are not hidden."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        visible = itertools.takewhile(lambda at: at == 0 or not names[at - 1].startswith("."), range(len(names) + 1))
        return any(_matches(names[at:], pattern[1:]) for at in visible)
    if not names or (names[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    return fnmatch.fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


def check_text_files(paths: Iterable[Path], text_format: str | None = None) -> None:
    """Refuses missing files, unknown kinds and files whose first bytes are not text, before any work starts.

    Raises:
        InputError: names the file and what is read.
    """
    for path in paths:
        if not path.exists():
            raise InputError("no such file", where=str(path))
        kind = kind_of(path, text_format)
        if not path.is_file():
            raise InputError("is not a regular file", where=str(path))
        if kind != ".parquet":
            check_head(path, kind)
