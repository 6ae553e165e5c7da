"""Errors that a user can fix, and the exit status that goes with each."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

_LISTED = 30  # valid names that a message lists
_UTF = {  # the longer marks first
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


class KisError(Exception):
    """A failure that is explained to the user in one message, without a traceback."""

    exit_status = 1


class InputError(KisError):
    """Wrong input: a file, a line, a key or a value. The message says where and what would be right."""

    exit_status = 2

    def __init__(self, problem: str, *, where: str | None = None, remedy: str | None = None) -> None:
        """Builds the message ``where: problem; remedy``.

        Args:
            problem: what is wrong, in one clause.
            where: the file, ``file:line`` or configuration key.
            remedy: what would be right.
        """
        message = f"{where}: {problem}" if where else problem
        if remedy:
            message += f"; {remedy}"
        super().__init__(message)
        self.problem, self.where, self.remedy = problem, where, remedy


@contextmanager
def placed(where: str) -> Iterator[None]:
    """Puts a place before that of an ``InputError``: the key that names a file, or the run that has a key.

    Args:
        where: the key, or ``run NAME``.
    """
    try:
        yield
    except InputError as error:
        place = f"{where}: {error.where}" if error.where else where
        raise InputError(error.problem, where=place, remedy=error.remedy) from None


class JobError(KisError):
    """Work whose input was right and that failed all the same (a run that crashed, a study with failed cells)."""


class Stopped(KisError):
    """The work was asked to stop and has saved what is needed to resume."""

    exit_status = 75  # EX_TEMPFAIL of sysexits.h: try again later


def printable(text: str, *, keep: str = "") -> str:
    r"""Returns a text as one that changes nothing on a terminal: line breaks, escapes and the like are spelled out.

    Args:
        text: what a user, a file or another program wrote.
        keep: such characters that stay, for example ``"\n\t"``.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in keep else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


FIRST_BYTES = 4096
"""Bytes at the start of a file by which its encoding is recognised."""


def wider_encoding(start: bytes) -> tuple[str, str] | None:
    """Returns problem and remedy of a file that begins like UTF-16 or UTF-32, with a mark or without; None for others.

    Args:
        start: its first bytes, such as ``FIRST_BYTES``.
    """
    encoding = next((name for mark, name in _UTF.items() if start.startswith(mark)), None)
    if encoding is None and start.count(0) * 4 >= len(start) > 1:
        name = "UTF-32" if start.count(0) * 8 > len(start) * 5 else "UTF-16"
        order = "LE" if start[1::2].count(0) >= start[::2].count(0) else "BE"
        encoding = f"{name}{order} or not text (it is full of zero bytes)"
    if encoding is None:
        return None
    return f"is {encoding}, not UTF-8", f"convert it: iconv -f {encoding.partition(' ')[0]} -t UTF-8"


def not_utf8(error: UnicodeDecodeError, *, of: str = "") -> tuple[str, str]:
    """Returns problem and remedy of a text that is in another encoding.

    Args:
        error: of decoding its bytes as UTF-8.
        of: what the bytes are counted in, such as `` of the line``.
    """
    if found := wider_encoding(error.object[:FIRST_BYTES]):
        return found
    problem = f"not UTF-8 (byte {error.start}{of})"
    return problem, "save the file as UTF-8; if it is Latin-1: iconv -f LATIN1 -t UTF-8"


def system_problem(error: OSError) -> str:
    """Returns ``path: reason`` of an error of the system; its own message where it lacks one of them."""
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)


def first_of(items: Sequence[str], most: int, *, separator: str = ", ") -> str:
    """Returns the first items of a list, at most ``most``, and how many more there are."""
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return separator.join(items[:most]) + more


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns the remedy for an unknown name: ``did you mean 'x'?`` or the valid names, the first of many."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"valid: {first_of(names, _LISTED)}"
