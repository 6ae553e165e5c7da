"""Which files are tokenizers, what is told of those that are none, and what a vocabulary may not say."""

import base64
import json
import random

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.corpus.build import build_corpus
from megatron_kis.data_tools.corpus.meta import read_corpus_meta
from megatron_kis.data_tools.readers.documents import iter_documents
from megatron_kis.data_tools.tokenizers.base import side_file
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer, write_copy
from megatron_kis.data_tools.tokenizers.tiktoken import PATTERNS
from megatron_kis.data_tools.tokenizers.training import TokenizerConfig, train_tokenizer

from .conftest import LEADS

TEXTS = [document.text for document in iter_documents([LEADS])]
PATTERN = PATTERNS["gpt4"]
BYTES = [bytes([value]) for value in range(256)]


def rank_lines(tokens):
    return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))


def tekken(tokens=(*BYTES, b"th", b"the", b" the", b"ing", b"never"), size=264, special=4, listed=None, **changes):
    """A ``tekken.json`` in which the last token counts no more."""
    vocabulary = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for rank, token in enumerate(tokens)
    ]
    config = {
        "pattern": PATTERN,
        "num_vocab_tokens": len(vocabulary),
        "default_vocab_size": size,
        "default_num_special_tokens": special,
        "version": "v3",
    }
    content = {"config": config, "vocab": vocabulary, **({"special_tokens": listed} if listed else {}), **changes}
    return json.dumps(content)


@pytest.fixture
def llama3(tmp_path):
    """A file of as many ranks as Llama 3's, under its name."""
    made = (b"%d" % number for number in range(10_000, 200_000))
    tokens = [*BYTES, b"th", b"the", b" the", *made][:128_000]
    (tmp_path / "tokenizer.model").write_text(rank_lines(tokens))
    return tmp_path / "tokenizer.model"


def test_the_tokenizer_of_llama_3_is_read_as_meta_publishes_it(llama3, tmp_path):
    tokenizer = load_tokenizer(llama3)
    assert (tokenizer.vocab_size, tokenizer.eod_id) == (128_256, 128_001)
    names = [tokenizer.piece(token) for token in (128_000, 128_001, 128_006, 128_007, 128_009, 128_255)]
    assert names == [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|reserved_special_token_250|>",
    ]
    text = "The theme: don't 12345 <|end_of_text|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eod_id not in tokenizer.encode(text)
    (tmp_path / "copy").mkdir()
    assert load_tokenizer(write_copy(tokenizer, tmp_path / "copy")).fingerprint == tokenizer.fingerprint
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    assert "<|begin_of_text|> begins documents" in tokenizer.remarks[0]


