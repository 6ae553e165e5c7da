"""Reading settings: YAML files and ``key=value`` overrides to frozen, checked classes.

Unknown keys are refused with the nearest valid one, at every depth, and so is a key that is given twice. Relative paths
begin at the folder of the file, those of overrides at the current folder (``paths``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from megatron_kis.common.complaints import arms_of, fields_of, input_error, refuse_truth_values
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_text
from megatron_kis.common.identifiers import ALLOWED, complaint, is_name
from megatron_kis.common.identity import RUN_FILE, leaves, within
from megatron_kis.common.parsing import parse_yaml
from megatron_kis.common.paths import Moved, absolute, expanded, placed, seen_from, with_paths
from megatron_kis.common.units import as_count


def _safe_name(text: str) -> str:
    if not is_name(text):
        msg = f"{complaint(text)}; use {ALLOWED}"
        raise ValueError(msg)
    return text


SafeName = Annotated[str, AfterValidator(_safe_name)]
"""Name that is used for a folder: see ``identifiers``."""

Count = Annotated[int, BeforeValidator(as_count, json_schema_input_type=float | str)]
"""Number of tokens or parameters, which may be written ``1.2e6`` or ``7b``."""

Quantity = Annotated[float, BeforeValidator(as_count, json_schema_input_type=float | str)]
"""The same, where it need not be whole."""


@dataclass(frozen=True)
class OtherFile:
    """A file of another kind that is easily confused with a file of these settings."""

    key: str
    """A key of such files."""

    own: str
    """The key that files of these settings have in its place."""

    problem: str
    """What such a file is."""

    remedy: str
    """What is done with it."""


class Config(BaseModel):
    """Base of all settings: frozen, and closed to unknown keys."""

    other_file: ClassVar[OtherFile | None] = None

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses true and false where a number is expected, and an empty value where a path is."""
        if info.field_name in cls.model_fields:
            kind = cls.model_fields[info.field_name].annotation
            refuse_truth_values(value, kind)
            if isinstance(value, str) and not value.strip() and Path in (kind, *arms_of(kind)):
                msg = "is empty; must be a path, such as . for this folder"
                raise ValueError(msg)
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _placed(cls, value: Any, info: ValidationInfo) -> Any:
        """Resolves paths against the folder of the file that names them, and notes which ones began there."""
        if info.context is None or info.context["base"] is None:
            return value
        found = _with_base(value, info.context["base"])
        info.context["relative"].update(_begun_there(value, found))
        return found

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with other values, which are not checked again."""
        return self.model_copy(update=changes)


ConfigT = TypeVar("ConfigT", bound=Config)


def load_config(kind: type[ConfigT], path: Path, overrides: Sequence[str] = ()) -> ConfigT:
    """Reads a YAML file, applies overrides and checks the result.

    Args:
        kind: the settings' class.
        path: the YAML file.
        overrides: ``key.path=value``, the value in YAML.

    Raises:
        InputError: an unreadable file, invalid YAML, a file of another kind, a key that is given twice, an unknown key
            or a bad value, with its place.
    """
    content = parse_yaml(read_text(path), where=str(path))
    if not isinstance(content, dict):
        return parse_config(kind, content, source=str(path))  # which refuses it
    other = kind.other_file
    if other is not None and other.key in content and other.own not in content:
        raise InputError(other.problem, where=str(path), remedy=other.remedy)
    return parse_content(kind, content, source=str(path), base=file_base(path, content), overrides=overrides)


def parse_content(
    kind: type[ConfigT],
    content: dict[str, Any],
    *,
    source: str,
    base: Path | Moved = Path(),
    overrides: Sequence[str] = (),
) -> ConfigT:
    """Applies overrides to settings that are already in memory, and checks the result; see ``load_config``.

    Args:
        kind: the settings' class.
        content: the settings, a mapping; it is changed.
        source: the file, for messages.
        base: folder at which relative paths begin.
        overrides: ``key.path=value``, the value in YAML.

    Raises:
        InputError: as ``load_config``.
    """
    given: list[tuple[str, str, tuple[str, ...]]] = []
    for override in overrides:
        key, value = _override(content, override, kind, base)
        _check_not_lost(override, key, given)
        given.append((override, key, tuple(leaf for leaf, said in leaves({key: value}) if said not in (None, {}))))
    return parse_config(kind, content, source=source, base=base, overrides=overrides)


def file_base(path: Path, content: Mapping[str, Any]) -> Path | Moved:
    """Returns where the relative paths of a file of settings begin: at its folder.

    The records of older versions, in the ``output`` that they name, have paths from the folder in which they were made.

    Args:
        path: the file.
        content: what it says.
    """
    folder, output = path.parent, content.get("output")
    origin = Path(output) if isinstance(output, str) else Path()
    own = folder.resolve().parts[-len(origin.parts) :] == origin.parts
    if own and not origin.is_absolute() and any((folder / name).exists() for name in ("runs", RUN_FILE)):
        return Moved(folder, origin)
    return folder


def parse_config(
    kind: type[ConfigT],
    content: Any,
    *,
    source: str,
    section: str = "",
    base: Path | Moved | None = None,
    overrides: Sequence[str] = (),
) -> ConfigT:
    """Checks settings that are already in memory; see ``load_config``.

    Args:
        kind: the settings' class.
        content: the settings, a mapping.
        source: the file, for messages.
        section: the key of these settings in that file, for messages.
        base: folder at which relative paths begin; None leaves paths as they are.
        overrides: settings in ``content`` that do not come from the file.
    """
    relative: set[Path] = set()
    try:
        config = kind.model_validate(content, context={"base": base, "relative": relative})
    except ValidationError as error:
        raise input_error(error, kind, content, source=source, section=section, overrides=overrides) from None
    config.__dict__[_RELATIVE] = frozenset(relative)
    return config


_RELATIVE = "_relative_paths"
"""Next to the fields of settings that were read: the paths that their file names relatively. They are not settings."""

_BOUNDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}


def json_schema(kind: type[Config]) -> dict[str, Any]:
    """Returns the JSON Schema of a file of these settings, with which an editor completes and checks it."""
    schema = kind.model_json_schema()
    _spell_out_bounds(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _spell_out_bounds(schema: Any) -> None:
    """Renames bounds that pydantic leaves as they are where a validator comes before them."""
    if isinstance(schema, dict):
        for ours, theirs in _BOUNDS.items():
            if isinstance(schema.get(ours), int | float):
                schema[theirs] = schema.pop(ours)
        schema.pop("allow_inf_nan", None)
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _spell_out_bounds(inner)


def as_content(config: Config, folder: Path, *, within: Path | None = None, as_read: bool = False) -> dict[str, Any]:
    """Returns settings as a file in ``folder`` says them, for YAML and JSON; see ``paths.seen_from``.

    Args:
        config: the settings.
        folder: where the file is.
        within: a folder that is moved and copied as a whole.
        as_read: whether to keep the paths relative that the file names relatively.
    """
    relative = config.__dict__.get(_RELATIVE, frozenset()) if as_read else frozenset()
    return _dumped(config, lambda path: seen_from(path, folder, within=within, relative=path in relative))


def absolute_content(config: Config) -> dict[str, Any]:
    """Returns settings for YAML and JSON with absolute paths: the file works wherever it is copied to."""
    return _dumped(config, absolute)


def _dumped(config: Config, written: Callable[[Path], Path]) -> dict[str, Any]:
    content = TypeAdapter(Any).dump_python(with_paths(config.model_dump(), written), mode="json")
    assert isinstance(content, dict)
    return content


def _with_base(value: Any, base: Path | Moved | None) -> Any:
    """Returns a value with the paths in it resolved."""
    if base is None:
        return value
    if isinstance(value, Path):
        try:
            return placed(value, base)
        except InputError as error:
            msg = str(error)
            raise ValueError(msg) from None
    if isinstance(value, tuple) and any(isinstance(item, Path) for item in value):
        return tuple(_with_base(item, base) for item in value)
    return value


def _begun_there(value: Any, found: Any) -> Iterator[Path]:
    """Yields the resolved paths of a value that its file names relatively."""
    if isinstance(value, Path) and isinstance(found, Path):
        if not expanded(value).is_absolute():
            yield found
    elif isinstance(value, tuple) and isinstance(found, tuple):
        for item, placed_item in zip(value, found, strict=True):
            yield from _begun_there(item, placed_item)


def _check_not_lost(override: str, key: str, given: Sequence[tuple[str, str, tuple[str, ...]]]) -> None:
    """Refuses an override that replaces a value of an earlier one.

    Args:
        override: the override.
        key: the key that it sets.
        given: earlier ones: the override, its key, and the keys of the values in it.
    """
    for earlier, section, values in given:
        if within(section, (key,)) or within(key, values) or any(within(value, (key,)) for value in values):
            raise InputError(f"replaces {earlier}, which comes before it", where=override, remedy="keep one of them")


def _override(content: dict[str, Any], override: str, kind: type[BaseModel], base: Path | Moved) -> tuple[str, Any]:
    """Puts the value of ``key.path=value`` into the content of a file; returns the key and the value."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError("is not of the form key=value", where=override, remedy="for example training.seed=1")
    try:
        value = parse_yaml(text, where=override)
    except InputError as error:
        whole = all(text.count(start) == text.count(end) for start, end in ("[]", "{}"))
        remedy = error.remedy if whole else "put the whole setting in quotes, as in 'ladder=[{preset: cpu-32}]'"
        raise InputError(error.problem, where=override, remedy=remedy) from None
    *path, last = key.split(".")
    section: Any = content
    at: Any = kind
    for part in path:
        place = _place(section, part, override)
        if isinstance(section, dict) and section.get(place) is None:
            section[place] = {}
        section, at = section[place], _kind_of(at, part)
        if not isinstance(section, dict | list):
            raise InputError(f"{part!r} has no keys of its own", where=override)
    place = _place(section, last, override)
    try:
        section[place] = _as_the_file_names(value, _kind_of(at, last), base)
    except InputError as error:
        raise InputError(error.problem, where=override, remedy=error.remedy) from None
    return key, value


