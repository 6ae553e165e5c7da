from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_kis.probes.questions import Option, Question, QuestionSet
from megatron_kis.probes.ragged import Ragged

NUMBERS = st.integers(0, 2**31 - 1)
OPTIONS = st.builds(
    Option,
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    tokens=st.lists(NUMBERS, min_size=1, max_size=4).map(tuple),
    span=st.tuples(NUMBERS, NUMBERS),
)
NAMES = st.sampled_from(["", "a", "b", "ß"])
QUESTIONS = st.builds(
    Question,
    fact=NAMES,
    group=NAMES,
    relation=NAMES,
    split=NAMES,
    template=NUMBERS,
    answer=NUMBERS,
    options=st.lists(OPTIONS, min_size=1, max_size=3).map(tuple),
    aliases=st.lists(OPTIONS, max_size=2).map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(QUESTIONS, max_size=5).map(tuple))
def test_questions_come_out_of_their_columns_as_they_went_in(questions: tuple[Question, ...]) -> None:
    held = QuestionSet({}, questions)
    assert tuple(held.questions) == questions
    assert held.questions[::-1] == questions[::-1]
    assert QuestionSet({}, held.questions).table is held.table
    if questions:
        assert held.questions[-1] == questions[-1]


@given(st.lists(st.lists(NUMBERS, max_size=4), min_size=1, max_size=6), st.data())
def test_ragged_sequences_are_taken_cut_and_padded(sequences: list[list[int]], data: st.DataObject) -> None:
    ragged = Ragged.of(sequences)
    chosen = np.array(data.draw(st.lists(st.integers(0, len(sequences) - 1))), dtype=np.int64)
    taken = ragged.taken(chosen)
    assert [taken[at].tolist() for at in range(len(taken))] == [sequences[at] for at in chosen]
    last = ragged.lengths
    first = np.minimum(1, last)
    cut = ragged.parts(first, last)
    assert [cut[at].tolist() for at in range(len(cut))] == [sequence[1:] for sequence in sequences]
    width = int(last.max())
    padded = [[*sequence, *[-1] * (width - len(sequence))] for sequence in sequences]
    assert ragged.padded(width).tolist() == padded
    both = ragged.joined(taken)
    assert both.starts[-1] == len(both.values)
    assert both[len(sequences) - 1].tolist() == sequences[-1]
