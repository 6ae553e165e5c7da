"""Numbers as written in text: ``8,849``, ``8 849`` and ``8849`` are one; ``-5``, ``3.5`` and ``5`` are three."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

import regex

_SEPARATORS = ".,'’٬٫\u00a0\u202f\u2009 "
_GLUED = _SEPARATORS[:-1]  # a plain space is as often between two numbers as within one
_MINUS = "-\u2212\u2013\uff0d"
_SHORT = 2  # a number of so few digits does not count as part of a code or a date
_FAR = 32  # characters next to digits that can belong to their number; anything longer is a list
_GROUPED = regex.compile(rf"([1-9]\d{{0,2}})(?:([{_SEPARATORS}])\d{{3}})(?:\2\d{{3}})*")
_INDIAN = regex.compile(r"[1-9]\d?(?:[,٬]\d\d)+[,٬]\d{3}")
_DECIMAL = regex.compile(r"(.*\d)[.,٫](\d+)")
_DIGITS = regex.compile(r"\d+")
_LEFT, _RIGHT = regex.compile(rf"(?r)(?:\d+[{_GLUED}])*"), regex.compile(rf"(?:[{_GLUED}]\d+)*")
_RAISED = regex.compile(r"\d+\p{No}+")  # 1½, 10⁶
_POINT = regex.compile(r"(?<![^\s\p{Ps}\p{Pi}\p{Sc}+=<>~≈±\"'\u2212–-])[.٫]")  # before a fraction alone

NUMBER = regex.compile(
    rf"(?<!\w)(?:\d{{1,3}}([{_SEPARATORS}])\d{{3}}(?!\d)(?:\1\d{{3}}(?!\d))*(?:[.,٫]\d+)?|\d+\p{{No}}+|\d+(?:[{_GLUED}]\d+)*)(?!\w)"
)
"""A number of a name, without its sign."""


def number_at(name: str, start: int, end: int) -> frozenset[str]:
    """Returns the readings of a number in a name, with its sign; ``.5`` is 0.5."""
    return _signed(name, start, readings(name[start:end]))


def _signed(text: str, start: int, found: frozenset[str]) -> frozenset[str]:
    """Adds to readings a point and a minus if they are written before the number and do not join it to a word."""
    if start and _POINT.match(text, start - 1):
        found, start = frozenset(f"0.{value}" for value in found if value.isdecimal()), start - 1
    if (
        not start
        or text[start - 1] not in _MINUS
        or (start > 1 and (text[start - 2].isalnum() or text[start - 2] in ".)"))
    ):
        return found
    return frozenset(f"-{value}" for value in found)


def readings(written: str) -> frozenset[str]:
    """Returns what a number can mean: ``3.500`` is 3500 or 3.500; nothing for others, such as ``5.8.1990``."""
    body = "".join(str(unicodedata.decimal(letter, letter)) for letter in written)
    whole = body if _RAISED.fullmatch(body) else _whole(body)
    found = {whole} if whole else set()
    if match := _DECIMAL.fullmatch(body):
        fraction = _whole(match[1])
        separator = body[match.end(1)]
        if fraction and separator not in match[1]:
            found.add(f"{fraction}.{match[2]}")
    return frozenset(found)


def _whole(body: str) -> str:
    if _DIGITS.fullmatch(body):
        return body
    grouped = _GROUPED.fullmatch(body) or _INDIAN.fullmatch(body)
    return "".join(_DIGITS.findall(body)) if grouped else ""


def spellings(reading: str) -> Iterator[tuple[str, ...]]:
    """Yields the folded words of each way to write a reading."""
    whole, _, fraction = reading.lstrip("-").partition(".")
    whole = "".join(str(unicodedata.digit(letter, letter)) for letter in whole)
    tail = (fraction,) if fraction else ()
    yield (whole, *tail)
    if len(whole) > 3 and not whole.startswith("0"):
        first = len(whole) % 3 or 3
        yield (whole[:first], *(whole[at : at + 3] for at in range(first, len(whole), 3)), *tail)
    if len(whole) > 5 and not whole.startswith("0"):
        first = (len(whole) - 3) % 2 or 2
        yield (whole[:first], *(whole[at : at + 2] for at in range(first, len(whole) - 3, 2)), whole[-3:], *tail)


def is_number_at(text: str, start: int, end: int, wanted: frozenset[str], *, first: bool, last: bool) -> bool:
    """Returns whether the whole number around these digits has one of the readings.

    Args:
        text: the text.
        start: start of the digits.
        end: their end.
        wanted: the readings.
        first: whether the digits begin the name; otherwise the name itself has the characters before them.
        last: whether they end the name.
    """
    short = end - start <= _SHORT
    left = _LEFT.match(text, max(0, start - _FAR), start) if first else None
    right = _RIGHT.match(text, end, end + _FAR) if last else None
    head = left.start() if left else start
    past = right.end() if right else end
    # Digits that continue are another number; only the parts of a date, a version or a list are numbers themselves.
    if (head, past) != (start, end) and (short or readings(text[head:past])):
        return False
    if short and ((first and _is_glued(text, start - 1, -1)) or (last and _is_glued(text, end, 1))):
        return False
    found = readings(text[start:end])
    signed = _signed(text, start, found)
    return not (signed if first else signed | found).isdisjoint(wanted)


def _is_glued(text: str, at: int, step: int) -> bool:
    """Returns whether a mark at a position joins a number to another letter or digit."""
    return 0 < at < len(text) - 1 and text[at] in f"{_MINUS}/:" and text[at + step].isalnum()
