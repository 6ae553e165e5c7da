import base64
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.readers.documents import iter_documents
from megatron_kis.data_tools.tokenizers import gigatoken as encode_gigatoken
from megatron_kis.data_tools.tokenizers.encoder import AWKWARD, choose_encoder
from megatron_kis.data_tools.tokenizers.gigatoken import GigatokenEncoder
from megatron_kis.data_tools.tokenizers.reference_encoder import ReferenceEncoder
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from megatron_kis.data_tools.tokenizers.training import TokenizerConfig, train_tokenizer

from .conftest import LEADS

TEXTS = [document.text for document in iter_documents([LEADS])]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One tokenizer of each kind, by name."""
    folder = tmp_path_factory.mktemp("models")
    train_tokenizer(TEXTS, folder / "unigram.model", TokenizerConfig(vocab_size=400))
    train_tokenizer(TEXTS, folder / "bpe.model", TokenizerConfig(vocab_size=400, kind="bpe"))
    hugging = train_tokenizer(TEXTS, folder / "bytes.json", TokenizerConfig(vocab_size=400, kind="byte-bpe"))
    framed = json.loads(hugging.model)
    template = [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
    framed["post_processor"] = {
        "type": "TemplateProcessing",
        "single": template,
        "pair": template,
        "special_tokens": special,
    }
    (folder / "framed.json").write_text(json.dumps(framed), encoding="utf-8")
    # The same vocabulary as a tiktoken file: single bytes, then what was merged, in the order of the ids.
    pieces = [hugging._tokenizer.decoder.decode([hugging.piece(token)]) for token in range(257, 400)]
    ranks = [bytes([value]) for value in range(256)] + [piece.encode() for piece in pieces if piece.isascii()]
    ranks = list(dict.fromkeys(ranks))
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(ranks)]
    (folder / "ranks.tiktoken").write_text("\n".join(lines) + "\n")
    meta = {"schema": "kis.tokenizer/1", "pattern": "gpt2", "special_tokens": {"<|endoftext|>": len(ranks)}}
    (folder / "ranks.tiktoken.meta.json").write_text(json.dumps(meta))
    names = ("unigram.model", "bpe.model", "bytes.json", "framed.json", "ranks.tiktoken")
    return {name: load_tokenizer(folder / name) for name in names}


FAST = ["bpe.model", "bytes.json", "framed.json", "ranks.tiktoken"]


def rows(encoder, texts):
    tokens, lengths = encoder.encode(texts)
    assert lengths.sum() == len(tokens)
    return [row.tolist() for row in np.split(tokens, np.cumsum(lengths)[:-1])]


@pytest.mark.parametrize("name", FAST)
def test_gigatoken_is_chosen_where_it_gives_the_ids_of_the_tokenizers_own_library(models, name):
    encoder, why = choose_encoder(models[name], TEXTS)
    assert isinstance(encoder, GigatokenEncoder)
    assert "its ids are those of" in why
    spelled = [*TEXTS, *AWKWARD, "a <|endoftext|> b", "<|endoftext|>", "<|endoftext|><|endoftext|>"]
    assert rows(encoder, spelled) == models[name].encode_documents(spelled)


@settings(max_examples=50, deadline=None)
@given(
    texts=st.lists(
        st.text(max_size=40) | st.sampled_from(["<|endoftext|>", " ", "\n", "▁", "\0", "<0x00>"]), max_size=6
    )
)
def test_any_batch_is_encoded_as_one_by_one(encoders, texts):
    for tokenizer, encoder in encoders:
        expected = tokenizer.encode_documents(texts) if texts else []
        for ended in (False, True):
            rows = [[*row, tokenizer.eod_id] if ended and row else row for row in expected]
            for encode_batch in (encoder.encode_unchecked, ReferenceEncoder(tokenizer).encode):
                tokens, lengths = encode_batch(texts, ended=ended)
                assert lengths.tolist() == [len(row) for row in rows]
                assert tokens.tolist() == [token for row in rows for token in row]


@pytest.fixture(scope="module")
def encoders(models):
    """Tokenizers of three kinds, each with its fast encoder; shared."""
    tokenizers = [models[name] for name in ("bytes.json", "ranks.tiktoken", "bpe.model")]
    return [(tokenizer, GigatokenEncoder(tokenizer)) for tokenizer in tokenizers]


@pytest.mark.parametrize("name", ["bpe.model", "bytes.json", "ranks.tiktoken", "framed.json"])
@pytest.mark.parametrize("ended", [False, True])
def test_texts_that_are_encoded_in_one_piece_are_told_apart(models, name, ended, monkeypatch):
    tokenizer = models[name]
    fast = GigatokenEncoder(tokenizer)
    encode, pieces = fast._ids, []
    monkeypatch.setattr(fast, "_ids", lambda text: pieces.append(text) or encode(text))
    for texts in (TEXTS, ["", " a", "\0", "b\0 c", "", "d  "], ["", ""]):
        expected = ReferenceEncoder(tokenizer).encode(texts, ended=ended)
        pieces.clear()
        assert all(map(np.array_equal, fast.encode_unchecked(texts, ended=ended), expected))
        if any(texts) and name != "framed.json":
            assert len(pieces) == 1


def test_a_model_that_gigatoken_does_not_read_is_encoded_by_its_own_library(models):
    encoder, why = choose_encoder(models["unigram.model"], TEXTS)
    assert isinstance(encoder, ReferenceEncoder)
    assert "gigatoken does not read this model" in why
    assert rows(encoder, TEXTS) == models["unigram.model"].encode_batch(TEXTS)
    with pytest.raises(InputError, match="does not read this model"):
        choose_encoder(models["unigram.model"], TEXTS, "gigatoken")


def test_a_difference_on_the_sample_falls_back_and_says_so(models, monkeypatch):
    tokenizer = models["bytes.json"]
    wrong = GigatokenEncoder.encode_unchecked

    def off_by_one(self, texts, **options):
        tokens, lengths = wrong(self, texts, **options)
        tokens = tokens.copy()
        tokens[-1] += 1
        return tokens, lengths

    monkeypatch.setattr(GigatokenEncoder, "encode_unchecked", off_by_one)
    encoder, why = choose_encoder(tokenizer, TEXTS)
    assert isinstance(encoder, ReferenceEncoder)
    assert "differs on 1 of" in why
    with pytest.raises(InputError, match="encode this text differently"):
        GigatokenEncoder(tokenizer).encode(["short"])


def test_the_caches_that_only_grow_are_thrown_away(models, monkeypatch):
    monkeypatch.setattr(encode_gigatoken, "_CACHE_TEXT", 100)
    encoder = GigatokenEncoder(models["bytes.json"])
    before = encoder._backend
    assert rows(encoder, TEXTS) == models["bytes.json"].encode_documents(TEXTS)
    assert encoder._backend is not before
    assert rows(encoder, TEXTS) == models["bytes.json"].encode_documents(TEXTS)


def test_without_gigatoken_the_reference_is_taken(models, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gigatoken", None)
    encoder, why = choose_encoder(models["bytes.json"], TEXTS)
    assert isinstance(encoder, ReferenceEncoder)
    assert "gigatoken is not installed" in why


@pytest.mark.parametrize("name", ["bytes.json", "ranks.tiktoken"])
def test_spans_cover_the_text_and_the_text_comes_back(models, name):
    tokenizer = models[name]
    for text in (*AWKWARD, "北京は", "naïve café"):
        encoding = tokenizer.encode_with_spans(text)
        assert encoding.tokens == tokenizer.encode(text)
        assert tokenizer.decode([*encoding.tokens, tokenizer.eod_id]) == text
        reached = 0
        for start, end in encoding.spans:
            assert start <= reached <= end
            reached = end
        assert reached == len(text)


def test_a_tokenizer_without_an_end_of_document_token_says_how_to_name_it(tmp_path, models):
    content = json.loads(models["bytes.json"].model)
    text = json.dumps(content).replace("<|endoftext|>", "<|stop|>")
    path = tmp_path / "other.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"other\.json: has no end-of-document token .*other\.json\.meta\.json"):
        load_tokenizer(path)
    (tmp_path / "other.json.meta.json").write_text('{"schema": "kis.tokenizer/1", "eod": "<|stop|>"}')
    assert load_tokenizer(path).eod_id == 0


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("t.json", b"{}", "not a tokenizer.json"),
        ("t.json", b"\xff\x00", "not a tokenizer.json"),
        ("t.tiktoken", b"!!! 3\n", "t.tiktoken:1: not a token and its rank"),
        ("t.tiktoken", b"YQ== 0\n", "255 of the 256 bytes are missing"),
    ],
)
def test_damaged_tokenizer_files_are_named(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        load_tokenizer(tmp_path / name)
    assert problem in str(error.value)


def test_a_tiktoken_file_of_unknown_pattern_says_what_is_missing(tmp_path):
    lines = [f"{base64.b64encode(bytes([value])).decode()} {value}" for value in range(256)]
    (tmp_path / "mine.tiktoken").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"mine\.tiktoken: .*name pattern and special_tokens in mine\.tiktoken\.meta"):
        load_tokenizer(tmp_path / "mine.tiktoken")
