"""Questions in columns: a million questions are a few arrays, and one becomes an object only when it is accessed.

An option of 15 tokens takes 120 bytes, its share of the question included (four options per question); as tuples of
Python integers in dataclasses it takes 870.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from megatron_kis.data_tools.storage.ranges import ranges, starts_of
from megatron_kis.probes.ragged import Ragged


@dataclass(frozen=True)
class Option:
    """One candidate: the statement with this object in it."""

    text: str
    """Name of the object."""

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
        """Begins without strings."""
        self._numbers: dict[str, int] = {}
        self._codes = array("i")

    def add(self, name: str) -> None:
        """Appends a name to the column."""
        self._codes.append(self._numbers.setdefault(name, len(self._numbers)))

    def column(self) -> NameColumn:
        """Returns the column of all names that were added."""
        return NameColumn(list(self._numbers), np.array(self._codes, dtype=np.int32))


@dataclass(frozen=True)
class NameColumn:
    """One string per question."""

    names: list[str]
    """Distinct strings, in the order in which they were first added."""

    codes: NDArray[np.int32]
    """[questions] index of each question's string among the names."""

    def __getitem__(self, index: int) -> str:
        """Returns the string of a question."""
        name: str = self.names[self.codes[index]]
        return name

    def take(self, rows: NDArray[np.int64]) -> NameColumn:
        """Returns the strings of some questions."""
        return NameColumn(self.names, self.codes[rows])


@dataclass(frozen=True)
class QuestionTable(Sequence[Question]):
    """Q questions, whose options and aliases follow one another."""

    fact: NameColumn
    group: NameColumn
    relation: NameColumn
    split: NameColumn

    template: NDArray[np.int32]
    """[Q] number of the template within its relation and split."""

    answer: NDArray[np.int32]
    """[Q] index of the right option."""

    sizes: NDArray[np.int32]
    """[Q] number of options, without aliases."""

    starts: NDArray[np.int64]
    """[Q + 1] first option of each question; its aliases follow its options."""

    tokens: Ragged
    """[options and aliases] tokens of the statements."""

    spans: NDArray[np.int32]
    """[options and aliases, 2] token ranges of the objects."""

    texts: Ragged
    """[options and aliases] objects in UTF-8."""

    def __len__(self) -> int:
        return len(self.template)

    @overload
    def __getitem__(self, index: int) -> Question: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Question, ...]: ...
    def __getitem__(self, index: int | slice) -> Question | tuple[Question, ...]:
        """Returns one question as an object, or several."""
        if isinstance(index, slice):
            return tuple(self[number] for number in range(*index.indices(len(self))))
        number = range(len(self))[index]
        start, size, stop = int(self.starts[number]), int(self.sizes[number]), int(self.starts[number + 1])
        return Question(
            fact=self.fact[number],
            group=self.group[number],
            relation=self.relation[number],
            split=self.split[number],
            template=int(self.template[number]),
            answer=int(self.answer[number]),
            options=tuple(self._option(at) for at in range(start, start + size)),
            aliases=tuple(self._option(at) for at in range(start + size, stop)),
        )

    def __iter__(self) -> Iterator[Question]:
        return (self[number] for number in range(len(self)))

    def take(self, rows: NDArray[np.int64]) -> QuestionTable:
        """Returns some questions, in the order of ``rows``."""
        starts = starts_of(np.diff(self.starts)[rows])
        options = ranges(self.starts[rows], starts)
        return QuestionTable(
            fact=self.fact.take(rows),
            group=self.group.take(rows),
            relation=self.relation.take(rows),
            split=self.split.take(rows),
            template=self.template[rows],
            answer=self.answer[rows],
            sizes=self.sizes[rows],
            starts=starts,
            tokens=self.tokens.taken(options),
            spans=self.spans[options],
            texts=self.texts.taken(options),
        )

    def _option(self, at: int) -> Option:
        first, last = self.spans[at].tolist()
        return Option(self.texts[at].tobytes().decode(), tuple(self.tokens[at].tolist()), (first, last))

    @classmethod
    def of(cls, questions: Iterable[Question]) -> QuestionTable:
        """Converts questions to columns."""
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
    """Builds a table: each question is added, and then its options and aliases."""

    def __init__(self) -> None:
        """Begins without questions."""
        self._fact = Names()
        self._group = Names()
        self._relation = Names()
        self._split = Names()
        self._template = array("i")
        self._answer = array("i")
        self._sizes = array("i")
        self._starts = array("q")
        self._tokens = array("i")
        self._lengths = array("i")
        self._spans = array("i")
        self._text = bytearray()
        self._byte_counts = array("i")

    def add(self, fact: str, group: str, relation: str, split: str, template: int, answer: int, options: int) -> None:
        """Adds a question, without its options."""
        self._fact.add(fact)
        self._group.add(group)
        self._relation.add(relation)
        self._split.add(split)
        self._template.append(template)
        self._answer.append(answer)
        self._sizes.append(options)
        self._starts.append(len(self._lengths))

    def add_option(self, text: str, tokens: Sequence[int], span: Sequence[int]) -> None:
        """Adds an option or, after the options, an alias to the last question.

        Raises:
            TypeError: a token is no integer.
            OverflowError: a token does not fit into 32 bits.
        """
        self._tokens.extend(tokens)
        self._lengths.append(len(tokens))
        self._spans.extend(span)
        encoded = text.encode()
        self._text += encoded
        self._byte_counts.append(len(encoded))

    def table(self) -> QuestionTable:
        """Returns the table of all questions that were added."""
        return QuestionTable(
            fact=self._fact.column(),
            group=self._group.column(),
            relation=self._relation.column(),
            split=self._split.column(),
            template=np.array(self._template, dtype=np.int32),
            answer=np.array(self._answer, dtype=np.int32),
            sizes=np.array(self._sizes, dtype=np.int32),
            starts=np.array([*self._starts, len(self._lengths)], dtype=np.int64),
            tokens=_ragged(np.array(self._tokens, dtype=np.int32), self._lengths),
            spans=np.array(self._spans, dtype=np.int32).reshape(-1, 2),
            texts=_ragged(np.frombuffer(bytes(self._text), dtype=np.uint8), self._byte_counts),
        )


def _ragged(values: NDArray[np.int32] | NDArray[np.uint8], lengths: array[int]) -> Ragged:
    return Ragged(values, starts_of(np.array(lengths, dtype=np.int64)))
