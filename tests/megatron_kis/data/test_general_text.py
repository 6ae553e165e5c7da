from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import write_json
from megatron_kis.data.general_text import Epochs, GeneralText, ValidationText
from megatron_kis.data_tools.storage.indexed import IndexedWriter, suffixed

SEARCH = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write_corpus(prefix: Path, tokens: int, *, first: int = 0) -> Path:
    """A corpus in which token i of the stream has id ``first`` + i, in documents of 10 tokens."""
    with IndexedWriter(prefix, vocab_size=max(tokens, 70_000)) as writer:
        for start in range(0, tokens, 10):
            writer.add([first + token for token in range(start, min(start + 10, tokens))])
    meta = {"schema": "kis.corpus/1", "content_fingerprint": writer.content_fingerprint, "tokenizer_fingerprint": "t"}
    write_json(suffixed(prefix, ".meta.json"), meta)
    return prefix


def starts(text: GeneralText, sequences: int, *, first: int = 0) -> list[int]:
    """Where the windows of some sequences begin in the corpus."""
    return [int(text.read(sequence, 1)[0]) for sequence in range(first, first + sequences)]


@SEARCH
@given(st.integers(2, 40), st.integers(0, 400), st.integers(0, 99), st.integers(0, 3))
def test_an_epoch_reads_every_window_once_and_whole(
    tmp_path_factory: pytest.TempPathFactory, length: int, extra: int, seed: int, epoch: int
) -> None:
    size = length + 1 + extra
    corpus = write_corpus(tmp_path_factory.mktemp("corpus") / "c", size)
    text = GeneralText(corpus, sequence_length=length, seed=seed)
    windows = size // length
    assert text.epochs(windows) == [Epochs(corpus, windows, 1.0)]
    found = sorted(starts(text, windows, first=epoch * windows))
    assert np.diff(found).tolist() == [length] * (windows - 1)
    assert 0 <= found[0] < length
    for sequence in range(epoch * windows, (epoch + 1) * windows):
        whole = text.read(sequence, length + 1).astype(np.int64)  # the label of the last token too
        assert whole.tolist() == [(whole[0] + place) % size for place in range(length + 1)]  # round the ring
        assert text.read(sequence, 2).tolist() == whole[:2].tolist()


def test_every_token_of_a_corpus_is_read_in_the_long_run(tmp_path: Path) -> None:
    text = GeneralText(write_corpus(tmp_path / "c", 105), sequence_length=10, seed=0)
    read = {int(token) for sequence in range(400) for token in text.read(sequence, 10)}
    assert read == set(range(105))


def test_the_end_of_a_corpus_is_followed_by_its_beginning(tmp_path: Path) -> None:
    text = GeneralText(write_corpus(tmp_path / "c", 100), sequence_length=10, seed=3)
    around = [window for sequence in range(100) if (window := text.read(sequence, 11).tolist())[0] > 89]
    assert around
    for window in around:
        assert window == [*range(window[0], 100), *range(window[0] - 89)]
        assert len(window) == 11


