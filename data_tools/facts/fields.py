"""Checked fields of facts and imported triples: names, ids, relations."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.common.identifiers import ALLOWED, complaint, is_name
from megatron_kis.common.parsing import kind_in_json

_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair
_NO_TEXT = re.compile(f"{_HALF.pattern}|[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_BREAK = re.compile("[\t-\r\x1c-\x1f\x85\u2028\u2029]")  # the white space among them
_EXACT = 1 << 53  # whole numbers below this are exact as floats
_CONTENT_CATEGORIES = "LNS"  # Unicode letters, numbers, symbols


def string_field(row: dict[str, Any], key: str, where: str) -> str:
    """Returns a field that must be a string with visible content.

    Raises:
        InputError: it is not.
    """
    value = row.get(key)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise InputError(f"{key} is missing", where=where, remedy="every fact needs subject, relation and object")
    if not isinstance(value, str):
        raise InputError(f"{key} is {kind_in_json(value)}, not a string", where=where)
    check_whole(value, key, where)
    return value.strip()


def optional_field(row: dict[str, Any], key: str, where: str) -> str:
    """Returns a field that may be absent, else must be a string, in one line; empty if it is absent.

    Raises:
        InputError: it is not a string.
    """
    if row.get(key) in (None, ""):
        return ""
    text = one_line(string_field(row, key, where))
    check_text(text, key, where)
    return text


def strings_field(row: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    """Returns a field that may be absent, else must be a list of strings; empty ones are left out.

    Raises:
        InputError: it is not.
    """
    value = row.get(key) or []
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{key} is not a list of strings", where=where)
    names = tuple(filter(None, map(one_line, value)))
    for name in names:
        check_text(name, key, where)
    return names


def id_field(row: Mapping[str, Any], key: str, where: str) -> str:
    """Returns an id as text; empty if there is none. Numbers are accepted, 0 too; a whole number may be written as 1.0.

    Raises:
        InputError: it is neither a string nor a number, or a number that is not exact.
    """
    value = row.get(key)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"{key} is {value!r}", where=where, remedy="an id is a string or a number")
    if isinstance(value, float):
        if not abs(value) < _EXACT:
            raise InputError(f"{key} is {value!r}", where=where, remedy="leave it out, or write the id as a string")
        value = int(value) if value.is_integer() else value
    text = str(value).strip()
    check_text(text, key, where)
    return text


def one_line(name: str) -> str:
    """Replaces line breaks and tabs in a name by spaces: table cells can contain them."""
    if not _NO_TEXT.search(name):
        return name.strip()
    return " ".join(filter(None, map(str.strip, _BREAK.split(name))))


def is_text(name: str) -> bool:
    """Returns whether a name has no control characters, no line breaks and no half of a surrogate pair."""
    return not _NO_TEXT.search(name)


def check_text(text: str, key: str, where: str) -> None:
    """Refuses control characters, and half of a surrogate pair, which JSON can escape but no UTF-8 file can hold.

    Raises:
        InputError: the text contains one.
    """
    check_whole(text, key, where)
    if found := _NO_TEXT.search(text):
        raise InputError(f"{key} holds the control character {found[0]!r}", where=where, remedy="take it out")


def check_whole(text: str, key: str, where: str) -> None:
    """Refuses half of a surrogate pair.

    Raises:
        InputError: the text contains one.
    """
    if _HALF.search(text):
        raise InputError(f"{key} holds half of a surrogate pair, which is not text", where=where)


def check_relation(relation: str, where: str) -> None:
    """Refuses a relation whose name is not safe as a file's, or in a table.

    Raises:
        InputError: it contains anything but letters, digits and ``. _ - +``.
    """
    if not is_name(relation):
        problem = f"not the name of a relation ({complaint(relation)})"
        joined = "_".join(relation.split())
        example = f", such as {joined!r}" if is_name(joined) else ""
        raise InputError(problem, where=where, remedy=f"use {ALLOWED}{example}")


def has_content(name: str) -> bool:
    """Returns whether a name has a letter, number or symbol: punctuation alone is not a name."""
    return any(unicodedata.category(letter)[0] in _CONTENT_CATEGORIES for letter in name)
