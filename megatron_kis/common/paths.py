"""Paths as users write them: ``~`` and variables, and where relative ones begin.

One rule: a relative path begins at the folder of the file that names it; one on the command line at the current
folder. What we write names its neighbours in the same way, so that a folder can be moved or copied with them.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError

_NO_NAMELESS_FILES = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}
"""Errors of a file system that has no unnamed files, such as NFS."""

_ELSEWHERE = {"an address": r"[A-Za-z][\w+.-]+:/", "a Windows path": r"[A-Za-z]:[\\/]"}
"""What is no path on this machine; ``Path`` makes one slash of the two in an address."""

_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})", flags=re.ASCII)


def expanded(path: Path | str) -> Path:
    """Returns the path with ``~`` and environment variables filled in.

    Raises:
        InputError: a variable that is not set, a user who is not known, an address, or a Windows path.
    """
    text = str(path)
    for what, pattern in _ELSEWHERE.items():
        if re.match(pattern, text):
            remedy = "copy it to this machine and give its path here"
            raise InputError(f"'{text}' is {what}, not one of this machine", remedy=remedy)
    missing = [name for match in _VARIABLE.finditer(text) if (name := match[1].strip("{}")) not in os.environ]
    if missing:
        raise InputError(
            f"{text!r} names the variable {missing[0]}, which is not set", remedy="set it, or write it out"
        )
    text = _VARIABLE.sub(lambda match: os.environ[match[1].strip("{}")], text)
    if text.startswith("~"):
        found = os.path.expanduser(text)  # noqa: PTH111 - Path's raises a bare error for a user who is not known
        if found.startswith("~"):
            raise InputError(f"{text!r} names a home folder that is not known", remedy="write it out")
        text = found
    return Path(text)


@dataclass(frozen=True)
class Moved:
    """Place where the paths of a record of an older version begin.

    It named paths from the folder in which it was made, its own among them, and that folder may be another one now.
    """

    folder: Path
    """Folder of the record."""

    origin: Path
    """The same folder as the record names it."""


def placed(path: Path | str, base: Path | Moved | None) -> Path:
    """Returns the path that a file in the folder ``base`` means; None for the current folder.

    Raises:
        InputError: as ``expanded``.
    """
    path = expanded(path)
    if base is None or path.is_absolute():
        return path
    if isinstance(base, Moved):
        return tidy(base.folder / os.path.relpath(path, base.origin))
    return tidy(base / path)


def tidy(path: Path) -> Path:
    """Returns the path without ``a/..`` in it, where that is the same place (``a`` may be a link)."""
    short = Path(os.path.normpath(path))
    return short if ".." not in path.parts or short.resolve() == path.resolve() else path


def seen_from(path: Path, folder: Path, *, within: Path | None = None, relative: bool = False) -> Path:
    """Returns how a file in ``folder`` names a path.

    Args:
        path: from the current folder, or absolute.
        folder: where the file is.
        within: a folder that is moved and copied as a whole, so that absolute paths in it are named relatively, too.
        relative: whether to name it relatively wherever it is.

    Returns:
        A path relative to ``folder``; an absolute one elsewhere as it is.
    """
    if (
        path.is_absolute()
        and not relative
        and not (within is not None and path.resolve().is_relative_to(within.resolve()))
    ):
        return path
    whole = path.absolute()  # "." has no name of its own
    return Path(os.path.relpath(whole.parent.resolve() / whole.name, folder.absolute().resolve()))


def absolute(path: Path) -> Path:
    """Returns the path from the root, without ``..`` in it; links stay what they are."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps "..", Path.resolve follows links


def with_paths(content: Any, written: Callable[[Path], Path]) -> Any:
    """Returns nested content with every ``Path`` in it as text; tuples become lists.

    Args:
        content: of a record.
        written: how the record names a path, such as ``absolute``.
    """
    if isinstance(content, Path):
        return str(written(content))
    if isinstance(content, dict):
        return {key: with_paths(value, written) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [with_paths(value, written) for value in content]
    return content


def unwritable(folder: Path) -> str | None:
    """Returns why nothing can be made in a folder; None where something can.

    This is tested by writing: permissions do not show a read-only disk, or a folder of the system. Where the
    file system has unnamed files, the folder's modification time does not change.
    """
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY, mode=0o600))
    except OSError as error:
        if error.errno not in _NO_NAMELESS_FILES:
            return error.strerror or str(error)
    else:
        return None
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".kis-", dir=folder))  # noqa: PTH106 - a name, not a path
    except OSError as error:
        return error.strerror or str(error)
    return None
