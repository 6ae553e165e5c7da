"""Pydantic's errors in our words: the key as the user wrote it, what is there, and what would be right.

pydantic names a place by the types that it tried (``templates.literal['random']``) and by what validators made of the
settings (``background.groups.1`` for an entry of the list ``background``). Here a place is what the content has.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, InitErrorDetails

from megatron_kis.common.errors import InputError, nearest
from megatron_kis.common.units import parse_count

_KEY = "[key]"  # in the place of a mapping's key, as pydantic has it
_UNQUOTED = (bool, int, float, datetime.date)  # what YAML makes of words that are not in quotes
_LONGEST = 60  # characters of a value that are shown
_SHOWN_KEYS = 4
_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}
_WANTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "tuple_type": "a list",
    "list_type": "a list",
    "too_short": "a list",
}


def input_error(
    error: ValidationError,
    kind: type[BaseModel],
    content: Any,
    *,
    source: str = "",
    section: str = "",
    overrides: Sequence[str] = (),
) -> InputError:
    """Returns the first of pydantic's errors as one of ours.

    Args:
        error: the complaints.
        kind: the settings' class.
        content: the settings as they were given.
        source: the file, for messages.
        section: the key of these settings in that file, for messages.
        overrides: settings in ``content`` that do not come from the file: ``key=value``.
    """
    complaints = [(_written(one, content), one) for one in error.errors(include_url=False)]
    # A misspelt key also leaves the right one missing: what was written is named.
    complaints.sort(key=lambda one: one[1]["type"] == "missing")
    first = complaints[0][0]
    # Of a union each type has a complaint. One about a part of the value is of the type that the user meant.
    same = [(place, one) for place, one in complaints if place[: len(first)] == first]
    place = max((place for place, _ in same), key=len)
    alternatives = [one for at, one in same if at == place]
    problem, remedy = _explained(alternatives, kind)
    parts = [section, *map(str, place)]
    named = re.match(r"([\w.]+): (.*)", problem, flags=re.DOTALL)
    if named and not place and is_key(kind, named[1]):  # a check of several keys names the one that is wrong
        parts.append(named[1])
        problem = named[2]
    key = ".".join(part for part in parts if part)
    where = override_of(key, overrides) or ": ".join(part for part in (source, key) if part)
    return InputError(problem, where=where, remedy=remedy)


def is_key(kind: type[BaseModel], key: str) -> bool:
    """Returns whether settings of this class have such a key, with dots and the numbers of entries."""
    loc: list[int | str] = [int(part) if part.isdecimal() else part for part in key.split(".")]
    return all(isinstance(part, int) or part in _keys_at(kind, loc[:number]) for number, part in enumerate(loc))


def override_of(key: str, overrides: Sequence[str]) -> str | None:
    """Returns the setting ``key=value`` outside the file that says a key, or a section with it; None if none does."""
    return next((said for said in reversed(overrides) if f"{key}.".startswith(f"{said.partition('=')[0]}.")), None)


def refuse_truth_values(value: Any, kind: Any) -> None:
    """Refuses true and false where a number is expected; pydantic would read them as 1 and 0.

    Args:
        value: of a field, as it was given.
        kind: the field's annotation.

    Raises:
        ValidationError: as pydantic's own, with the place in ``value``.
    """
    if isinstance(value, bool | list | tuple | dict) and (found := list(_truth_values(value, kind, ()))):
        raise ValidationError.from_exception_data("truth value", found)


def arms_of(kind: Any) -> tuple[Any, ...]:
    """Returns the members of which a union or an annotated type is made."""
    if get_origin(kind) in (Union, UnionType, Annotated):
        return tuple(inner for arm in get_args(kind) for inner in (arm, *arms_of(arm)))
    return ()


def fields_of(kind: Any) -> dict[str, Any]:
    """Returns names and types of a section's fields; none where it is no section."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    return {}


def _truth_values(value: Any, kind: Any, place: tuple[int | str, ...]) -> Iterator[InitErrorDetails]:
    arms = (kind, *arms_of(kind))
    if isinstance(value, bool):
        number = next((arm for arm in arms if arm in (int, float)), None)
        if number is not None and bool not in arms:
            yield {"type": f"{number.__name__}_type", "loc": place, "input": value}
        return
    parts: Mapping[Any, Any] = {}
    if isinstance(value, list | tuple):
        parts = dict(enumerate(value))
    elif isinstance(value, dict):
        parts = value
    wanted = dict if isinstance(value, dict) else tuple
    inner = next((get_args(arm)[wanted is dict] for arm in arms if get_origin(arm) is wanted), None)
    for part, entry in parts.items() if inner is not None else ():
        yield from _truth_values(entry, inner, (*place, part))


def _written(complaint: ErrorDetails, content: Any) -> tuple[Any, ...]:
    """Returns the keys and numbers that lead to the value in the content, without those that pydantic adds."""
    place: list[Any] = []
    loc: list[Any] = list(complaint["loc"])
    if complaint["type"] == "invalid_key":
        loc[-1] = complaint["input"]  # not the text that pydantic makes of it
    for number, part in enumerate(loc):
        if isinstance(content, BaseModel):
            content = dict(content)
        last = number == len(loc) - 1
        if isinstance(content, Mapping) and (part in content or (last and complaint["type"] == "missing")):
            content = content.get(part)
        elif isinstance(content, list | tuple) and isinstance(part, int) and part < len(content):
            content = content[part]
        else:
            continue
        place.append(part)
    return tuple(place)


