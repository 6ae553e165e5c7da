from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_tools.indexed import IndexedWriter, suffixed
from megatron_kis.data.general import GeneralText, ValidationText
from megatron_kis.errors import InputError
from megatron_kis.files import write_json

SEARCH = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write_corpus(prefix: Path, tokens: int) -> Path:
    """A corpus in which token i of the stream has id i, in documents of 10 tokens."""
    with IndexedWriter(prefix, vocab_size=max(tokens, 70_000)) as writer:
        for first in range(0, tokens, 10):
            writer.add(list(range(first, min(first + 10, tokens))))
    meta = {"schema": "kis.corpus/1", "content_fingerprint": writer.content_fingerprint, "tokenizer_fingerprint": "t"}
    write_json(suffixed(prefix, ".meta.json"), meta)
    return prefix


def starts(text: GeneralText, epoch: int) -> list[int]:
    """Where each stretch of an epoch begins in the corpus."""
    first = epoch * text.stretches
    return [int(text.stretch(sequence, 1)[0]) for sequence in range(first, first + text.stretches)]


@SEARCH
@given(st.integers(2, 40), st.integers(0, 400), st.integers(0, 99), st.integers(0, 3))
def test_an_epoch_reads_every_stretch_once_and_whole(
    tmp_path_factory: pytest.TempPathFactory, length: int, extra: int, seed: int, epoch: int
) -> None:
    corpus = write_corpus(tmp_path_factory.mktemp("corpus") / "c", 3 * length + extra)
    text = GeneralText(corpus, sequence_length=length, seed=seed)
    found = sorted(starts(text, epoch))
    assert np.diff(found).tolist() == [length] * (text.stretches - 1)
    assert 0 <= found[0] < length
    for sequence in range(epoch * text.stretches, (epoch + 1) * text.stretches):
        whole = text.stretch(sequence, length + 1)  # the label of the last token too
        assert np.diff(whole.astype(np.int64)).tolist() == [1] * length  # consecutive, and none outside the corpus
        assert text.stretch(sequence, 2).tolist() == whole[:2].tolist()


def test_an_epoch_leaves_out_less_than_two_sequences_of_text(tmp_path: Path) -> None:
    text = GeneralText(write_corpus(tmp_path / "c", 1000), sequence_length=10, seed=0)
    assert text.stretches * 10 > 1000 - 2 * 10 - 10


def test_epochs_differ_in_order_and_in_their_cuts(tmp_path: Path) -> None:
    text = GeneralText(write_corpus(tmp_path / "c", 4000), sequence_length=32, seed=1)
    orders = [starts(text, epoch) for epoch in range(5)]
    assert len({tuple(np.argsort(order)) for order in orders}) == 5
    assert len({min(order) for order in orders}) > 1
    assert text.epochs(text.stretches * 5) == 5


def test_seeds_differ_and_repeat(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c", 4000)
    one, again, other = (starts(GeneralText(corpus, sequence_length=32, seed=seed), 0) for seed in (1, 1, 2))
    assert one == again != other


def test_too_little_text_for_a_sequence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has 20 tokens, too few for sequences of 32; give at least 96 tokens"):
        GeneralText(write_corpus(tmp_path / "c", 20), sequence_length=32, seed=0)


def test_validation_text_is_the_corpus_from_its_start(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c", 105)
    text = ValidationText(corpus, sequence_length=10, max_tokens=10**6)
    assert len(text) == 10
    for number in range(len(text)):
        assert text[number].tolist() == list(range(10 * number, 10 * number + 11))
    assert len(ValidationText(corpus, sequence_length=10, max_tokens=35)) == 3
    assert len(ValidationText(write_corpus(tmp_path / "d", 100), sequence_length=10, max_tokens=10**6)) == 9  # no label


def test_less_than_one_sequence_of_validation_text_is_refused(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c", 50)
    with pytest.raises(InputError, match="has 50 tokens, less than one sequence of 64"):
        ValidationText(corpus, sequence_length=64, max_tokens=10**6)


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".meta.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_corpus_is_refused_by_the_name_of_its_file(tmp_path: Path, suffix: str, damage: str) -> None:
    path = suffixed(write_corpus(tmp_path / "c", 500), suffix)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError) as caught:
        GeneralText(tmp_path / "c", sequence_length=32, seed=0)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("key", ["content_fingerprint", "tokenizer_fingerprint"])
def test_metadata_without_a_fingerprint_are_refused(tmp_path: Path, key: str) -> None:
    corpus = write_corpus(tmp_path / "c", 500)
    meta = {"schema": "kis.corpus/1", "content_fingerprint": "c", "tokenizer_fingerprint": "t"}
    write_json(suffixed(corpus, ".meta.json"), {name: value for name, value in meta.items() if name != key})
    with pytest.raises(InputError, match=rf"c\.meta\.json.*{key}"):
        GeneralText(corpus, sequence_length=32, seed=0)