def _place(section: Any, part: str, override: str) -> Any:
    """Returns the key, or the number of an entry, that a part of ``key.path`` means."""
    if not isinstance(section, list):
        return part
    if not part.isdecimal() or int(part) >= len(section):
        remedy = "entries are numbered from 0"
        raise InputError(f"{part!r} is none of {len(section)} entries of a list", where=override, remedy=remedy)
    return int(part)


def _kind_of(kind: Any, part: str) -> Any:
    """Returns the type of a key, or of the entries of a list."""
    for arm in (kind, *arms_of(kind)):
        if part in (fields := fields_of(arm)):
            return fields[part]
        if part.isdecimal() and get_origin(arm) is tuple:
            return get_args(arm)[0]
    return None


def _as_the_file_names(value: Any, kind: Any, base: Path | Moved) -> Any:
    """Returns a value of the command line, whose paths begin at the current folder, as the file would write it."""
    arms = [kind, *arms_of(kind)]
    if isinstance(value, str) and Path in arms:
        path = placed(value, None)
        return str(path.absolute() if isinstance(base, Moved) else seen_from(path, base))
    if isinstance(value, list):
        inner = next((get_args(arm)[0] for arm in arms if get_origin(arm) is tuple), None)
        return [_as_the_file_names(item, inner, base) for item in value]
    if isinstance(value, dict):
        fields = next((found for arm in arms if (found := fields_of(arm))), {})
        return {key: _as_the_file_names(item, fields.get(key), base) for key, item in value.items()}
    return value
