"""Names that become parts of paths, commands and tables: of studies, sizes, runs, relations.

A name is letters (of any script, with their vowel signs), digits and ``. _ - +``, and begins with a letter, a digit or
an underscore. So it is one folder, never a hidden one or an option, and nothing in it has a meaning for a terminal, a
shell or a markup.
"""

from __future__ import annotations

import unicodedata

from megatron_kis.common.errors import InputError

ALLOWED = "letters, digits and . _ - + (first a letter, a digit or _)"
_LONGEST = 200  # bytes: a file's name may have 255, with what is added to it


def is_name(text: str) -> bool:
    """Returns whether a text is a safe name."""
    return bool(text) and text[0] not in ".-+" and all(map(_allowed, text)) and len(text.encode()) <= _LONGEST


def checked_name(text: str, *, where: str | None = None) -> str:
    """Returns the name itself.

    Raises:
        InputError: it holds something else, or is too long.
    """
    if is_name(text):
        return text
    raise InputError(complaint(text), where=where, remedy=f"use {ALLOWED}")


def same_place(text: str) -> str:
    """Returns what names that a file system or a reader may confuse have in common: composed accents, any case."""
    return unicodedata.normalize("NFC", text).casefold()


def complaint(text: str) -> str:
    """Returns what is wrong with a text that is no safe name."""
    if not text:
        return "a name is empty"
    if len(text.encode(errors="replace")) > _LONGEST:
        return f"the name {text[:20]!r}... is longer than {_LONGEST} bytes"
    wrong = next((letter for letter in text if not _allowed(letter)), text[0])
    return f"the name {text!r} holds {wrong!r}" if not _allowed(wrong) else f"the name {text!r} begins with {wrong!r}"


def _allowed(letter: str) -> bool:
    return letter in "._-+" or unicodedata.category(letter)[0] in "LM" or letter.isdecimal()
