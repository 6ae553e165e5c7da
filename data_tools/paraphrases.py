"""Paraphrases: sentences about single facts that a user brings, beside the templates of the relation.

A line of ``paraphrases.jsonl`` is ``{"fact": id, "split": "train|held_out|question", "text"}``. The text must name the
fact's subject and object, by name or alias (``mentions.py``). The object may be marked, ``[[Paris]]``; otherwise it is
found. Train paraphrases are exposures like the filled templates; the others are asked about, each option standing in
the object's place (a train one too, where it holds the object's name once and in no other form).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_tools.facts import Fact, id_field, string_field
from data_tools.folding import line_of_words
from data_tools.mentions import Span, WeighedText, mentions
from data_tools.templates import SPLITS, RelationTemplates
from megatron_kis.errors import InputError, nearest
from megatron_kis.files import read_json_lines

_MARKED = re.compile(r"\[\[(.+?)\]\]")
_SLOT = re.compile(r"\[[XY]\]")

Paraphrases = dict[str, RelationTemplates]
"""Fact id to its own templates: the subject is written out, ``[Y]`` stands for the object."""


def load_paraphrases(path: Path, facts: Sequence[Fact]) -> Paraphrases:
    """Reads and checks a paraphrase file.

    Raises:
        InputError: with ``file:line``: an unknown fact or split, a text without its subject or object, one that names
            the object twice where it is asked for, or the wording of another line of the fact.
    """
    known = {fact.id: fact for fact in facts}
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: {split: [] for split in SPLITS})
    places: dict[tuple[str, str], str] = {}
    for number, row in read_json_lines(path):
        where = f"{path}:{number}"
        split, text = (string_field(row, key, where) for key in ("split", "text"))
        identifier = id_field(row, "fact", where)
        if identifier not in known:
            raise InputError(f"no fact {identifier!r}", where=where, remedy="expected the id of a fact in facts.jsonl")
        if split not in SPLITS:
            raise InputError(f"unknown split {split!r}", where=where, remedy=nearest(split, SPLITS))
        template = _template(text, known[identifier], split, where)
        taken = places.setdefault((identifier, line_of_words(text)), where)
        if taken != where:
            raise InputError(f"same wording as {taken}", where=where, remedy="a sentence stands in one split and once")
        found[identifier][split].append(template)
    return {
        identifier: RelationTemplates(*(tuple(splits[split]) for split in SPLITS))
        for identifier, splits in found.items()
    }


def with_paraphrases(templates: RelationTemplates, own: RelationTemplates | None) -> RelationTemplates:
    """The templates of a fact: its relation's, then its own."""
    if own is None:
        return templates
    return RelationTemplates(*(templates.split(split) + own.split(split) for split in SPLITS))


def _template(text: str, fact: Fact, split: str, where: str) -> str:
    """The text with ``[Y]`` for its object; a train text stays as it is where the object has another form there."""
    if _SLOT.search(text):
        raise InputError("holds a slot of a template", where=where, remedy="write subject and object out")
    marks = list(_MARKED.finditer(text))
    if len(marks) > 1:
        raise InputError("marks several objects", where=where, remedy="mark one, [[like this]]")
    bare = _MARKED.sub(r"\1", text)
    if not _places(bare, (fact.subject, *fact.subject_aliases)):
        raise InputError(f"does not name the subject {fact.subject!r}", where=where, remedy="nor one of its aliases")
    names = (fact.object, *fact.object_aliases)
    # The first of the names that the text has: an alias is not the object named again.
    spans = [marks[0].span()] if marks else next(filter(None, (_places(text, [name]) for name in names)), [])
    if not spans:
        remedy = "name it, or mark its form in this sentence [[like this]]"
        raise InputError(f"does not name the object {fact.object!r}", where=where, remedy=remedy)
    if marks and not _places(marks[0][1], names):
        remedy = f"expected {fact.object!r} or an alias in the marked words"
        raise InputError(f"marks {marks[0][1]!r}", where=where, remedy=remedy)
    start, end = spans[0]
    once = len(spans) == 1 and not _places(f"{text[:start]} \0 {text[end:]}", names)
    if split == "train" and not (once and (marks[0][1] if marks else text[start:end]) == fact.object):
        return bare
    if not once:
        raise InputError("names the object twice", where=where, remedy="a question must not hold its answer")
    return text[:start] + "[Y]" + text[end:]


def _places(text: str, names: Iterable[str]) -> list[Span]:
    """Where any of the names stands; who writes a paraphrase means the names, in whatever case."""
    return mentions(WeighedText(text), names, strict=False)
