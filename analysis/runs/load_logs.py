"""The logs of one closed run: probe rows, per-template counts and validation losses.

Each file is read once, compared with the SHA-256 that DONE has for it, and decoded from the same bytes: for ten
thousand runs this takes nearly all of the loading time.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import parse_json_line, read_json, steadily
from megatron_kis.common.parsing import parse_json

_END_OF_RUN = 0.9  # the last probe must be within the last tenth of D (the budget is rounded to whole batches)

PROBE_COLUMNS = [
    "run",
    "step",
    "step_tokens",
    "group",
    "split",
    "scoring",
    "n",
    "facts",
    "correct",
    "chance",
    "margin",
    "mean_margin",
    "mean_margin_sd",
    "pairwise",
    "pairwise_sd",
]
_FINER = PROBE_COLUMNS[PROBE_COLUMNS.index("mean_margin") :]
"""Columns that rows of older runs lack."""
TEMPLATE_COLUMNS = ["run", "group", "split", "scoring", "relation", "template", "n", "correct"]
LOSS_COLUMNS = ["run", "step", "step_tokens", "loss"]

Row = tuple[Any, ...]


class ClosedRun:
    """The files of a run with a DONE, or of its answers to other questions."""

    def __init__(self, path: Path, *, seal: str = "DONE", name: str | None = None) -> None:
        """Reads DONE and checks the hash of every file that it lists.

        Args:
            path: the folder.
            seal: the file that lists the others, which is written last.
            name: name of the run; that of the folder if not given.

        Raises:
            InputError: DONE is not JSON, or a file is missing or was changed.
            JobError: the disk or the file server fails.
        """
        self.path = path
        self.name = path.name if name is None else name
        self._read: dict[str, bytes] = {}
        self._closed: set[str] = set()
        done = _parsed(self.content(seal) or b"{}", self._place(seal))
        closed = done.get("files") if isinstance(done, dict) else None
        self.hashed = isinstance(closed, dict) and bool(closed)
        for file, digest in (closed if isinstance(closed, dict) else {}).items():
            if not isinstance(digest, str) or len(digest) != 64:
                continue
            if hashlib.sha256(self.content(file)).hexdigest() != digest:
                raise InputError(
                    f"was changed after the run was closed (its sha256 is not {seal}'s)", where=self._place(file)
                )
            self._closed.add(file)

    def content(self, name: str) -> bytes:
        """Returns the bytes of a file."""
        if name not in self._read:
            path = self.path / name
            self._read[name] = steadily(path.read_bytes, path)
        return self._read[name]

    def has(self, name: str) -> bool:
        """Returns whether there is such a file."""
        try:
            self.content(name)
        except InputError:
            return (self.path / name).is_file()
        return True

    def record(self, name: str, schema: str) -> dict[str, Any]:
        """Returns the content of a JSON file of that schema; `read_json` raises the error of a file that is not."""
        found = _parsed(self.content(name), self._place(name), whole=name in self._closed)
        if isinstance(found, dict) and found.get("schema") == schema:
            return found
        return read_json(self.path / name, schema)

    def rows(self, name: str, *, only: bytes = b"") -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (place, object) for every line of a JSON-lines file.

        Args:
            name: the file.
            only: lines without these bytes may be skipped, which saves their decoding. They are skipped only in a file
                whose hash DONE has: elsewhere every line is decoded, so that damage is found.
        """
        file, closed, content = self._place(name), name in self._closed, self.content(name)
        keys = 0
        for number, line in enumerate(content.split(b"\n"), start=1):
            if not line or (closed and only not in line) or line.isspace():
                continue
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise InputError(f"malformed JSON line ({error})", where=f"{file}:{number}") from None
            if type(row) is not dict:
                raise InputError("not a JSON object", where=f"{file}:{number}")
            if not closed:
                keys += len(row)
                if type(lists := row.get("templates")) is list:
                    keys += _keys_of_objects(lists)
            yield f"{file}:{number}", row
        if not closed and keys != _keys_written(content):
            for number, line in enumerate(content.split(b"\n"), start=1):
                if line and not line.isspace():
                    parse_json_line(line, where=f"{file}:{number}")

    def _place(self, name: str) -> str:
        return f"{self.path}{os.sep}{name}"


def _parsed(content: bytes, where: str, *, whole: bool = False) -> Any:
    """Parses a JSON file; ``whole`` says that its hash was checked, so that no key can be in it twice."""
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError:
        return parse_json(content, where=where)
    return found if whole or _keys(found) == _keys_written(content) else parse_json(content, where=where)


def _keys(value: Any) -> int:
    """Counts the keys of an object and of all objects inside it."""
    inner = value.values() if type(value) is dict else value if type(value) is list else ()
    count = len(value) if type(value) is dict else 0
    if _NESTED.isdisjoint(map(type, inner)):
        return count
    return count + sum(_keys(item) for item in inner if type(item) in _NESTED)


_NESTED = frozenset({dict, list})


