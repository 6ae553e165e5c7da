"""``law.json``: its laws, checked field by field, so that a damaged file is refused before anything is predicted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_kis.analysis.criteria.decline import shapes_of
from megatron_kis.analysis.law.bend import Bend
from megatron_kis.analysis.law.candidates import CANDIDATES, Candidate
from megatron_kis.analysis.law.coefficients import AMOUNTS, Coefficient
from megatron_kis.analysis.law.law import SCHEMA, Law
from megatron_kis.analysis.law.surface import OTHERS, Surface
from megatron_kis.analysis.runs.groups import CURVE_GROUPS, is_group
from megatron_kis.analysis.runs.slices import RATIO, Slice, slice_of_record
from megatron_kis.analysis.runs.transitions import KINDS, STATUSES
from megatron_kis.common.errors import InputError, nearest
from megatron_kis.common.files import read_json

_REMEDY = "fit it again with kis law fit"


def load_laws(path: Path | str) -> list[Law]:
    """Reads the laws of a ``law.json``, in their order; the first one is that at the top of the file.

    Raises:
        InputError: not a law file, damaged (the message names the field), or one that records that no law could be
            fitted.
    """
    where = str(path)
    record = read_json(Path(path), SCHEMA)
    if record.get("selected_law") is None:
        raise InputError(f"has no law, because none could be fitted ({_reasons(record)})", where=where)
    top = _law(_Fields(record, where))
    if "laws" not in record:
        return [top]
    items = record["laws"]
    if not isinstance(items, list) or not items:
        raise InputError(f"is {_shown(items)}", where=f"{where}: laws", remedy=f"a list of laws; {_REMEDY}")
    laws = [_law(_Fields(item, where, f"laws[{index}]")) for index, item in enumerate(items)]
    if laws[0] != top:
        raise InputError("is not the law at the top of the file", where=f"{where}: laws[0]", remedy=_REMEDY)
    seen: dict[tuple[str, str, Slice], int] = {}
    for index, law in enumerate(laws):
        first = seen.setdefault((law.kind, law.group, law.slice), index)
        if first != index:
            problem = f"of the same kind, group and slice as laws[{first}]"
            raise InputError(problem, where=f"{where}: laws[{index}]", remedy=_REMEDY)
    return laws


def load_law(path: Path | str) -> Law:
    """Reads the law at the top of a ``law.json`` (see `load_laws`)."""
    return load_laws(path)[0]


def _reasons(record: dict[str, Any]) -> str:
    refused = record.get("refused")
    items = [item for item in refused if isinstance(item, dict)] if isinstance(refused, list) else []
    told = [
        f"{item.get('kind')} of {item.get('group')}: {str(item.get('reason')).removeprefix('law: ')}" for item in items
    ]
    return "; ".join(told) or "no reason given"


class _Fields:
    """An object of the file, read with errors that name the file and the field."""

    def __init__(self, content: Any, where: str, name: str = "") -> None:
        self._where, self._name = where, name
        if not isinstance(content, dict):
            raise InputError(f"is {_shown(content)}", where=self.place(""), remedy=f"an object; {_REMEDY}")
        self.content: dict[str, Any] = content

    def place(self, key: str) -> str:
        """Returns file and field, for messages."""
        inside = f"{self._name}.{key}".strip(".")
        return f"{self._where}: {inside}" if inside else self._where

    def wrong(self, key: str, right: str) -> InputError:
        """Returns the error of a value; ``right`` says what it should be."""
        return InputError(f"is {_shown(self.content[key])}", where=self.place(key), remedy=f"{right}; {_REMEDY}")

    def value(self, key: str) -> Any:
        """Returns a value of any type, which must be there."""
        if key not in self.content:
            raise InputError("is missing", where=self.place(key), remedy=_REMEDY)
        return self.content[key]

    def fields(self, key: str) -> _Fields:
        """Returns an object inside this one."""
        return _Fields(self.value(key), self._where, f"{self._name}.{key}".strip("."))

    def optional(self, key: str) -> _Fields | None:
        """Returns an object inside this one, None for null."""
        return None if self.value(key) is None else self.fields(key)

    def objects(self, key: str) -> list[_Fields]:
        """Returns the objects of a list."""
        name = f"{self._name}.{key}".strip(".")
        return [_Fields(item, self._where, f"{name}[{index}]") for index, item in enumerate(self.list_of(key))]

    def list_of(self, key: str) -> list[Any]:
        """Returns a list."""
        items = self.value(key)
        if not isinstance(items, list):
            raise self.wrong(key, "a list")
        return items

    def text(self, key: str) -> str:
        """Returns a text."""
        text = self.value(key)
        if not isinstance(text, str):
            raise self.wrong(key, "a text")
        return text

    def number(self, key: str, *, least: float = -math.inf, positive: bool = False, optional: bool = False) -> Any:
        """Returns a finite number as it is written, or None for null where it is ``optional``."""
        value = self.value(key)
        if value is None and optional:
            return None
        if not _is_number(value) or value < least or (positive and value <= 0):
            of = " of at least 0" if least == 0 else ""
            raise self.wrong(key, f"a {'positive ' if positive else ''}number{of}{' or null' if optional else ''}")
        return value

    def numbers(self, key: str, count: int) -> list[float]:
        """Returns a list of ``count`` finite numbers."""
        numbers = self.list_of(key)
        if len(numbers) != count or not all(map(_is_number, numbers)):
            raise self.wrong(key, f"a list of {count} numbers")
        return numbers

    def rows(self, key: str, width: int, count: int | None = None) -> list[list[float]]:
        """Returns a list of ``count`` lists (None: one or more) of ``width`` finite numbers."""
        rows = self.list_of(key)
        whole = all(isinstance(row, list) and len(row) == width and all(map(_is_number, row)) for row in rows)
        if not whole or len(rows) != (count or len(rows) or 1):
            raise self.wrong(key, f"{count or 'one or more'} rows of {width} numbers")
        return rows

    def share(self, key: str) -> float:
        """Returns a number between 0 and 1, neither of them."""
        share: float = self.number(key)
        if not 0 < share < 1:
            raise self.wrong(key, "a number between 0 and 1")
        return share

    def truth(self, key: str) -> bool:
        """Returns true or false."""
        truth = self.value(key)
        if not isinstance(truth, bool):
            raise self.wrong(key, "true or false")
        return truth

    def only(self, known: Sequence[str]) -> None:
        """Refuses a key that is not known."""
        for key in self.content:
            if key not in known:
                raise InputError("is not known", where=self.place(key), remedy=f"{nearest(key, known)}; {_REMEDY}")

    def span(self, key: str) -> tuple[Any, Any]:
        """Returns two positive numbers in rising order."""
        low, high = self.numbers(key, 2)
        if not 0 < low <= high:
            raise self.wrong(key, "two positive numbers in rising order")
        return low, high


def _law(fields: _Fields) -> Law:
    """Returns the law of a record, after all of it was checked."""
    one = slice_of_record(fields.content, where=fields.place(""))
    pooled = one.held_by is not None and one.held is None
    form = _form(fields, pooled=pooled)
    kind, group = fields.text("kind"), fields.text("group")
    if kind not in KINDS:
        raise fields.wrong("kind", nearest(kind, KINDS))
    if not is_group(group):
        raise fields.wrong("group", nearest(group, CURVE_GROUPS))
    degrees = fields.number("degrees_of_freedom", least=-math.inf if form.offset else 0)
    scatter = degrees  # files of earlier versions
    if "scatter_degrees_of_freedom" in fields.content:
        scatter = fields.number("scatter_degrees_of_freedom", least=-math.inf if form.offset else 0)
    warnings = fields.list_of("warnings")
    if not all(isinstance(warning, str) for warning in warnings):
        raise fields.wrong("warnings", "a list of texts")
    law = Law(
        kind=kind,
        group=group,
        slice=one,
        selected_law=fields.text("selected_law"),
        law=form.name,
        selection=fields.text("selection"),
        coefficients=_coefficients(fields.fields("coefficients")),
        sigma=fields.number("sigma", least=0),
        degrees_of_freedom=degrees,
        scatter_degrees_of_freedom=scatter,
        confidence=fields.share("confidence"),
        unvalidated=fields.truth("unvalidated"),
        centre=fields.numbers("centre", len(form.rows)),
        parameters=fields.numbers("parameters", form.size),
        covariance=_covariance(fields, form.size),
        range_params=fields.span("range_params"),
        range_tokens=fields.span("range_tokens"),
        range_held=_range_held(fields, one, pooled=pooled),
        tokens_per_frequency=fields.number("tokens_per_frequency", positive=True, optional=True),
        amounts=_amounts(fields),
        points=_points(fields),
        excluded=[item.content for item in fields.objects("excluded")],
        candidates=[item.content for item in fields.objects("candidates")],
        lack_of_fit=None if (lack := fields.optional("lack_of_fit")) is None else lack.content,
        equivalents=fields.fields("equivalents").content,
        sensitivity=fields.fields("sensitivity").content,
        calibration=_calibration(fields.optional("calibration")),
        bend=_bend(fields, form.size),
        surface=_surface(fields, form),
        warnings=warnings,
    )
    if not all(map(math.isfinite, law.at(1e6, 1e6, law.range_held and law.range_held[0]))):
        raise fields.wrong("parameters", "numbers that give a dose")
    return law


def _form(fields: _Fields, *, pooled: bool) -> Candidate:
    name = fields.text("law")
    if name not in CANDIDATES:
        raise fields.wrong("law", nearest(name, CANDIDATES))
    form = CANDIDATES[name]
    if form.in_held and not pooled:
        raise fields.wrong("law", "one slice has a law without a term in what is held")
    return form


def _coefficients(fields: _Fields) -> dict[str, Coefficient | None]:
    found: dict[str, Coefficient | None] = {}
    for name in fields.content:
        estimate = fields.optional(name)
        found[name] = None
        if estimate is not None:
            value, low, high = (estimate.number(key) for key in ("value", "low", "high"))
            found[name] = Coefficient(value, estimate.number("standard_error", least=0), low, high)
    return found


def _covariance(fields: _Fields, size: int) -> list[list[float]]:
    rows = fields.rows("covariance", size, size)
    if any(rows[index][index] < 0 for index in range(size)):
        raise fields.wrong("covariance", "variances of at least 0")
    return rows


def _range_held(fields: _Fields, one: Slice, *, pooled: bool) -> tuple[float, float] | None:
    if not pooled:
        if fields.content.get("range_held") is not None:
            raise fields.wrong("range_held", "held_by without held, or no range_held")
        return None
    low, high = fields.span("range_held")
    if one.held_by == RATIO and high > 1:
        raise fields.wrong("range_held", "shares of the tokens, at most 1")
    return low, high


def _amounts(fields: _Fields) -> dict[str, float]:
    if fields.content.get("amounts") is None:
        return {}
    amounts = fields.fields("amounts")
    for name in amounts.content:
        if name not in AMOUNTS:
            raise InputError("is not known", where=amounts.place(name), remedy=f"{nearest(name, AMOUNTS)}; {_REMEDY}")
        amounts.number(name, positive=True)
    return amounts.content


def _points(fields: _Fields) -> list[dict[str, Any]]:
    points = fields.objects("points")
    for point in points:
        for name in ("params", "tokens"):
            point.number(name, positive=True)
        if point.text("status") not in STATUSES:
            raise point.wrong("status", nearest(point.text("status"), STATUSES))
        point.number("value", positive=True, optional=True)
        for name in ("low", "high"):
            point.number(name, least=0, optional=True)
    if not any(point.content["value"] for point in points):
        raise InputError("no point has a value", where=fields.place("points"), remedy=_REMEDY)
    return [point.content for point in points]


def _calibration(fields: _Fields | None) -> dict[str, Any] | None:
    if fields is None:
        return None
    fields.text("method")
    factors = fields.list_of("extrapolation")
    if not factors or not all(_is_number(factor) and factor > 0 for factor in factors) or sorted(factors) != factors:
        raise fields.wrong("extrapolation", "positive numbers in rising order")
    for name in ("confidence", "prediction"):
        pairs = fields.list_of(name)
        whole = all(isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair)) for pair in pairs)
        if not whole or len(pairs) != len(factors):
            raise fields.wrong(name, f"{len(factors)} pairs of numbers")
    return fields.content


def _bend(fields: _Fields, size: int) -> dict[str, Any] | None:
    """Returns the bend; None of files of earlier versions, whose laws are straight."""
    if fields.content.get("bend") is None:
        return None
    bend = fields.fields("bend")
    bend.number("spread", positive=True)
    bend.number("centre")
    bend.numbers("projection", size)
    bend.numbers("shift", size + 1)
    bend.numbers("lean", size + 1)
    _covariance(bend, size + 1)
    bend.only(tuple(Bend.__dataclass_fields__))
    return bend.content


def _surface(fields: _Fields, form: Candidate) -> dict[str, Any] | None:
    """Returns the likelihood of all curves; None where there is none."""
    if fields.content.get("surface") is None:
        return None
    surface = fields.fields("surface")
    size = 1 + len(_form(surface, pooled=form.in_held).rows)
    surface.only(("law", *(name for name in Surface.__dataclass_fields__ if name != "candidate")))
    surface.truth("mirrored")
    for name in ("bend", "chance", "cells", "told", "convergence", "freedom"):
        surface.number(name, least=0)
    surface.number("deviance")
    if surface.content["chance"] >= 1:
        raise surface.wrong("chance", "the rate of a guess, below 1")
    if min(surface.numbers("shapes", len(shapes_of(surface.share("share"))))) < 0 or not any(surface.value("shapes")):
        raise surface.wrong("shapes", "probabilities of at least 0")
    for name in ("centre", "projection"):
        surface.numbers(name, size)
    width = size + OTHERS
    surface.rows("straight", width, len(surface.rows("bent", width)))
    return surface.content


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _shown(value: Any) -> str:
    """Returns a value for a message, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
