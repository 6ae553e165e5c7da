"""Sentence templates of each relation: loading, validating and filling them.

``templates.yaml`` maps a relation to the lists ``train`` (rendered into training text), ``held_out`` (probing only) and
``question`` (probing only); each template holds ``[X]``, the subject, and ``[Y]``, the object, exactly once. ``a(n)``
before a slot becomes *a* or *an* as the name needs it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from unicodedata import category

from megatron_kis.common.errors import InputError, nearest
from megatron_kis.common.files import read_text
from megatron_kis.common.identifiers import checked_name
from megatron_kis.common.parsing import parse_yaml
from megatron_kis.common.terms import SPLITS
from megatron_kis.data_tools.facts.names import name_key
from megatron_kis.data_tools.rendering.articles import indefinite_article

_SLOT = re.compile(r"(?:\b([Aa])\(n\) )?\[([XY])\]")
_FIXED_ARTICLE = re.compile(r"\b(an?) \[([XY])\]", re.IGNORECASE)
_MINUS = re.compile(r"(?<!\w)-(?=\d)")
_READ_OUT = "#%&@\u2030_"  # punctuation by Unicode, but read aloud; other marks only separate


@dataclass(frozen=True, slots=True)
class Rendered:
    """A template with both names filled in."""

    text: str
    """The sentence with both names filled in."""
    answer: tuple[int, int]
    """Half-open character range of the object in it."""


@dataclass(frozen=True, slots=True)
class RelationTemplates:
    """The templates of one relation."""

    train: tuple[str, ...]
    """Templates rendered into training text; at least one."""
    held_out: tuple[str, ...]
    """Templates for probing only."""
    question: tuple[str, ...]
    """Templates for probing only that ask a question and answer it."""

    def split(self, name: str) -> tuple[str, ...]:
        """Returns the templates of a split, ``train``, ``held_out`` or ``question``."""
        templates: tuple[str, ...] = getattr(self, name)
        return templates

    def places(self) -> Iterator[tuple[str, str]]:
        """Yields (``train[0]`` and so on, template) of all splits."""
        for split in SPLITS:
            for index, template in enumerate(self.split(split)):
                yield f"{split}[{index}]", template


Templates = Mapping[str, RelationTemplates]
"""Templates by relation."""


def fill(template: str, subject: str, answer: str) -> Rendered:
    """Fills subject and object into a template; names may contain ``[X]`` or ``[Y]`` themselves."""
    slots, tail = _slots_of(template)
    text, span = "", (0, 0)
    for before, article, is_object in slots:
        name = answer if is_object else subject
        text += before
        if article:
            text += f"{article}{indefinite_article(name)[1:]} "
        if is_object:
            span = (len(text), len(text) + len(name))
        text += name
    return Rendered(text + tail, span)


@lru_cache(maxsize=1024)
def _slots_of(template: str) -> tuple[list[tuple[str, str | None, bool]], str]:
    """Splits a template into (text before, letter of its article, is the object) per slot, and the tail."""
    slots, at = [], 0
    for slot in _SLOT.finditer(template):
        slots.append((template[at : slot.start()], slot[1], slot[2] == "Y"))
        at = slot.end()
    return slots, template[at:]


def wording(template: str) -> str:
    """Returns a template without case, punctuation and the choice of *a* or *an*; no two templates may share it.

    Symbols, vowel signs and a minus before a number belong to the wording.
    """
    words = name_key(_MINUS.sub("\u2212", plain(template)))
    kept = (letter if letter in _READ_OUT or category(letter)[0] in "LMNS" else " " for letter in words)
    return " ".join("".join(kept).split())


def plain(template: str) -> str:
    """Returns a template for readers that know ``[X]`` and ``[Y]`` only: ``a(n)`` becomes *a*."""
    return template.replace("(n) [", " [")


def wrong_articles(template: str, facts: Iterable[tuple[str, str]]) -> list[str]:
    """Finds names that a fixed *a* or *an* before a slot does not fit; ``a(n)`` fits all.

    Args:
        template: the template.
        facts: (subject, object) of its relation's facts.
    """
    pairs = list(facts)
    found: set[str] = set()
    for match in _FIXED_ARTICLE.finditer(template):
        names = {pair["XY".index(match[2])] for pair in pairs}
        found |= {name for name in names if indefinite_article(name) != match[1].casefold()}
    return sorted(found)


def load_templates(path: Path, *, relations: Iterable[str] | None = None) -> dict[str, RelationTemplates]:
    """Reads and validates ``templates.yaml``.

    Args:
        path: the YAML file.
        relations: relations that are required (those of the facts); others are kept as well.

    Raises:
        InputError: not such a file; a template without its slots, or given twice, named by relation, split and
            index; a relation that is missing or has no train templates.
    """
    content = parse_yaml(read_text(path), where=str(path), names=True)
    if not isinstance(content, dict) or not content:
        raise InputError("not a mapping of relations", where=str(path), remedy="expected relation: {train: [...], ...}")
    for relation in content:
        if not isinstance(relation, str):
            raise InputError(f"{relation!r} is not the name of a relation", where=str(path), remedy="put it in quotes")
        checked_name(relation, where=str(path))
    templates = {relation: _relation(path, relation, lists) for relation, lists in content.items()}
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
    slots = [slot for _, slot in _SLOT.findall(template)]
    for slot, role in (("X", "subject"), ("Y", "object")):
        if slots.count(slot) != 1:
            found = "without" if slot not in slots else "with more than one"
            raise InputError(f"template {found} [{slot}], the {role}", where=where, remedy="expected exactly one")
    words = wording(template)
    if words in places:
        raise InputError(
            f"same wording as {places[words]}", where=where, remedy="a template may be in one split only, and once"
        )
    places[words] = where
