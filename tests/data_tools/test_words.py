"""Words that are encoded once give the ids and characters of the texts that they make up."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from megatron_kis.convert.tokenizer_json import write_tokenizer
from megatron_kis.data_tools.readers.documents import iter_documents
from megatron_kis.data_tools.tokenizers.encoder import AWKWARD
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from tests.data_tools.conftest import LEADS

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def model(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``tokenizer.json`` that was made from a SentencePiece model."""
    folder = tmp_path_factory.mktemp("words")
    write_tokenizer(tokenizer_path, folder, longest=64, samples=[])
    return folder / "tokenizer.json"


def test_words_give_what_whole_texts_give(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    assert tokenizer.words is not None
    rng = random.Random(0)
    leads = [document.text for document in iter_documents([LEADS])]
    words = " ".join(leads).split()
    shuffled = [" ".join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(200)]
    whole = ["<|endoftext|> within", "a <|endoftext|>", "", " ahead", "two  spaces", "a ▁ mark"]
    for texts in (*([text] for text in (*leads, *AWKWARD, *shuffled, *whole)), [*whole, *shuffled, *AWKWARD, *whole]):
        expected = [tokenizer.encode_with_spans(text) for text in texts]
        ids, spans = tokenizer.encode_batch_with_spans(texts)
        assert ids == [encoding.tokens for encoding in expected]
        np.testing.assert_array_equal(spans, [span for encoding in expected for span in encoding.spans] or spans)
    together, spans = tokenizer.encode_batch_with_spans(shuffled)
    assert together == tokenizer.encode_batch(shuffled)
    assert len(spans) == sum(map(len, together))
    assert tokenizer.encode_batch_with_spans([])[0] == []


def test_words_are_encoded_once_next_to_texts_that_cannot_be_cut_and_are_forgotten_in_time(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(model)
    assert tokenizer.words is not None
    asked: list[str] = []
    whole = tokenizer.words._tokenizer

    class Counted:
        encode = whole.encode

        def encode_batch(self, texts: list[str], **options: object) -> object:
            asked.extend(texts)
            return whole.encode_batch(texts, **options)

    tokenizer.words._tokenizer = Counted()
    texts = ["the tall tower of the town", "two  spaces of the town", "the town of towers"]
    first = tokenizer.encode_batch_with_spans(texts)
    assert "two  spaces of the town" in asked and "the tall tower of the town" not in asked
    before = len(asked)
    again = tokenizer.encode_batch_with_spans(texts)
    assert again[0] == first[0] and len(asked) == before
    monkeypatch.setattr("megatron_kis.data_tools.tokenizers.words._MOST_WORDS", 3)
    assert tokenizer.encode_batch_with_spans(texts[:1])[0] == first[0][:1]
    assert len(tokenizer.words._numbers) == 6


@pytest.mark.parametrize("how", ["a piece goes on", "words are cut first", "other spaces", "no bytes"])
def test_other_tokenizers_encode_whole_texts(how: str, model: Path, tmp_path: Path) -> None:
    content = json.loads(model.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    match how:
        case "a piece goes on":
            vocabulary.append(["e▁t", -1.0])
        case "words are cut first":
            content["pre_tokenizer"] = {"type": "WhitespaceSplit"}
        case "other spaces":
            content["normalizer"]["normalizers"] = content["normalizer"]["normalizers"][1:]
        case "no bytes":
            content["model"]["byte_fallback"] = False
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    tokenizer = load_tokenizer(path)
    assert tokenizer.words is None
    text = "the tall tower of the town"
    assert tokenizer.encode_batch_with_spans([text])[0] == [tokenizer.encode(text)]


def test_a_word_with_two_equally_likely_splits_is_encoded_within_its_text(model: Path, tmp_path: Path) -> None:
    content = json.loads(model.read_text(encoding="utf-8"))
    rng = random.Random(0)
    pieces = {*"0123456789,", "00", "000", "▁1", "an", "ana", "nan"}
    others = [(piece, score) for piece, score in content["model"]["vocab"] if piece not in pieces]
    content["model"]["vocab"] = others + [(piece, -rng.uniform(3, 9)) for piece in sorted(pieces)]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    tokenizer = load_tokenizer(path)
    assert tokenizer.words is not None
    words = ["the", "town", "of", "1,000,000", "0000000", "banananana"]
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(300)]
    for text in texts:
        assert tokenizer.encode_batch_with_spans([text])[0] == [tokenizer.encode(text)], text
    assert tokenizer.words._cut("the town of 17") == ["the", "town", "of", "17"]
    assert tokenizer.words._cut("the town of 0000000") == ["the town of 0000000"]
