"""The logs of one closed run: probe rows, per-template counts and validation losses.

Each file is read once, compared with the SHA-256 under which DONE closed it, and decoded from the same bytes: for ten
thousand runs this is nearly all of the time that loading takes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from megatron_kis.errors import InputError
from megatron_kis.files import read_json

_END_OF_RUN = 0.9  # the last probe must stand within the last tenth of D (the budget is rounded to whole batches)

PROBE_COLUMNS = [
    "run", "step", "step_tokens", "group", "split", "scoring", "n", "facts", "correct", "chance", "margin",
]  # fmt: skip
TEMPLATE_COLUMNS = ["run", "group", "split", "scoring", "relation", "template", "n", "correct"]
LOSS_COLUMNS = ["run", "step", "step_tokens", "loss"]

Row = tuple[Any, ...]


class ClosedRun:
    """The files of a run that has a DONE."""

    def __init__(self, path: Path) -> None:
        """Reads DONE and compares every file that it closes.

        Raises:
            InputError: DONE is no JSON, or a file is missing or not the one that was closed.
        """
        self.path = path
        try:
            done = json.loads((path / "DONE").read_bytes() or b"{}")
        except (OSError, ValueError) as error:
            raise InputError(f"cannot be read ({error})", where=str(path / "DONE")) from None
        closed = done.get("files") if isinstance(done, dict) else None
        self._read: dict[str, bytes] = {}
        self._closed: set[str] = set()
        for name, digest in (closed or {}).items():
            if not isinstance(digest, str) or len(digest) != 64:
                continue
            if hashlib.sha256(self.content(name)).hexdigest() != digest:
                raise InputError(
                    "was changed after the run was closed (its sha256 is not DONE's)", where=str(path / name)
                )
            self._closed.add(name)

    def content(self, name: str) -> bytes:
        """The bytes of a file."""
        if name not in self._read:
            try:
                self._read[name] = (self.path / name).read_bytes()
            except OSError as error:
                raise InputError(f"cannot be read ({error.strerror})", where=str(self.path / name)) from None
        return self._read[name]

    def record(self, name: str, schema: str) -> dict[str, Any]:
        """A JSON file of that schema; `megatron_kis.files.read_json` says what is wrong with one that is not."""
        try:
            found = orjson.loads(self.content(name))
        except orjson.JSONDecodeError:
            found = None
        if isinstance(found, dict) and found.get("schema") == schema:
            return found
        return read_json(self.path / name, schema)

    def rows(self, name: str, *, only: bytes = b"", without: bytes = b"") -> Iterator[tuple[str, dict[str, Any]]]:
        """(place, object) of every line of a JSON-lines file.

        Args:
            name: the file.
            only: lines that do not hold these bytes may be passed over.
            without: the key, in quotes, of a last list of flat objects that may be left out.

        Both spare the decoding of what nobody asked for, and both only in a file that DONE closed: elsewhere every line
        is decoded, so that damage is found.
        """
        file, closed = str(self.path / name), name in self._closed
        for number, line in enumerate(self.content(name).split(b"\n"), start=1):
            if not line.strip():
                continue
            if closed and only and only not in line:
                continue
            where = f"{file}:{number}"
            try:
                row = orjson.loads(_without(line, without) if closed and without else line)
            except orjson.JSONDecodeError as error:
                raise InputError(f"malformed JSON line ({error})", where=where) from None
            if not isinstance(row, dict):
                raise InputError("not a JSON object", where=where)
            yield where, row


def _without(line: bytes, key: bytes) -> bytes:
    """The line of a JSON object without ``key``, where that is its last and holds the only brackets behind it."""
    at = line.rfind(b", " + key + b": [")
    tail = line[at:].rstrip() if at > 0 else b""
    return line[:at] + b"}" if tail.endswith(b"]}") and tail.count(b"]") == 1 else line


def probe_rows(run: ClosedRun, budget: int) -> list[Row]:
    """Rows (`PROBE_COLUMNS`) of every probed step; of rows repeated after a resume the last one counts."""
    name = run.path.name
    rows: dict[Row, Row] = {}
    reached = 0
    for where, raw in run.rows("probes.jsonl", without=b'"templates"'):
        key = _key(raw, where)
        n = whole(raw, "n", where, least=1)
        facts = whole(raw, "facts", where, least=1) if "facts" in raw else n
        correct, chance = number(raw, "correct", where, least=0), number(raw, "chance", where, least=0)
        if correct > n or facts > n or chance > 1:
            raise InputError("correct <= n, facts <= n and chance <= 1 do not all hold", where=where)
        tokens = whole(raw, "tokens", where, least=0)
        reached = max(reached, tokens)
        step, group, split, scoring = key
        rows[key] = (name, step, tokens, group, split, scoring, n, facts, correct, chance, raw.get("margin"))
    if not rows:
        raise InputError("holds no probe row", where=str(run.path / "probes.jsonl"))
    if reached < _END_OF_RUN * budget:
        raise InputError(
            f"the last probe stands at {reached} of {budget} tokens: not the end of the run",
            where=str(run.path / "probes.jsonl"),
        )
    return [rows[key] for key in sorted(rows)]


def template_rows(run: ClosedRun) -> list[Row]:
    """Rows (`TEMPLATE_COLUMNS`) of the last probed step."""
    spread: dict[Row, list[Row]] = {}
    for where, raw in run.rows("probes.jsonl"):
        key = _key(raw, where)
        start = (run.path.name, *key[1:])
        spread[key] = [
            (*start, item.get("relation"), item.get("template"), item.get("n"), item.get("correct"))
            for item in raw.get("templates") or []
        ]
    last = max((key[0] for key in spread), default=0)
    return [row for key in sorted(spread) if key[0] == last for row in spread[key]]


def loss_rows(run: ClosedRun) -> list[Row]:
    """Rows (`LOSS_COLUMNS`) of every validated step; of steps repeated after a resume the last one counts."""
    losses: dict[int, Row] = {}
    for where, raw in run.rows("metrics.jsonl", only=b'"validation"'):
        if raw.get("kind") == "validation":
            step = whole(raw, "step", where, least=0)
            losses[step] = (run.path.name, step, whole(raw, "tokens", where, least=0), number(raw, "loss", where))
    return [losses[step] for step in sorted(losses)]


def _key(raw: dict[str, Any], where: str) -> tuple[int, str, str, str]:
    step = whole(raw, "step", where, least=0)
    for name in ("group", "split", "scoring"):
        if not isinstance(raw.get(name), str):
            raise InputError(f"no {name!r}", where=where)
    return step, raw["group"], raw["split"], raw["scoring"]


def number(record: dict[str, Any], key: str, where: str, *, least: float = -math.inf) -> float:
    """A finite number of a record.

    Raises:
        InputError: it is missing, something else, or less than ``least``.
    """
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        bound = "" if least == -math.inf else f" of at least {least:g}"
        raise InputError(f"{key!r} is {value!r}", where=where, remedy=f"a number{bound}")
    return float(value)


def whole(record: dict[str, Any], key: str, where: str, *, least: float = -math.inf) -> int:
    """A whole number of a record; see `number`."""
    value = record.get(key)
    if type(value) is int and value >= least:  # nearly always
        return value
    found = number(record, key, where, least=least)
    if not found.is_integer():
        raise InputError(f"{key!r} is {value!r}", where=where, remedy="a whole number")
    return int(found)