def _explained(complaints: Sequence[ErrorDetails], kind: type[BaseModel]) -> tuple[str, str | None]:
    """Returns problem and remedy of the complaints about one value."""
    about_key = _explained_key(complaints[0], kind)
    if about_key is not None:
        return about_key
    ours = next((one["msg"] for one in complaints if one["type"] == "value_error"), None)
    if ours is not None:
        return ours.removeprefix("Value error, "), None
    value = complaints[0]["input"]
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}", ", ".join(["must be a finite number", *filter(None, [_range(complaints[0], kind)])])
    wanted = dict.fromkeys(_wanted(one, kind) for one in complaints)
    remedy = f"must be {', or '.join(wanted)}"
    if {one["type"] for one in complaints} & {"string_type", "path_type"} and isinstance(value, _UNQUOTED):
        remedy += "; put it in quotes"
    return f"is {_shown(value)}", remedy


def _explained_key(complaint: ErrorDetails, kind: type[BaseModel]) -> tuple[str, str] | None:
    """Returns problem and remedy of a complaint about a key; None if it is about a value."""
    what, loc = complaint["type"], complaint["loc"]
    if what == "missing":
        return "is missing", "add it"
    if what == "extra_forbidden":
        if re.fullmatch(r"\d[\de+-]*", str(loc[-1])):  # {rate: 2,5e-3} has two keys
            return "unknown key", "write a number with a decimal point, such as 2.5e-3"
        return "unknown key", nearest(str(loc[-1]), _keys_at(kind, loc[:-1]) or fields_of(kind))
    if what == "invalid_key" or (what == "string_type" and loc[-1] == _KEY):
        return "a key must be text", "put it in quotes"
    if what == "literal_error" and loc[-1] == _KEY:
        return "unknown key", nearest(str(complaint["input"]), _choices(complaint))
    return None


def _wanted(complaint: ErrorDetails, kind: type[BaseModel]) -> str:
    """Returns what would be right, after ``must be``."""
    what, value, context = complaint["type"], complaint["input"], complaint.get("ctx", {})
    if what in _BOUNDS:
        words, bound = _BOUNDS[what]
        said = " and ".join(filter(None, [f"{words} {context[bound]:g}", _range(complaint, kind, but=bound)]))
        return f"{said}{_in_percent(value, context[bound])}"
    if what == "literal_error":
        return str(context["expected"])
    if what in ("model_type", "model_attributes_type", "dict_type", "mapping_type"):
        keys = _keys_at(kind, complaint["loc"])
        return f"a mapping with keys such as {', '.join(keys[:_SHOWN_KEYS])}" if keys else "a mapping"
    wanted = _WANTED.get(what, f"something else ({complaint['msg']})")
    if what in ("tuple_type", "list_type") and isinstance(value, str | int | float) and not isinstance(value, bool):
        wanted += f", such as [{value if isinstance(value, str) and ',' in value else _shown(value)}]"
    if what == "too_short":
        wanted += f" of at least {context['min_length']}"
    number = parse_count(value) if what.startswith("int_parsing") and isinstance(value, str) else None
    if number is not None and number == number.to_integral_value():
        wanted += f"; write {int(number)}"
    if what == "float_parsing" and isinstance(value, str) and re.fullmatch(r"\s*[\d.]+\s*%\s*", value):
        wanted += _in_percent(float(value.strip(" %")), 1)
    return wanted


def _range(complaint: ErrorDetails, kind: type[BaseModel], *, but: str = "") -> str:
    """Returns the bounds of a value, except one of them: ``above 0 and below 1``; empty where it has none."""
    said = [arm for arm in _kinds_at(kind, complaint["loc"]) if not isinstance(arm, type)]
    said += [one for arm in said if isinstance(arm, FieldInfo) for one in arm.metadata]
    found = []
    for words, bound in _BOUNDS.values():
        values = {value for one in said if (value := getattr(one, bound, None)) is not None}
        if len(values) == 1 and bound != but:
            found.append(f"{words} {values.pop():g}")
    return " and ".join(found)


def _in_percent(value: Any, bound: float) -> str:
    """Returns how to write a percentage where a share of at most 1 is wanted; empty for other values."""
    is_percentage = bound == 1 < value <= 100 if isinstance(value, int | float) else False
    return f"; {value:g}% is {value / 100:g}" if is_percentage else ""


def _choices(complaint: ErrorDetails) -> list[str]:
    """Returns the words that a literal may be."""
    return re.findall(r"'([^']*)'", str(complaint.get("ctx", {}).get("expected", "")))


def _keys_at(kind: type[BaseModel], loc: Sequence[Any]) -> list[str]:
    """Returns the keys of the section at a place of pydantic's; none where it is no section."""
    return list(dict.fromkeys(key for arm in _kinds_at(kind, loc) for key in fields_of(arm)))


def _kinds_at(kind: type[BaseModel], loc: Sequence[Any]) -> list[Any]:
    """Returns the types that a value at a place of pydantic's may have, and what is said about them."""
    kinds: list[Any] = [kind]
    for part in loc:
        inner: list[Any] = []
        for arm in (arm for one in kinds for arm in (one, *arms_of(one))):
            if part in fields_of(arm):
                field = arm.model_fields[part]
                inner += (field.annotation, *field.metadata)
            elif isinstance(part, int) and get_origin(arm) is tuple:
                inner.append(get_args(arm)[0])
        kinds = inner or kinds  # of a type that pydantic tried there are no keys
    return [arm for one in kinds for arm in (one, *arms_of(one))]


def _shown(value: Any) -> str:
    """Returns a value as a file would have it, cut where it is long."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping | BaseModel):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    text = repr(value) if isinstance(value, str | int | float) else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
