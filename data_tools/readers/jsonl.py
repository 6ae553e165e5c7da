"""JSON lines: one object per line, with the text under a key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO, Any

import orjson

from megatron_kis.common.errors import nearest, not_utf8
from megatron_kis.common.parsing import kind_in_json
from megatron_kis.data_tools.readers.base import BadLineError, Block, LineReader
from megatron_kis.data_tools.readers.json_depth import DEEPEST, too_deep

_BACKSLASH = ord("\\")  # a number is found ten times as fast as a string
_SHORT = {'"': '\\"', "\\": "\\\\", "/": "\\/", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


class JsonlReader(LineReader):
    """Reads JSON lines; a line that has the text's key twice holds no document."""

    def _blocks(self, file: IO[bytes]) -> Iterator[Block]:
        loads = orjson.loads
        text_key = self.text_key
        spellings = _Spellings(text_key)
        for first, lines in self._lines(file, self.on_bad):
            try:
                texts = [loads(line)[text_key] for line in lines]
            except (ValueError, KeyError, TypeError, IndexError):
                texts = []
            if (
                texts
                and set(map(type, texts)) == {str}
                and not any(map(too_deep, lines))
                and not spellings.any_twice(lines)
            ):
                yield range(first, first + len(lines)), texts
                continue
            # The standard library decides what is JSON, and says what is wrong; orjson is five times as fast.
            numbers = []
            texts = []
            for number, line in enumerate(lines, start=first):
                if line.strip():
                    try:
                        texts.append(_text_of(number, line, text_key))
                        numbers.append(number)
                    except BadLineError as error:
                        self.on_bad(number, error)
            yield numbers, texts


class _Spellings:
    r"""All ways to write a key in JSON, where every letter may be escaped: ``"t\u0065xt"``."""

    def __init__(self, key: str) -> None:
        """Prepares the search for a key."""
        self._key = key
        self._plain = json.dumps(key, ensure_ascii=False).encode()
        self._any = re.compile(b'"' + b"".join(map(_letter, key)) + b'"')

    def any_twice(self, lines: list[bytes]) -> bool:
        """Returns whether a line has the key twice. Nearly all lines have it once, which is quick to see."""
        plain = self._plain
        return any(
            [name for name, _ in _parsed(line)[1]].count(self._key) > 1
            for line in lines
            if line.count(plain) > 1 or (_BACKSLASH in line and len(self._any.findall(line)) > 1)
        )


def _letter(letter: str) -> bytes:
    """Returns a pattern of all spellings of a letter within a JSON string."""
    units = letter.encode("utf-16-be", "surrogatepass")  # two for a letter beyond U+FFFF
    escaped = "".join(f"\\\\u(?i:{units[at : at + 2].hex()})" for at in range(0, len(units), 2))
    spellings = [re.escape(letter)] if letter not in '"\\' and ord(letter) >= 32 else []
    spellings += [re.escape(_SHORT[letter])] if letter in _SHORT else []
    return f"(?:{'|'.join([*spellings, escaped])})".encode("utf-8", "surrogatepass")


def _text_of(number: int, line: bytes, text_key: str) -> str:
    """Returns the text of a line.

    Raises:
        BadLineError: it is not a JSON object, or has no text, no single one, or none that UTF-8 can hold.
    """
    if too_deep(line):
        raise BadLineError(number, f"JSON nested more than {DEEPEST} deep")
    try:
        row, pairs = _parsed(line)
    except UnicodeDecodeError as error:
        raise BadLineError(number, *not_utf8(error, of=" of the line")) from None
    except json.JSONDecodeError as error:
        at = f"column {error.pos + 1}"
        if error.msg == "Extra data" and error.doc[error.pos] == "{":
            problem = f"several JSON objects on one line, the second at {at}"
            raise BadLineError(number, problem, "write one per line: jq -c .") from None
        problem = f"{error.msg.removesuffix(' at').removesuffix(':')} at {at}"
        plain = number == 1 and not error.doc.lstrip().startswith(("{", "["))
        remedy = "if this is plain text, name the file .txt" if plain else None
        raise BadLineError(number, f"malformed JSON line ({problem})", remedy) from None
    if not isinstance(row, dict):
        raise BadLineError(number, "not a JSON object")
    if text_key not in row:
        raise BadLineError(number, f"no key {text_key!r}", nearest(text_key, row))
    if [name for name, _ in pairs].count(text_key) > 1:
        raise BadLineError(number, f"the key {text_key!r} is given twice", "keep one of them")
    text = row[text_key]
    if not isinstance(text, str):
        raise BadLineError(number, f"{text_key!r} is {kind_in_json(text)}, not a string")
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can escape half a surrogate pair, which no UTF-8 encoder accepts
        raise BadLineError(number, "holds half of a surrogate pair, which is not text") from None
    return text


def _parsed(line: bytes) -> tuple[Any, list[tuple[str, Any]]]:
    """Returns the content of a line, and the keys and values of its object, repeated ones too."""
    outermost: list[tuple[str, Any]] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        outermost[:] = pairs  # objects are closed from the inside out
        return dict(pairs)

    # Numbers are not read: those of other keys may have any number of digits.
    content = json.loads(line.decode("utf-8-sig"), object_pairs_hook=keep, parse_int=lambda _digits: 0)
    return content, outermost
