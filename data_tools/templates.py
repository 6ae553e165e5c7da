"""Sentence templates of each relation: loading, validation and filling.

``templates.yaml`` maps a relation to the lists ``train`` (rendered into training text), ``held_out`` (probing only) and
``question`` (probing only); each template holds ``[X]``, the subject, and ``[Y]``, the object, exactly once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_kis.errors import InputError, nearest
from megatron_kis.files import read_text

SPLITS = ("train", "held_out", "question")
"""The template splits, in the order in which questions are written."""

_SLOT = re.compile(r"\[([XY])\]")
_SPACES = re.compile(r"\W+")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A filled template."""

    text: str
    """The sentence."""
    answer: tuple[int, int]
    """Half-open character range of the object in it."""


@dataclass(frozen=True, slots=True)
class RelationTemplates:
    """The templates of one relation."""

    train: tuple[str, ...]
    """Rendered into training text; at least one."""
    held_out: tuple[str, ...]
    """For probing only."""
    question: tuple[str, ...]
    """For probing only: a question and its answer."""

    def split(self, name: str) -> tuple[str, ...]:
        """The templates of a split, ``train``, ``held_out`` or ``question``."""
        templates: tuple[str, ...] = getattr(self, name)
        return templates


Templates = Mapping[str, RelationTemplates]
"""Relation to its templates."""


def fill(template: str, subject: str, answer: str) -> Rendered:
    """Puts subject and object into a template. Names that hold ``[X]`` or ``[Y]`` themselves do no harm."""
    text, span = "", (0, 0)
    at = 0
    for slot in _SLOT.finditer(template):
        text += template[at : slot.start()]
        if slot.group(1) == "X":
            text += subject
        else:
            span = (len(text), len(text) + len(answer))
            text += answer
        at = slot.end()
    return Rendered(text + template[at:], span)


def load_templates(path: Path, *, relations: Iterable[str] | None = None) -> dict[str, RelationTemplates]:
    """Reads and validates ``templates.yaml``.

    Args:
        path: the YAML file.
        relations: relations that must be there (those of the facts); others are kept as well.

    Raises:
        InputError: not such a file; a template without its slots or one that stands in two places, named by relation,
            split and index; a relation without train templates, or lacking altogether.
    """
    import yaml

    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"not valid YAML ({getattr(error, 'problem', error)})", where=where) from None
    if not isinstance(content, dict) or not content:
        raise InputError("not a mapping of relations", where=str(path), remedy="expected relation: {train: [...], ...}")
    templates = {str(relation): _relation(path, str(relation), lists) for relation, lists in content.items()}
    for relation in relations or ():
        if relation not in templates:
            raise InputError(
                f"no templates for relation {relation!r}", where=str(path), remedy=nearest(relation, templates)
            )
    return templates


def _relation(path: Path, relation: str, lists: object) -> RelationTemplates:
    where = f"{path}: {relation}"
    if not isinstance(lists, dict):
        raise InputError("not a mapping of splits", where=where, remedy=f"expected {', '.join(SPLITS)}")
    for name in lists:
        if name not in SPLITS:
            raise InputError(f"unknown split {name!r}", where=where, remedy=nearest(str(name), SPLITS))
    places: dict[str, str] = {}
    for split in SPLITS:
        entries = lists.get(split) or []
        if not isinstance(entries, list):
            raise InputError("not a list of templates", where=f"{where}.{split}")
        for index, template in enumerate(entries):
            _check(template, f"{where}.{split}[{index}]", places)
    if not lists.get("train"):
        raise InputError("no train templates", where=where, remedy="facts of this relation could not be rendered")
    return RelationTemplates(*(tuple(lists.get(split) or ()) for split in SPLITS))


def _check(template: object, where: str, places: dict[str, str]) -> None:
    if not isinstance(template, str):
        raise InputError(f"{template!r} is not a string", where=where, remedy="put it in quotes")
    slots = _SLOT.findall(template)
    for slot, role in (("X", "subject"), ("Y", "object")):
        if slots.count(slot) != 1:
            found = "without" if slot not in slots else "with more than one"
            raise InputError(f"template {found} [{slot}], the {role}", where=where, remedy="expected exactly one")
    wording = _SPACES.sub(" ", template.casefold()).strip()
    if wording in places:
        raise InputError(
            f"same wording as {places[wording]}", where=where, remedy="a template stands in one split and once"
        )
    places[wording] = where