def test_ranks_without_a_pattern_are_no_guess(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_text(rank_lines([*BYTES, b"th"]))
    with pytest.raises(InputError, match=r"tokenizer\.model: a tiktoken file \(257 ranks\).*tokenizer\.model\.meta"):
        load_tokenizer(path)
    meta = {"schema": "kis.tokenizer/1", "pattern": "llama3", "special_tokens": {"<|endoftext|>": 300}}
    side_file(path).write_text(json.dumps(meta))
    assert load_tokenizer(path).encode("th1") == [256, ord("1")]


def test_tekken_is_read(tmp_path):
    path = tmp_path / "tekken.json"
    path.write_text(tekken())
    tokenizer = load_tokenizer(path)
    assert (tokenizer.vocab_size, tokenizer.eod_id, tokenizer.piece(2)) == (264, 2, "</s>")
    assert tokenizer.encode("the the</s>") == [261, 262, *(4 + value for value in b"</s>")]
    assert tokenizer.encode("never") == [4 + value for value in b"never"]
    assert tokenizer.decode([1, 261, 2]) == "the"
    assert tokenizer.encode_with_spans("é the").spans == [(0, 1), (0, 1), (1, 5)]
    (tmp_path / "text.txt").write_text("the\n\nthe", encoding="utf-8")
    build_corpus([tmp_path / "text.txt"], tokenizer, tmp_path / "c", validation_share=0)
    assert read_corpus_meta(tmp_path / "c")["tokens"] == 4
    (tmp_path / "copy").mkdir()
    assert load_tokenizer(write_copy(tokenizer, tmp_path / "copy")).fingerprint == tokenizer.fingerprint


def test_the_special_tokens_and_the_end_of_documents_of_tekken_may_be_named(tmp_path):
    path = tmp_path / "tekken.json"
    listed = [{"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(["<a>", "<b>", "</s>"])]
    path.write_text(tekken(listed=listed))
    before = load_tokenizer(path)
    assert (before.piece(1), before.piece(3)) == ("<b>", "<SPECIAL_3>")
    side_file(path).write_text('{"schema": "kis.tokenizer/1", "eod": "<b>"}')
    after = load_tokenizer(path)
    assert (before.eod_id, after.eod_id) == (2, 1)
    assert before.fingerprint != after.fingerprint


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (tekken(config={}), "no config.pattern"),
        (tekken(size="x"), "config.default_vocab_size is x"),
        (tekken(size=3), "config.default_vocab_size is 3"),
        (tekken(size=900), "vocab has 261 tokens, config asks for 896"),
        (tekken(vocab=[7] * 300), "vocab[0]: expected rank and token_bytes"),
        (tekken(tokens=[*BYTES, b"a", b"b", b"c", b"d"]), "vocab[256]: b'a' has the rank 256"),
        (tekken(tokens=[b"%d" % number for number in range(1000, 1300)]), "256 of the 256 bytes are missing"),
        (tekken(listed=[{"rank": 9, "token_str": "<s>"}]), "special_tokens[0]: '<s>' has the rank 9, of 4"),
        (tekken(listed=[{"rank": 0, "token_str": "<s>"}]), "'</s>', which ends documents"),
        (tekken(listed=[{"rank": 0, "token_str": "a"}, {"rank": 1, "token_str": "a"}]), "two have one spelling"),
        (tekken(listed=[{"rank": 0, "token_str": "a"}, {"rank": 0, "token_str": "b"}]), "two have one rank"),
        (tekken(listed=[7]), "special_tokens: expected rank and token_str"),
    ],
)
def test_a_damaged_tekken_is_named(tmp_path, content, problem):
    path = tmp_path / "tekken.json"
    path.write_text(content)
    with pytest.raises(InputError) as error:
        load_tokenizer(path)
    assert str(error.value).startswith(f"{path}: ")
    assert problem in str(error.value)


@pytest.mark.parametrize(
    "name", ["tokenizer.model", "tokenizer.json", "t.tiktoken", "tokenizer.model.v7", "tekken.json"]
)
def test_files_that_hold_no_tokenizer_are_told_as_what_they_are(tmp_path, name):
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 493443\n")
    with pytest.raises(InputError, match=r"a pointer of Git LFS.*git lfs pull"):
        load_tokenizer(path)
    path.write_text("")
    with pytest.raises(InputError, match="an empty file, no tokenizer"):
        load_tokenizer(path)


def test_a_sentencepiece_model_may_have_any_other_name(tmp_path):
    trained = train_tokenizer(TEXTS, tmp_path / "t.model", TokenizerConfig(vocab_size=400, kind="bpe"))
    for name in ("mistral.model.v7", "spiece.model", "sentencepiece"):
        (tmp_path / name).write_bytes(trained.model)
        assert load_tokenizer(tmp_path / name).fingerprint == trained.fingerprint
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "spiece.model").write_bytes(trained.model)
    assert load_tokenizer(tmp_path / "folder").fingerprint == trained.fingerprint