def test_epochs_differ_in_order_and_in_their_cuts(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c", 4000)
    text = GeneralText(corpus, sequence_length=32, seed=1)
    orders = [starts(text, 125, first=125 * epoch) for epoch in range(5)]
    assert len({tuple(np.argsort(order)) for order in orders}) == 5
    assert len({min(order) for order in orders}) > 1
    assert text.epochs(5 * 125) == [Epochs(corpus, 625, 5.0)]
    assert text.epochs(50) == [Epochs(corpus, 50, 0.4)]


def test_a_window_does_not_depend_on_what_was_read_before(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c", 400)
    text = GeneralText([(corpus, 2), (corpus, 1)], sequence_length=32, seed=1)
    forth = {sequence: text.read(sequence, 33).tolist() for sequence in range(100)}
    back = {sequence: text.read(sequence, 33).tolist() for sequence in reversed(range(100))}
    assert forth == back


def test_seeds_differ_and_repeat(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c", 4000)
    one, again, other = (starts(GeneralText(corpus, sequence_length=32, seed=seed), 125) for seed in (1, 1, 2))
    assert one == again != other


@SEARCH
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=5), st.integers(0, 30))
def test_corpora_take_turns_in_proportion_at_every_length(
    tmp_path_factory: pytest.TempPathFactory, weights: list[float], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("corpora")
    corpora = [write_corpus(folder / f"c{number}", 35, first=100 * number) for number in range(len(weights))]
    text = GeneralText(list(zip(corpora, weights, strict=True)), sequence_length=10, seed=seed)
    read: list[list[int]] = [[] for _ in weights]
    for sequence in range(150):
        shares = np.array(weights) / sum(weights) * sequence
        counted = [len(starts) for starts in read]
        # One sequence at most for each corpus before it: the first is exact, the others share its rounding.
        allowed = np.minimum(np.arange(len(weights)), len(weights) - 2).clip(0) * 0.5 + 0.5 + 1e-6
        assert (np.abs(np.array(counted) - shares) <= allowed).all()
        assert [(found.corpus, found.sequences) for found in text.epochs(sequence)] == list(
            zip(corpora, counted, strict=True)
        )
        assert [found.epochs for found in text.epochs(sequence)] == [count / 3 for count in counted]
        token = int(text.read(sequence, 1)[0])
        read[token // 100].append(token % 100)
    for starts_of in read:  # each by its own turns: every window once an epoch
        for epoch in range(len(starts_of) // 3):
            found = sorted(starts_of[3 * epoch : 3 * epoch + 3])
            assert np.diff(found).tolist() == [10, 10]
            assert found[0] < 10


def test_one_corpus_listed_twice_is_read_in_two_orders(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c", 4000)
    text = GeneralText([(corpus, 1), (corpus, 1)], sequence_length=32, seed=1)
    both = starts(text, 250)
    assert both[::2] != both[1::2]


def test_a_fingerprint_is_of_contents_and_shares(tmp_path: Path) -> None:
    one, other = write_corpus(tmp_path / "a", 100), write_corpus(tmp_path / "b", 110)

    def of(*corpora: tuple[Path, float]) -> str:
        return GeneralText(list(corpora), sequence_length=10, seed=0).fingerprint

    assert of((one, 1)) == GeneralText(one, sequence_length=10, seed=9).fingerprint == of((one, 7))
    assert of((one, 1), (other, 3)) == of((one, 0.25), (other, 0.75))
    assert (
        len(
            {of((one, 1)), of((other, 1)), of((one, 1), (other, 3)), of((other, 3), (one, 1)), of((one, 1), (other, 1))}
        )
        == 5
    )
    text = GeneralText([(one, 1), (other, 1)], sequence_length=10, seed=0)
    assert text.tokenizers() == [(one, "t"), (other, "t")]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused_by_its_corpus(tmp_path: Path, weight: float) -> None:
    corpus = write_corpus(tmp_path / "c", 100)
    with pytest.raises(InputError, match=r"c: has the weight \S+; must be above 0"):
        GeneralText([(corpus, 1.0), (corpus, weight)], sequence_length=10, seed=0)


def test_no_corpus_at_all_is_refused() -> None:
    with pytest.raises(InputError, match=r"data\.corpus: names no corpus; name at least one"):
        GeneralText([], sequence_length=10, seed=0)


def test_too_little_text_for_a_sequence_and_a_label_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has 32 tokens, too few for sequences of 32; give at least 33 tokens"):
        GeneralText(write_corpus(tmp_path / "c", 32), sequence_length=32, seed=0)
    assert len(GeneralText(write_corpus(tmp_path / "d", 33), sequence_length=32, seed=0).read(0, 33)) == 33


def test_less_validation_than_one_sequence_cannot_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"validation\.max_tokens: is 9, less than one sequence of 10; use at least 10"
    ):
        ValidationText(write_corpus(tmp_path / "c", 105), sequence_length=10, max_tokens=9)


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
