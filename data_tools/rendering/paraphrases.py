"""Paraphrases: a user's own sentences about single facts, next to the templates of the relation.

A line of ``paraphrases.jsonl`` is ``{"fact": id, "split": "train|held_out|question", "text"}``. The text must name the
fact's subject and object, by name or alias (``mentions.py``). The object may be marked, ``[[Paris]]``; otherwise it is
found. The mark is the name and no other word. Train paraphrases are exposures like the filled templates; the others are
asked about, each option in the object's place (a train one too, where it holds the object's name once and in
no other form). In a train one the mark may be another form of a name, each word beginning as the name's does:
``[[России]]`` for Россия.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import regex

from megatron_kis.common.errors import InputError, nearest
from megatron_kis.common.files import read_json_lines
from megatron_kis.common.terms import SPLITS
from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.facts.fields import id_field, string_field
from megatron_kis.data_tools.facts.folding import composed, words
from megatron_kis.data_tools.mentions.mentions import SearchedText, Span, mentions
from megatron_kis.data_tools.mentions.scripts import SPLIT_SCRIPTS, script_of
from megatron_kis.data_tools.rendering.templates import RelationTemplates, wording

_MARKED = re.compile(r"\[\[(.+?)\]\]")
_GLUED_TO = regex.compile(r"[\p{L}\p{M}]*")
_APOSTROPHE = regex.compile(r"['’]\p{L}+$")  # Türkiye'de
_INVARIANT = regex.compile(r"[\p{S}\p{N}#@%]")  # the same in all forms of a name
_SHORTEST = 3  # fewest letters that a form of a name shares with it
_SLOT = re.compile(r"\[[XY]\]")

Paraphrases = dict[str, RelationTemplates]
"""Templates of single facts by fact id: the subject is written out, ``[Y]`` is the object's slot."""


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
        for key in ("fact", "split", "text"):
            if row.get(key) in (None, "") or not str(row[key]).strip():
                raise InputError(f"{key} is missing", where=where, remedy="every paraphrase needs fact, split and text")
        split = string_field(row, "split", where)
        text = string_field(row, "text", where)
        identifier = id_field(row, "fact", where)
        if identifier not in known:
            raise InputError(f"no fact {identifier!r}", where=where, remedy="expected the id of a fact in facts.jsonl")
        if split not in SPLITS:
            raise InputError(f"unknown split {split!r}", where=where, remedy=nearest(split, SPLITS))
        template = _template(text, known[identifier], split, where)
        taken = places.setdefault((identifier, wording(text)), where)
        if taken != where:
            raise InputError(
                f"same wording as {taken}", where=where, remedy="a sentence may be in one split only, and once"
            )
        found[identifier][split].append(template)
    return {
        identifier: RelationTemplates(*(tuple(splits[split]) for split in SPLITS))
        for identifier, splits in found.items()
    }


def with_paraphrases(templates: RelationTemplates, own: RelationTemplates | None) -> RelationTemplates:
    """Returns the templates of a fact: its relation's, then its own."""
    if own is None:
        return templates
    return RelationTemplates(*(templates.split(split) + own.split(split) for split in SPLITS))


def _template(text: str, fact: Fact, split: str, where: str) -> str:
    """Returns the text with ``[Y]`` for its object, unchanged if it is a train text with another form of the object."""
    if _SLOT.search(text):
        raise InputError("holds a slot of a template", where=where, remedy="write subject and object out")
    marks = list(_MARKED.finditer(text))
    if len(marks) > 1:
        raise InputError("marks several objects", where=where, remedy="mark one, [[like this]]")
    bare = _MARKED.sub(r"\1", text)
    if not _name_spans(bare, (fact.subject, *fact.subject_aliases)):
        remedy = "name it so, or add the form in this sentence to the fact's subject_aliases"
        raise InputError(f"does not name the subject {fact.subject!r}", where=where, remedy=remedy)
    names = (fact.object, *fact.object_aliases)
    another = "name it so, or add the form in this sentence to the fact's object_aliases"
    if split == "train":
        another += ", or mark it [[like this]]"
    # The first of the names that the text has: an alias is not the object named again.
    spans = next(filter(None, (_name_spans(bare, [name]) for name in names)), [])
    if marks:
        start, marked = marks[0].start(), marks[0][1]
        spans = [(start + first, start + last) for first, last in _name_in_mark(marked, names, forms=split == "train")]
        another = f"expected {fact.object!r} or an alias, and nothing else, in the mark"
        if split != "train":
            another += "; another form of the name must be one of the fact's object_aliases"
    if not spans:
        problem = f"marks {marks[0][1]!r}" if marks else f"does not name the object {fact.object!r}"
        raise InputError(problem, where=where, remedy=another)
    start, end = spans[0]
    once = len(spans) == 1 and not _name_spans(f"{bare[:start]} \0 {bare[end:]}", names)
    if split == "train" and not (once and bare[start:end] == fact.object):
        return bare
    if not once:
        raise InputError("names the object twice", where=where, remedy="a question must not hold its answer")
    return bare[:start] + "[Y]" + bare[end:]


def _name_in_mark(marked: str, names: Sequence[str], *, forms: bool) -> list[Span]:
    """Finds a name in marked words that are nothing but the name and endings attached to it."""
    for start, end in sorted(_name_spans(marked, names), key=lambda place: place[0] - place[1]):
        # Where no spaces are written, what is next to the name is other words.
        spaced = not {script_of(letter) for letter in composed(marked[start:end])} & ({*SPLIT_SCRIPTS} - {"Hang"})
        glued = spaced and all(_GLUED_TO.fullmatch(rest) for rest in (marked[:start], marked[end:]))
        if glued or (start, end) == (0, len(marked)):
            return [(start, end)]
    return [(0, len(marked))] if forms and (_is_form(marked, names) or _APOSTROPHE.sub("", marked) in names) else []


def _is_form(marked: str, names: Iterable[str]) -> bool:
    """Returns whether marked words are a form of a name: as many words, each sharing half its letters or three."""
    own = words(marked)
    return any(
        len(own) == len(name := words(written))
        and any(len(word) >= _SHORTEST for word in name)
        and _INVARIANT.findall(marked) == _INVARIANT.findall(written)
        and all(
            one.startswith(other[: max(_SHORTEST, (len(other) + 1) // 2)]) and (one == other or len(other) >= _SHORTEST)
            for one, other in zip(own, name, strict=True)
        )
        for written in names
    )


def _name_spans(text: str, names: Iterable[str]) -> list[Span]:
    """Finds any of the names, in any case: a paraphrase is about its fact."""
    return mentions(SearchedText(text), names, strict=False)