def test_a_folder_without_a_tokenizer_says_what_was_looked_for(tmp_path):
    with pytest.raises(InputError, match=r"has no tokenizer; expected one of tokenizer\.json, tokenizer\.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(InputError, match=r"vocab\.json and merges\.txt do not say how text is cut.*save_pretrained"):
        load_tokenizer(tmp_path)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A parsed ``tokenizer.json``."""
    path = tmp_path_factory.mktemp("content") / "t.json"
    return json.loads(train_tokenizer(TEXTS, path, TokenizerConfig(vocab_size=400, kind="byte-bpe")).model)


def changed(content, tmp_path, **model):
    path = tmp_path / "tokenizer.json"
    added = model.pop("added", [])
    plain = {**content["added_tokens"][0]}
    content = {**content, "model": {**content["model"], **model}}
    content["added_tokens"] = [plain, *({**plain, **token} for token in added)]
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("added", "problem"),
    [
        ([{"content": "<a>", "id": 400}, {"content": "<a>", "id": 401}], "added_tokens: '<a>' is there twice"),
        ([{"content": "<a>", "id": 400}, {"content": "<b>", "id": 400}], "'<a>' and '<b>' have one id, 400"),
        ([{"content": "<a>", "id": 7}], "added_tokens: '<a>' has the id 7, but is token 400"),
        ([{"content": "<a>", "id": 500}], "added_tokens: '<a>' has the id 500, but is token 400"),
    ],
)
def test_added_tokens_that_share_a_spelling_or_an_id_are_refused(content, tmp_path, added, problem):
    path = changed(content, tmp_path, added=added)
    with pytest.raises(InputError) as error:
        load_tokenizer(path)
    assert str(error.value).startswith(f"{path}: ")
    assert problem in str(error.value)


def test_pieces_that_share_a_spelling_or_an_id_are_refused(content, tmp_path):
    vocabulary = dict(content["model"]["vocab"])
    one, other, *_ = [piece for piece, token in vocabulary.items() if token > 300]
    with pytest.raises(InputError, match=r"vocab: .* have one id"):
        load_tokenizer(changed(content, tmp_path, vocab={**vocabulary, one: vocabulary[other]}))
    with pytest.raises(InputError, match="an id is 2147483647; ids are below"):
        load_tokenizer(changed(content, tmp_path, vocab={**vocabulary, one: 2**31 - 1}))
    path = changed(content, tmp_path)
    twice = path.read_text(encoding="utf-8").replace('"vocab": {', '"vocab": {"!": 390, ', 1)
    path.write_text(twice, encoding="utf-8")
    with pytest.raises(InputError, match=r"tokenizer\.json.*'!'.*twice"):
        load_tokenizer(path)


def test_a_unigram_piece_that_is_there_twice_is_refused(tmp_path):
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), ("a", -1.0), ("b", -2.0)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    content = json.loads(tokenizer.to_str())
    content["model"]["vocab"].append(["a", -3.0])
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="vocab: 'a' is there twice"):
        load_tokenizer(tmp_path)


def test_a_model_that_cuts_by_chance_is_refused(content, tmp_path):
    with pytest.raises(InputError, match=r"model\.dropout is 0\.1: a text has other tokens each time; set it to null"):
        load_tokenizer(changed(content, tmp_path, dropout=0.1))


def test_half_a_character_in_the_vocabulary_is_refused(content, tmp_path):
    path = changed(content, tmp_path)
    half = path.read_text(encoding="utf-8").replace('"<|endoftext|>": 0', '"<|endoftext|>": 0, "\\ud83d": 400', 1)
    path.write_text(half, encoding="utf-8")
    with pytest.raises(InputError, match=r"not a tokenizer\.json \(it holds half of a surrogate pair, '\\ud83d'\)"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"the": 0, "a": 1}', "it maps words to ids, as a vocab.json"),
        ('{"eos_token": "</s>"}', "it has no model"),
        ("[]", "it is not a JSON object"),
        ("{", "not valid JSON"),
    ],
)
def test_other_json_files_are_told_as_what_they_are(tmp_path, content, problem):
    (tmp_path / "vocab.json").write_text(content)
    with pytest.raises(InputError) as error:
        load_tokenizer(tmp_path / "vocab.json")
    assert str(error.value).startswith(f"{tmp_path / 'vocab.json'}: ")
    assert problem in str(error.value)


def test_a_vocabulary_that_loses_characters_is_remarked(tmp_path):
    for unknown in (None, "<unk>"):
        tokenizer = Tokenizer(models.BPE({"<unk>": 0, "</s>": 1, "a": 2}, [], unk_token=unknown))
        (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
        assert "they are lost" in load_tokenizer(tmp_path).remarks[-1]
    assert train_tokenizer(TEXTS, tmp_path / "t.model", TokenizerConfig(vocab_size=400)).remarks == ()
    assert load_tokenizer(tmp_path / "t.model").remarks == ()


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """Small SentencePiece models, one with pieces that are kept whole."""
    import sentencepiece

    models = []
    more = {"user_defined_symbols": ["<a>", "foo"], "control_symbols": ["<c>"], "remove_extra_whitespaces": False}
    for options in ({}, more):
        path = tmp_path_factory.mktemp("whole") / "t"
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS),
            model_prefix=str(path),
            vocab_size=500,
            byte_fallback=True,
            normalization_rule_name="identity",
            minloglevel=2,
            **options,
        )
        models.append(path.with_suffix(".model").read_bytes())
    return models


@pytest.mark.parametrize("which", [0, 1])
def test_a_damaged_sentencepiece_model_is_read_or_refused(damaged, which, tmp_path):
    whole, path, draw = damaged[which], tmp_path / "t.model", random.Random(which)
    refused = []
    for _ in range(200):
        model = bytearray(whole)
        model[draw.randrange(len(model))] ^= draw.randrange(1, 256)
        path.write_bytes(model)
        try:
            tokenizer = load_tokenizer(path)
        except InputError as error:
            refused.append(str(error))
        else:
            assert [tokenizer.normalise(text) for text in TEXTS[:2]]
            tokenizer.encode_with_spans(TEXTS[0])
    assert len(refused) > 20
    assert any("is not UTF-8" in line for line in refused)


def test_a_piece_that_is_no_text_is_named(damaged, tmp_path):
    model = bytearray(damaged[0])
    model[model.rindex("▁".encode()) + 1] = 0x20
    (tmp_path / "t.model").write_bytes(model)
    with pytest.raises(InputError, match=r"t\.model: not a SentencePiece model \(piece \d+ is not UTF-8"):
        load_tokenizer(tmp_path / "t.model")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("r50k_base", 50256), ("cl100k_base", 100256), ("o200k_base", 199998)])
def test_a_published_tiktoken_file_that_is_cut_off_is_refused(tmp_path, name, count):
    path = tmp_path / f"{name}.tiktoken"
    lines = rank_lines([*BYTES, *(b"%d" % number for number in range(1_000_000, 1_000_000 + count - 256))])
    lines = lines.splitlines(keepends=True)
    path.write_text("".join(lines))
    assert load_tokenizer(path).eod_id == count + (name != "r50k_base")
    beside = {"schema": "kis.tokenizer/1", "eod": "<|endoftext|>"}  # a file that names the end of documents alone
    path.with_name(f"{path.name}.meta.json").write_text(json.dumps(beside))
    assert load_tokenizer(path).eod_id == count + (name != "r50k_base")
    path.with_name(f"{path.name}.meta.json").unlink()
    for part in (lines[:300], lines[:-1], [*lines[:-1], f"eHl6 {count + 7}\n"]):
        path.write_text("".join(part))
        with pytest.raises(InputError, match=rf"{name}\.tiktoken: has {len(part)} ranks.*from 0 to {count - 1}; fetch"):
            load_tokenizer(path)


def test_a_model_that_refuses_unknown_words_is_refused(tmp_path):
    from tokenizers import Tokenizer, models

    path = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel({"a": 0, "</s>": 1})).save(str(path))
    with pytest.raises(InputError, match=r"tokenizer\.json: refuses text that it has no tokens for .*unk_token"):
        load_tokenizer(path)
