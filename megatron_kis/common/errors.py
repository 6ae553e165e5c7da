"""Errors that a user can fix, and the exit status that goes with each."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_LISTED = 30  # valid names that a message lists


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


def not_utf8(error: UnicodeDecodeError, *, of: str = "") -> tuple[str, str]:
    """Returns problem and remedy of a text that is in another encoding.

    Args:
        error: of decoding its bytes as UTF-8.
        of: what the bytes are counted in, such as `` of the line``.
    """
    mark = bytes(error.object[:2])
    if mark in (b"\xff\xfe", b"\xfe\xff"):
        return "is UTF-16, not UTF-8", "convert it: iconv -f UTF-16 -t UTF-8"
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
