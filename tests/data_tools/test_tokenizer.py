import json

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import sha256_file
from megatron_kis.data_tools.readers.documents import iter_documents
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from megatron_kis.data_tools.tokenizers.training import TokenizerConfig, train_tokenizer

from .conftest import LEADS

AWKWARD = [
    "Mount  Fuji\n\tJapan ",
    "naïve café",
    "cafe\u0301",
    "Ж 北京 🙂",
    "<|endoftext|> is text",
    " leading",
    "A\r\nB",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_any_text_comes_back_as_it_was(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_text_can_never_hold_the_end_of_document_token(tokenizer):
    assert tokenizer.eod_id not in tokenizer.encode("before <|endoftext|> after")
    assert tokenizer.piece(tokenizer.eod_id) == "<|endoftext|>"


@pytest.mark.parametrize("text", AWKWARD)
def test_spans_cover_the_text_in_order_without_gaps(tokenizer, text):
    encoding = tokenizer.encode_with_spans(text)
    assert encoding.tokens == tokenizer.encode(text)
    reached = 0
    for start, end in encoding.spans:
        assert start <= reached <= end  # bytes of one character share its range
        reached = end
    assert reached == len(text)


def test_bytes_of_a_character_all_have_its_span(tokenizer):
    encoding = tokenizer.encode_with_spans("北")
    assert encoding.spans[-3:] == [(0, 1)] * 3


def test_encoding_in_a_batch_is_encoding_one_by_one(tokenizer):
    assert tokenizer.encode_batch(AWKWARD) == [tokenizer.encode(text) for text in AWKWARD]


def test_spans_in_a_batch_are_those_one_by_one(tokenizer):
    texts = [*AWKWARD, "The capital of France is Paris.", " two  spaces ", "▁", "", "北 and more", "é"]
    tokens, spans = tokenizer.encode_batch_with_spans(texts)
    alone = [tokenizer.encode_with_spans(text) for text in texts]
    assert tokens == [encoding.tokens for encoding in alone]
    assert spans.tolist() == [list(span) for encoding in alone for span in encoding.spans]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_training_again_gives_the_same_model(tmp_path, kind):
    texts = [document.text for document in iter_documents([LEADS])]
    one = train_tokenizer(texts, tmp_path / "one.model", TokenizerConfig(vocab_size=350, kind=kind))
    two = train_tokenizer(texts, tmp_path / "two.model", TokenizerConfig(vocab_size=350, kind=kind))
    assert one.fingerprint == two.fingerprint == sha256_file(tmp_path / "one.model")
    assert one.vocab_size == 350
    meta = json.loads((tmp_path / "one.model.meta.json").read_text())
    assert meta["schema"] == "kis.tokenizer/1"
    assert (meta["vocab_size"], meta["eod_id"], meta["fingerprint"]) == (350, one.eod_id, one.fingerprint)


def test_an_error_in_the_text_is_told_as_such_and_leaves_no_model(tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "fine"}\n{"text": \n', encoding="utf-8")
    texts = (document.text for document in iter_documents([broken]))
    with pytest.raises(InputError, match=r"broken\.jsonl:2: malformed"):
        train_tokenizer(texts, tmp_path / "t.model", TokenizerConfig(vocab_size=400))
    assert [path.name for path in tmp_path.iterdir()] == ["broken.jsonl"]


def test_impossible_vocabularies_say_what_is_possible(tmp_path):
    with pytest.raises(InputError, match="from 300"):
        train_tokenizer(["text"], tmp_path / "t.model", TokenizerConfig(vocab_size=100))
    with pytest.raises(InputError, match=r"the text gives \d+"):
        train_tokenizer(["a short text"] * 9, tmp_path / "t.model", TokenizerConfig(vocab_size=5000))
    with pytest.raises(InputError, match="no text"):
        train_tokenizer(["", " \n"], tmp_path / "t.model", TokenizerConfig(vocab_size=400))


def test_an_unreadable_tokenizer_is_an_input_error(tmp_path, tokenizer_path):
    damaged = tmp_path / "damaged.model"
    model = tokenizer_path.read_bytes()
    for content in (b"not a model at all", model[: len(model) // 2]):
        damaged.write_bytes(content)
        with pytest.raises(InputError, match=r"damaged\.model: .*SentencePiece"):
            load_tokenizer(damaged)
    with pytest.raises(InputError, match="no such file"):
        load_tokenizer(tmp_path / "absent.model")
    with pytest.raises(InputError, match="has no tokenizer; expected one of"):
        load_tokenizer(tmp_path)
