"""Reading settings: YAML files and ``key=value`` overrides to frozen, checked classes.

Unknown keys are refused with the nearest valid one, at every depth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from megatron_kis.errors import InputError, nearest
from megatron_kis.files import read_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Settings(BaseModel):
    """Base of all sections: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


_Config = TypeVar("_Config", bound=Settings)
_Record = TypeVar("_Record", bound="DataclassInstance")


def load_config(kind: type[_Config], path: Path, overrides: Sequence[str] = ()) -> _Config:
    """Reads a YAML file, applies overrides and checks the result.

    Args:
        kind: the settings' class.
        path: the YAML file.
        overrides: ``key.path=value``, the value in YAML.

    Raises:
        InputError: an unreadable file, invalid YAML, an unknown key or a bad value, with its place.
    """
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"not valid YAML ({getattr(error, 'problem', error)})", where=place) from None
    if not isinstance(content, dict):
        raise InputError("not a mapping of settings", where=str(path))
    for override in overrides:
        _override(content, override)
    return parse_config(kind, content, source=str(path))


def parse_config(kind: type[_Config], content: dict[str, Any], *, source: str) -> _Config:
    """Checks settings that are already in memory; see ``load_config``."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = [part for part in first["loc"] if not isinstance(part, str) or not part.startswith("function-")]
        key = ".".join(map(str, place))
        if first["type"] == "extra_forbidden":
            remedy = nearest(str(place[-1]), _fields_at(kind, place[:-1]))
            raise InputError("unknown key", where=f"{source}: {key}", remedy=remedy) from None
        if first["type"] == "missing":
            raise InputError("is missing", where=f"{source}: {key}", remedy="add it") from None
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] != "value_error":
            message += f" (got {first['input']!r})"
        raise InputError(message, where=f"{source}: {key}" if key else source) from None


def parse_dataclass(kind: type[_Record], content: dict[str, Any], *, where: str) -> _Record:
    """Checks the settings of another package, kept there as a (nested) dataclass, as strictly as our own.

    Args:
        kind: the dataclass.
        content: its section of the file.
        where: the section's key, for messages.

    Raises:
        InputError: an unknown key or a bad value.
    """
    names = {field.name: field for field in dataclasses.fields(kind)}
    hints = get_type_hints(kind)
    resolved = dict(content)
    for key, value in content.items():
        if key not in names:
            raise InputError("unknown key", where=f"{where}.{key}", remedy=nearest(str(key), names))
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, dict):
            resolved[key] = parse_dataclass(hints[key], value, where=f"{where}.{key}")
    try:
        return TypeAdapter(kind).validate_python(resolved)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, (where, *first["loc"])))
        missing = first["type"] == "missing"
        raise InputError(
            "is missing" if missing else first["msg"], where=key, remedy="add it" if missing else None
        ) from None


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError("is not of the form key=value", where=override, remedy="for example training.seed=1")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError("the value is not valid YAML", where=override) from None
    *path, last = key.split(".")
    section = content
    for part in path:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            raise InputError(f"{part!r} has no keys of its own", where=override)
    section[last] = value


def _fields_at(kind: type[BaseModel], place: Sequence[Any]) -> list[str]:
    """Names of the fields of the section at ``place``."""
    section: Any = kind
    for part in place:
        if isinstance(part, int):  # an entry of a list, tuple[Section, ...]
            section = next(iter(get_args(section)), None)
            continue
        field = section.model_fields.get(part) if isinstance(section, type) and issubclass(section, BaseModel) else None
        if field is None:
            break
        section = field.annotation
    if isinstance(section, type) and issubclass(section, BaseModel):
        return list(section.model_fields)
    return list(kind.model_fields)