def _keys_of_objects(items: list[Any]) -> int:
    """Counts the keys of a list of objects; -1 if it has anything else."""
    try:
        return sum(map(dict.__len__, items))
    except TypeError:
        return -1


def _keys_written(content: bytes) -> int:
    """Counts the keys of JSON text, at most; -1 if that cannot be counted from a quote directly before a colon.

    If the text has more keys than its parsed objects, a key may be there twice and the text needs the careful parser:
    the fast one keeps the last of two.
    """
    if len(content) < _SMALL:
        if any(pair in content for pair in _APART):
            return -1
        return content.count(b'":')
    if content.endswith(b'"'):
        return -1
    text = np.frombuffer(content, dtype=np.uint8)
    after = text[np.flatnonzero(text == ord('"')) + 1]
    return -1 if np.any(after <= ord(" ")) else int(np.count_nonzero(after == ord(":")))


_SMALL = 4096  # bytes up to which plain searches are faster
_APART = tuple(b'"' + space for space in (b" ", b"\n", b"\r", b"\t"))


def probe_rows(run: ClosedRun, budget: int) -> list[Row]:
    """Returns rows (`PROBE_COLUMNS`) of every probed step; of rows repeated after a resume the last one counts."""
    name = run.name
    rows: dict[Row, Row] = {}
    reached = 0
    for where, raw in run.rows("probes.jsonl"):
        key = _key(raw, where)
        n = whole(raw, "n", where, least=1)
        facts = whole(raw, "facts", where, least=1) if "facts" in raw else n
        correct, chance = number(raw, "correct", where, least=0), number(raw, "chance", where, least=0)
        if correct > n or facts > n or chance > 1:
            raise InputError("correct <= n, facts <= n and chance <= 1 do not all hold", where=where)
        tokens = whole(raw, "tokens", where, least=0)
        reached = max(reached, tokens)
        step, group, split, scoring = key
        finer = (_finite_or_nan(raw, column, where) for column in _FINER)
        rows[key] = (name, step, tokens, group, split, scoring, n, facts, correct, chance, raw.get("margin"), *finer)
    if not rows:
        raise InputError("holds no probe row", where=str(run.path / "probes.jsonl"))
    if reached < _END_OF_RUN * budget:
        raise InputError(
            f"the last probe stands at {reached} of {budget} tokens: not the end of the run",
            where=str(run.path / "probes.jsonl"),
        )
    return [rows[key] for key in sorted(rows)]


def template_rows(run: ClosedRun) -> list[Row]:
    """Returns rows (`TEMPLATE_COLUMNS`) of the last probed step."""
    spread: dict[Row, list[Row]] = {}
    for where, raw in run.rows("probes.jsonl"):
        key = _key(raw, where)
        start = (run.name, *key[1:])
        spread[key] = [
            (*start, item.get("relation"), item.get("template"), item.get("n"), item.get("correct"))
            for item in raw.get("templates") or []
        ]
    last = max((key[0] for key in spread), default=0)
    return [row for key in sorted(spread) if key[0] == last for row in spread[key]]


def loss_rows(run: ClosedRun) -> list[Row]:
    """Returns rows (`LOSS_COLUMNS`) of every validated step; of steps repeated after a resume the last one counts."""
    losses: dict[int, Row] = {}
    for where, raw in run.rows("metrics.jsonl", only=b'"validation"'):
        if raw.get("kind") == "validation":
            step = whole(raw, "step", where, least=0)
            losses[step] = (run.name, step, whole(raw, "tokens", where, least=0), number(raw, "loss", where))
    return [losses[step] for step in sorted(losses)]


def _key(raw: dict[str, Any], where: str) -> tuple[int, str, str, str]:
    step = whole(raw, "step", where, least=0)
    for name in ("group", "split", "scoring"):
        value = raw.get(name)
        if not isinstance(value, str):
            raise InputError(f"no {name!r}", where=where)
        if not value.isprintable():
            raise InputError(f"{name!r} is {value!r}", where=where, remedy="a plain name")
    return step, raw["group"], raw["split"], raw["scoring"]


def _finite_or_nan(record: dict[str, Any], key: str, where: str) -> float:
    """Returns a number of a record; NaN where it has none."""
    return math.nan if record.get(key) is None else number(record, key, where)


def number(record: dict[str, Any], key: str, where: str, *, least: float = -math.inf) -> float:
    """Returns a finite number of a record.

    Raises:
        InputError: it is missing, not a number, or less than ``least``.
    """
    value = record.get(key)
    if type(value) is float and least <= value < math.inf:  # nearly always
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        bound = "" if least == -math.inf else f" of at least {least:g}"
        raise InputError(f"{key!r} is {value!r}", where=where, remedy=f"a number{bound}")
    return float(value)


def whole(record: dict[str, Any], key: str, where: str, *, least: float = -math.inf) -> int:
    """Returns a whole number of a record; see `number`."""
    value = record.get(key)
    if type(value) is int and value >= least:  # nearly always
        return value
    found = number(record, key, where, least=least)
    if not found.is_integer():
        raise InputError(f"{key!r} is {value!r}", where=where, remedy="a whole number")
    return int(found)
