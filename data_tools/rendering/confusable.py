"""Options that cannot be compared fairly with an answer, because one of the two extends the other.

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
"""Letters of a name without case and accents, and its tokens in a statement of each template. Of two confusable names
one begins the other in at least one of these forms, whatever normalisation the tokenizer applies."""


class ConfusableOptions:
    """The objects that may not be options next to a fact's own, because one of the two extends the other.

    Few objects come near each other: only for those are whole statements compared.
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
        self._templates = templates
        self._tokenizer = tokenizer
        self._found: dict[tuple[str, str], bool] = {}
        self._near: dict[str, dict[str, _Forms]] = {}
        self._ties: dict[str, dict[str, set[tuple[int, int]]]] = {}
        first: dict[str, dict[str, Fact]] = defaultdict(dict)
        for fact in facts:
            first[fact.relation].setdefault(fact.object, fact)
        for relation, objects in first.items():
            letters = {name: _letters(name) for name in objects}
            near = _extending_pairs(letters)
            ties: dict[str, set[tuple[int, int]]] = defaultdict(set)
            asked = _askable(templates(next(iter(objects.values()))))
            for number, template in enumerate(asked):  # one at a time, to bound memory
                forms = dict(self._forms(template, objects))
                near |= _extending_pairs(forms)
                for name, group in _equal(forms).items():
                    ties[name].add((number, group))
            by_template = [dict(self._forms(template, {name: objects[name] for name in near})) for template in asked]
            self._near[relation] = {name: (letters[name], *(forms[name] for forms in by_template)) for name in near}
            self._ties[relation] = ties

    def __call__(self, fact: Fact, name: str) -> bool:
        """Returns whether an object extends the fact's own, or is extended by it, in one of the fact's statements."""
        near = self._near.get(fact.relation, {})
        if name == fact.object or fact.object not in near or name not in near:
            return False
        if not any(_is_prefix(*forms) for forms in zip(near[fact.object], near[name], strict=True)):
            return False
        key = (fact.id, name)
        if key not in self._found:
            self._found[key] = self._in_statements(fact, name)
        return self._found[key]

    def near(self, relation: str) -> Collection[str]:
        """Returns the objects of a relation of which one may begin another."""
        return self._near.get(relation, {})

    def ties(self, relation: str, name: str) -> frozenset[tuple[int, int]]:
        """Returns marks that an object shares with those of the same tokens in the statement of some template."""
        return frozenset(self._ties.get(relation, {}).get(name, ()))

    def _forms(self, template: str, objects: Mapping[str, Fact]) -> Iterator[tuple[str, tuple[int, ...]]]:
        statements = ((name, [fill(template, fact.subject, name)]) for name, fact in objects.items())
        for name, [tokens], [(start, stop)] in tokenize_in_batches(statements, self._tokenizer):
            yield name, tuple(tokens[start:stop])

    def _in_statements(self, fact: Fact, name: str) -> bool:
        asked = _askable(self._templates(fact))
        filled = [fill(template, fact.subject, answer) for template in asked for answer in (fact.object, name)]
        if any(_is_prefix(right.text, wrong.text) for right, wrong in _pairs(filled)):
            return True
        tokens, spans = tokenize_statements(filled, self._tokenizer)
        for (right, (start, stop)), (wrong, (begin, end)) in _pairs(list(zip(tokens, spans.tolist(), strict=True))):
            if _is_prefix(right, wrong):
                return True
            if right[:start] == wrong[:begin] and _is_prefix(right[start:stop], wrong[begin:end]):
                return True
        return False


def _askable(templates: RelationTemplates) -> list[str]:
    """Returns the templates that a question can be made of: some train paraphrases have no object to fill in."""
    return [template for _, template in templates.places() if "[Y]" in template]


def _pairs(items: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(items[::2], items[1::2], strict=True)


def _letters(name: str) -> str:
    folded = unicodedata.normalize("NFKD", name.casefold())
    return "".join(letter for letter in folded if letter.isalnum()) or name


def _is_prefix(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Returns whether one of two sequences is a prefix of the other, or equal to it."""
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _extending_pairs(forms: Mapping[str, Sequence[Any]]) -> set[str]:
    """Returns the names whose form is a prefix of another's, and those others; n log n."""
    found: set[str] = set()
    above: list[tuple[Any, str]] = []  # a stack of forms, each a prefix of the next
    for form, name in sorted((form, name) for name, form in forms.items()):
        while above and not _is_prefix(above[-1][0], form):
            above.pop()
        if above:
            found |= {name, above[-1][1]}
        above.append((form, name))
    return found


def _equal(forms: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Numbers the forms that several names share; returns the names that have one, with its number."""
    names: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, form in forms.items():
        names[form].append(name)
    shared = (members for members in names.values() if len(members) > 1)
    return {name: number for number, members in enumerate(shared) for name in members}
