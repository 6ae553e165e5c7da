"""Options that cannot be told from an answer fairly, because one of the two extends the other.

"The capital is Guinea" begins "The capital is Guinea-Bissau": the whole is never likelier than its beginning, so the
longer one cannot win where a statement ends with the object, and, where its tokens begin with those of the shorter one,
under no rule that scores the object's tokens. Options that are the same tokens tie in every statement.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.rendering.statements import tokenize_in_batches, tokenize_statements
from megatron_kis.data_tools.rendering.templates import RelationTemplates, fill
from megatron_kis.data_tools.tokenizers.base import Tokenizer

_Forms = tuple[Sequence[Any], ...]
"""Letters of a name without case and accents, and its tokens in a statement of each template: one of two rivals begins
the other in at least one of them, whatever the tokenizer does to a text first."""


class Rivals:
    """Tells whether an object may be an option next to a fact's own.

    Almost no two objects come near each other: the statements of those that do are looked at, and of no others.
    """

    def __init__(
        self, facts: Sequence[Fact], templates: Callable[[Fact], RelationTemplates], tokenizer: Tokenizer
    ) -> None:
        """Finds the objects of each relation that begin another one of it.

        Args:
            facts: all facts of the study.
            templates: the templates of a fact, its paraphrases included.
            tokenizer: the tokenizer of the study.
        """
        self._templates, self._tokenizer = templates, tokenizer
        self._found: dict[tuple[str, str], bool] = {}
        self._near: dict[str, dict[str, _Forms]] = {}
        self._ties: dict[str, dict[str, set[tuple[int, int]]]] = {}
        first: dict[str, dict[str, Fact]] = defaultdict(dict)
        for fact in facts:
            first[fact.relation].setdefault(fact.object, fact)
        for relation, objects in first.items():
            letters = {name: _letters(name) for name in objects}
            near, ties = _begun(letters), defaultdict(set)
            asked = _asked(templates(next(iter(objects.values()))))
            for number, template in enumerate(asked):  # one at a time: many objects have many tokens
                forms = dict(self._forms(template, objects))
                near |= _begun(forms)
                for name, group in _equal(forms).items():
                    ties[name].add((number, group))
            at_hand = [dict(self._forms(template, {name: objects[name] for name in near})) for template in asked]
            self._near[relation] = {name: (letters[name], *(forms[name] for forms in at_hand)) for name in near}
            self._ties[relation] = ties

    def __call__(self, fact: Fact, name: str) -> bool:
        """Whether an object extends the fact's own, or is extended by it, in one of the fact's statements."""
        near = self._near.get(fact.relation, {})
        if name == fact.object or fact.object not in near or name not in near:
            return False
        if not any(_one_begins(*forms) for forms in zip(near[fact.object], near[name], strict=True)):
            return False
        key = (fact.id, name)
        if key not in self._found:
            self._found[key] = self._in_statements(fact, name)
        return self._found[key]

    def near(self, relation: str) -> Collection[str]:
        """The objects of a relation of which one may begin another."""
        return self._near.get(relation, {})

    def ties(self, relation: str, name: str) -> frozenset[tuple[int, int]]:
        """Marks of an object that it shares with those that are the same tokens in the statement of some template."""
        return frozenset(self._ties.get(relation, {}).get(name, ()))

    def _forms(self, template: str, objects: Mapping[str, Fact]) -> Iterator[tuple[str, tuple[int, ...]]]:
        statements = ((name, [fill(template, fact.subject, name)]) for name, fact in objects.items())
        for name, [tokens], [(start, stop)] in tokenize_in_batches(statements, self._tokenizer):
            yield name, tuple(tokens[start:stop])

    def _in_statements(self, fact: Fact, name: str) -> bool:
        asked = _asked(self._templates(fact))
        filled = [fill(template, fact.subject, answer) for template in asked for answer in (fact.object, name)]
        if any(_one_begins(right.text, wrong.text) for right, wrong in _pairs(filled)):
            return True
        tokens, spans = tokenize_statements(filled, self._tokenizer)
        for (right, (start, stop)), (wrong, (begin, end)) in _pairs(list(zip(tokens, spans.tolist(), strict=True))):
            if _one_begins(right, wrong):
                return True
            if right[:start] == wrong[:begin] and _one_begins(right[start:stop], wrong[begin:end]):
                return True
        return False


def _asked(templates: RelationTemplates) -> list[str]:
    """Templates that a question can be made of: some train paraphrases have no object to fill in."""
    return [template for _, template in templates.places() if "[Y]" in template]


def _pairs(items: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(items[::2], items[1::2], strict=True)


def _letters(name: str) -> str:
    folded = unicodedata.normalize("NFKD", name.casefold())
    return "".join(letter for letter in folded if letter.isalnum()) or name


def _one_begins(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether one of two sequences is the other one's beginning; equal ones are."""
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _begun(forms: Mapping[str, Sequence[Any]]) -> set[str]:
    """The names whose form begins another's, and those that are begun; n log n."""
    found: set[str] = set()
    above: list[tuple[Any, str]] = []  # those sorted before, each beginning the next
    for form, name in sorted((form, name) for name, form in forms.items()):
        while above and not _one_begins(above[-1][0], form):
            above.pop()
        if above:
            found |= {name, above[-1][1]}
        above.append((form, name))
    return found


def _equal(forms: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The names whose form another has too, and the number of that form."""
    names: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, form in forms.items():
        names[form].append(name)
    shared = (members for members in names.values() if len(members) > 1)
    return {name: number for number, members in enumerate(shared) for name in members}
