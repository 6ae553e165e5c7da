"""Questions in columns: what a million facts take is arrays, and a question is an object only while it is looked at.

Four options of 15 tokens take 120 bytes each, the question's share included; as tuples of Python integers in
dataclasses they take 870.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from megatron_kis.probes.ragged import Ragged, starts_of


@dataclass(frozen=True)
class Option:
    """One candidate: the statement with this object in it."""

    text: str
    """The object."""

    tokens: tuple[int, ...]
    """The whole statement, without a first or last special token."""

    span: tuple[int, int]
    """Half-open token range of the object."""


@dataclass(frozen=True)
class Question:
    """One fact under one template, with its options."""

    fact: str
    group: str
    relation: str
    split: str
    template: int
    answer: int
    options: tuple[Option, ...]
    aliases: tuple[Option, ...] = ()
    """Other names of the answer, right where a model completes the statement; never options."""


class Names:
    """Strings by number, each kept once."""

    def __init__(self) -> None:
        """Starts empty."""
        self._numbers: dict[str, int] = {}
        self._codes = array("i")

    def add(self, name: str) -> None:
        """Appends a name to the column."""
        self._codes.append(self._numbers.setdefault(name, len(self._numbers)))

    def column(self) -> NameColumn:
        """What was added."""
        return NameColumn(list(self._numbers), np.array(self._codes, dtype=np.int32))


@dataclass(frozen=True)
class NameColumn:
    """A string a question."""

    names: list[str]
    """The different ones, in the order in which they first came."""

    codes: NDArray[np.int32]
    """[questions] which of them."""

    def __getitem__(self, index: int) -> str:
        """The string of a question."""
        return self.names[self.codes[index]]


@dataclass(frozen=True)
class QuestionTable(Sequence[Question]):
    """Q questions, whose options and aliases lie one behind the other."""

    fact: NameColumn
    group: NameColumn
    relation: NameColumn
    split: NameColumn

    template: NDArray[np.int32]
    """[Q]."""

    answer: NDArray[np.int32]
    """[Q] which option is right."""

    sizes: NDArray[np.int32]
    """[Q] options, aliases apart."""

    starts: NDArray[np.int64]
    """[Q + 1] the first option of each; the aliases follow the options."""

    tokens: Ragged
    """[options and aliases] the statements."""

    spans: NDArray[np.int32]
    """[options and aliases, 2] token ranges of the objects."""

    texts: Ragged
    """[options and aliases] the objects in UTF-8."""

    def __len__(self) -> int:
        return len(self.template)

    @overload
    def __getitem__(self, index: int) -> Question: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Question, ...]: ...
    def __getitem__(self, index: int | slice) -> Question | tuple[Question, ...]:
        """One question as an object, or several."""
        if isinstance(index, slice):
            return tuple(self[number] for number in range(*index.indices(len(self))))
        number = range(len(self))[index]
        start, size, stop = int(self.starts[number]), int(self.sizes[number]), int(self.starts[number + 1])
        return Question(
            fact=self.fact[number], group=self.group[number], relation=self.relation[number], split=self.split[number],
            template=int(self.template[number]), answer=int(self.answer[number]),
            options=tuple(self._option(at) for at in range(start, start + size)),
            aliases=tuple(self._option(at) for at in range(start + size, stop)),
        )  # fmt: skip

    def __iter__(self) -> Iterator[Question]:
        return (self[number] for number in range(len(self)))

    def _option(self, at: int) -> Option:
        first, last = self.spans[at].tolist()
        return Option(self.texts[at].tobytes().decode(), tuple(self.tokens[at].tolist()), (first, last))

    @classmethod
    def of(cls, questions: Iterable[Question]) -> QuestionTable:
        """Takes questions apart."""
        if isinstance(questions, QuestionTable):
            return questions
        columns = QuestionColumns()
        for question in questions:
            names = (question.fact, question.group, question.relation, question.split)
            columns.add(*names, question.template, question.answer, len(question.options))
            for option in (*question.options, *question.aliases):
                columns.add_option(option.text, option.tokens, option.span)
        return columns.table()


class QuestionColumns:
    """Questions as they arrive: each is added, and then its options and aliases."""

    def __init__(self) -> None:
        """Starts empty."""
        self._names = tuple(Names() for _ in range(4))
        self._numbers = tuple(array("i") for _ in range(3))  # template, answer, options
        self._starts = array("q")
        self._tokens, self._lengths, self._spans = array("i"), array("i"), array("i")
        self._text, self._bytes = bytearray(), array("i")

    def add(self, fact: str, group: str, relation: str, split: str, template: int, answer: int, options: int) -> None:
        """Begins a question."""
        for column, name in zip(self._names, (fact, group, relation, split), strict=True):
            column.add(name)
        for numbers, value in zip(self._numbers, (template, answer, options), strict=True):
            numbers.append(value)
        self._starts.append(len(self._lengths))

    def add_option(self, text: str, tokens: Sequence[int], span: Sequence[int]) -> None:
        """Adds an option or, behind the options, an alias to the last question.

        Raises:
            TypeError: a token that is no integer.
            OverflowError: or none of 32 bits.
        """
        self._tokens.extend(tokens)
        self._lengths.append(len(tokens))
        self._spans.extend(span)
        encoded = text.encode()
        self._text += encoded
        self._bytes.append(len(encoded))

    def table(self) -> QuestionTable:
        """What was added."""
        fact, group, relation, split = (names.column() for names in self._names)
        template, answer, sizes = (np.array(numbers, dtype=np.int32) for numbers in self._numbers)
        return QuestionTable(
            fact=fact, group=group, relation=relation, split=split, template=template, answer=answer, sizes=sizes,
            starts=np.array([*self._starts, len(self._lengths)], dtype=np.int64),
            tokens=_ragged(np.array(self._tokens, dtype=np.int32), self._lengths),
            spans=np.array(self._spans, dtype=np.int32).reshape(-1, 2),
            texts=_ragged(np.frombuffer(bytes(self._text), dtype=np.uint8), self._bytes),
        )  # fmt: skip


def _ragged(values: NDArray[np.int32] | NDArray[np.uint8], lengths: array[int]) -> Ragged:
    return Ragged(values, starts_of(np.array(lengths, dtype=np.int64)))
