"""The keys of a configuration, from its own classes: what the tables of mutations must cover."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel


def keys_of(kind: type, path: str = "") -> Iterator[str]:
    """Dotted keys of all leaves; an entry of a list of sections has the list's key before it."""
    for name, annotation in _fields(kind).items():
        here = f"{path}.{name}" if path else name
        sections = list(_sections(annotation))
        if sections:
            for section in sections:
                yield from keys_of(section, here)
        else:
            yield here


def _fields(kind: type) -> dict[str, Any]:
    if issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    return get_type_hints(kind)


def _sections(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)):
        yield annotation
        return
    for argument in get_args(annotation):
        yield from _sections(argument)
