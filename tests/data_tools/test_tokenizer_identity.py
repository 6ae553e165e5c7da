"""A tokenizer's fingerprint holds all that decides ids and the ends of documents, wherever its files are."""

import base64
import json

import numpy as np
import pytest

from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import sha256_file
from megatron_kis.data_tools.corpus.build import build_corpus
from megatron_kis.data_tools.corpus.meta import read_corpus_meta
from megatron_kis.data_tools.inspect import inspect_corpus
from megatron_kis.data_tools.readers.documents import iter_documents
from megatron_kis.data_tools.rendering.render import render
from megatron_kis.data_tools.tokenizers.base import side_file
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer, write_copy
from megatron_kis.data_tools.tokenizers.training import MODEL_KINDS, TokenizerConfig, train_tokenizer

from .conftest import LEADS

TEXTS = [document.text for document in iter_documents([LEADS])]
NAMES = {"unigram": "t.model", "bpe": "t.model", "byte-bpe": "t.json"}


def tiktoken_file(folder, name="t.tiktoken", **meta):
    path = folder / name
    ranks = [bytes([value]) for value in range(256)] + [b"th", b"the", b" 1"]
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(ranks)))
    special = {"<|endoftext|>": 400, "<|other|>": 401}
    content = {"schema": "kis.tokenizer/1", "pattern": "gpt2", "special_tokens": special, **meta}
    side_file(path).write_text(json.dumps(content))
    return path


@pytest.fixture
def hugging(tmp_path):
    """A ``tokenizer.json`` from elsewhere, with two tokens that may end a document and no file next to it."""
    path = tmp_path / "tokenizer.json"
    content = json.loads(train_tokenizer(TEXTS, path, TokenizerConfig(vocab_size=400, kind="byte-bpe")).model)
    content["added_tokens"].append({**content["added_tokens"][0], "id": 400, "content": "</s>"})
    path.write_text(json.dumps(content), encoding="utf-8")
    side_file(path).unlink()
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json.meta.json", {"schema": "kis.tokenizer/1", "eod": "</s>"}),
        ("tokenizer_config.json", {"eos_token": "</s>"}),
        ("tokenizer_config.json", {"eos_token": {"content": "</s>", "special": True}}),
    ],
)
def test_another_end_of_document_is_another_tokenizer(hugging, name, content):
    before = load_tokenizer(hugging)
    hugging.with_name(name).write_text(json.dumps(content))
    after = load_tokenizer(hugging)
    assert (before.eod_id, after.eod_id) == (0, 400)
    assert before.model_sha256 == after.model_sha256
    assert before.fingerprint != after.fingerprint


def test_a_file_that_says_what_holds_anyway_changes_nothing(hugging):
    before = load_tokenizer(hugging).fingerprint
    hugging.with_name("tokenizer_config.json").write_text('{"eos_token": null, "model_max_length": 7}')
    assert load_tokenizer(hugging).fingerprint == before
    side_file(hugging).write_text('{"schema": "kis.tokenizer/1", "eod": "<|endoftext|>"}')
    assert load_tokenizer(hugging).fingerprint == before


def test_an_added_token_is_another_tokenizer(hugging):
    before = load_tokenizer(hugging).fingerprint
    content = json.loads(hugging.read_text(encoding="utf-8"))
    content["added_tokens"].append({**content["added_tokens"][0], "id": 401, "content": "<more>"})
    hugging.write_text(json.dumps(content), encoding="utf-8")
    assert load_tokenizer(hugging).fingerprint != before


def characters(path, around, *, vocab=None):
    """A ``tokenizer.json`` of characters that has no token for a letter of Latin script."""
    from tokenizers import Tokenizer, models, processors

    vocab = vocab or {"<s>": 0, "<m>": 1, "</s>": 2, "\u4e2d": 3, "\u6587": 4}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens(["<s>", "<m>", "</s>"])
    special = [(name, vocab[name]) for name in ("<s>", "<m>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=special)
    path.write_text(tokenizer.to_str(), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("around", "frame"),
    [
        ("<s> $A", ([0], [])),
        ("$A <s>", ([], [0])),
        ("<s> <m> $A </s>", ([0, 1], [2])),
        ("<s> $A <s>", ([0], [0])),
        ("$A", ([], [])),
    ],
)
def test_what_stands_before_a_text_and_after_it_is_told_of_any_vocabulary(tmp_path, around, frame):
    tokenizer = load_tokenizer(characters(tmp_path / "t.json", around))
    assert tokenizer.encode("a") == []
    assert tokenizer.frame == frame
    assert tokenizer.encode_documents(["\u4e2d\u6587"]) == [[*frame[0], 3, 4, *frame[1]]]


def test_with_sentences_apart_the_command_says_that_each_has_the_frame(tmp_path, capsys):
    pytest.importorskip("nltk")
    vocab = {"<s>": 0, "<m>": 1, "</s>": 2, **{character: 3 + number for number, character in enumerate("abcd. A")}}
    path = characters(tmp_path / "t.json", "<s> $A <m>", vocab=vocab)
    (tmp_path / "a.jsonl").write_text('{"text": "Abba dada. Aba cada. Aca."}\n')
    learned = {"abbreviations": [], "collocations": [], "sentence_starters": [], "orthography": {}}
    (tmp_path / "p.json").write_text(json.dumps({"schema": "kis.punkt/1", **learned}))
    line = "documents end with token 1 (<m>), 2 (</s>), and begin with token 0 (<s>)"
    sentences = ("--split-sentences", "--punkt", str(tmp_path / "p.json"))
    each = "; every sentence begins with token 0 (<s>) and ends with token 1 (<m>)"
    for more, count, told in (((), 1, ""), (sentences, 3, each)):
        prefix = str(tmp_path / f"c{count}")
        command = ["--input", str(tmp_path / "a.jsonl"), "--tokenizer", str(path), "--output", prefix]
        assert main(["data", "corpus", *command, "--validation-share", "0", *more]) == 0
        assert f"{line}{told}\n" in capsys.readouterr().out
        tokens = np.fromfile(f"{prefix}.bin", np.uint16).tolist()
        assert [tokens.count(token) for token in (0, 1, 2)] == [count, count, 1]


def test_a_model_that_does_something_else_with_a_text_is_refused(tmp_path):
    path = characters(tmp_path / "t.json", "$A <s> $A")
    with pytest.raises(InputError, match=r"t\.json: puts tokens around a text in a way that is not clear"):
        load_tokenizer(path)


def test_a_vocabulary_with_holes_ends_with_its_largest_id(tmp_path):
    vocab = {"<s>": 0, "<m>": 1, "</s>": 2, "\u4e2d": 3, "\u6587": 90}
    tokenizer = load_tokenizer(characters(tmp_path / "t.json", "<s> $A", vocab=vocab))
    assert tokenizer.vocab_size == 91
    (tmp_path / "text.txt").write_text("\u4e2d\u6587\n", encoding="utf-8")
    assert build_corpus([tmp_path / "text.txt"], tokenizer, tmp_path / "c", validation_share=0).tokens == 4


@pytest.mark.parametrize(
    "change",
    [
        {"pattern": "gpt4"},
        {"eod": "<|other|>"},
        {"special_tokens": {"<|endoftext|>": 400}},
        {"special_tokens": {"<|endoftext|>": 402, "<|other|>": 401}},
    ],
)
def test_what_lies_next_to_a_tiktoken_file_is_part_of_it(tmp_path, change):
    before = load_tokenizer(tiktoken_file(tmp_path))
    after = load_tokenizer(tiktoken_file(tmp_path, **change))
    assert before.model_sha256 == after.model_sha256
    assert before.fingerprint != after.fingerprint


def test_a_pattern_counts_by_its_content(tmp_path, monkeypatch):
    from megatron_kis.data_tools.tokenizers import tiktoken as tokenizer_tiktoken

    before = load_tokenizer(tiktoken_file(tmp_path)).fingerprint
    monkeypatch.setitem(tokenizer_tiktoken.PATTERNS, "gpt2", tokenizer_tiktoken.PATTERNS["gpt4"])
    assert load_tokenizer(tiktoken_file(tmp_path)).fingerprint != before


def test_a_sentencepiece_model_says_all_itself(tmp_path):
    tokenizer = train_tokenizer(TEXTS, tmp_path / "t.model", TokenizerConfig(vocab_size=400))
    assert tokenizer.fingerprint == sha256_file(tmp_path / "t.model")
    side_file(tmp_path / "t.model").unlink()
    assert load_tokenizer(tmp_path / "t.model").fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        (
            "tokenizer.json.meta.json",
            '{"schema": "kis.tokenizer/1", "eod": "<absent>"}',
            "eod is '<absent>', which is no",
        ),
        ("tokenizer.json.meta.json", '{"schema": "kis.tokenizer/1", "eod": 7}', "eod is 7, which is not a token"),
        ("tokenizer.json.meta.json", '{"schema": "kis.tokenizer/1", "eod"', "not "),
        ("tokenizer.json.meta.json", '{"schema": "other/1", "eod": "</s>"}', "schema is 'other/1'"),
        ("tokenizer.json.meta.json", '{"schema": "kis.tokenizer/1", "eod": "</s>", "eod": "<|endoftext|>"}', "twice"),
        ("tokenizer_config.json", '{"eos_token": "<absent>"}', "eos_token is '<absent>', which is not a token"),
        ("tokenizer_config.json", "[1]", "not a JSON object"),
        ("tokenizer_config.json", "{", "not "),
    ],
)
def test_a_side_file_that_is_damaged_or_names_no_token_is_refused(hugging, name, content, problem):
    hugging.with_name(name).write_text(content)
    with pytest.raises(InputError) as error:
        load_tokenizer(hugging)
    assert name in str(error.value)
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"pattern": "gpt9"}, "pattern is 'gpt9'"),
        ({"pattern": ["gpt2"]}, "pattern is"),
        ({"eod": "<absent>"}, "special_tokens do not hold '<absent>'"),
        ({"eod": ["x"]}, "special_tokens do not hold"),
        ({"special_tokens": ["<|endoftext|>"]}, "special_tokens do not hold"),
        ({"special_tokens": {"<|endoftext|>": "400"}}, "special_tokens do not hold"),
        ({"schema": "other/1"}, "schema is 'other/1'"),
    ],
)
def test_a_damaged_side_file_of_a_tiktoken_file_is_named(tmp_path, change, problem):
    path = tiktoken_file(tmp_path, **change)
    with pytest.raises(InputError) as error:
        load_tokenizer(path)
    assert f"{path.name}.meta.json: {problem}" in str(error.value)


@pytest.mark.parametrize(
    ("special", "problem"),
    [
        ({"<|endoftext|>": 258}, "'<|endoftext|>' has the id 258 of a token of the text"),
        ({"<|endoftext|>": 400, "<|other|>": 400}, "'<|other|>' has the id 400 of '<|endoftext|>'"),
        ({"<|endoftext|>": 400, "<|other|>": -1}, "'<|other|>' has the id -1; ids are whole numbers"),
        ({"<|endoftext|>": 2**31}, "'<|endoftext|>' has the id 2147483648"),
        ({"<|endoftext|>": 2**70}, "'<|endoftext|>' has the id"),
        ({"<|endoftext|>": 400, "": 401}, "special_tokens holds an empty one"),
    ],
)
def test_special_tokens_have_ids_of_their_own(tmp_path, special, problem):
    path = tiktoken_file(tmp_path, special_tokens=special)
    with pytest.raises(InputError) as error:
        load_tokenizer(path)
    assert f"{path.name}.meta.json: " in str(error.value)
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("token", "rank", "problem"),
    [
        (b"the", "300", "the token has a rank in line 258 already"),
        (b"new", "258", "two tokens have one rank: line 259 gives 258 too"),
        (b"new", "-1", "rank is -1; ids are whole numbers"),
        (b"new", str(2**31), "rank is 2147483648"),
        (b"new", str(2**70), "rank is"),
        (b"new", "x", "not a token and its rank"),
    ],
)
def test_ranks_of_a_tiktoken_file_that_cannot_be_are_named_by_line(tmp_path, token, rank, problem):
    path = tiktoken_file(tmp_path)
    with path.open("a") as file:
        file.write(f"{base64.b64encode(token).decode()} {rank}\n")
    with pytest.raises(InputError) as error:
        load_tokenizer(path)
    assert f"{path}:260: {problem}" in str(error.value)


def test_a_side_file_of_a_sentencepiece_model_that_names_another_end_is_refused(tmp_path):
    train_tokenizer(TEXTS, tmp_path / "t.model", TokenizerConfig(vocab_size=400))
    path = side_file(tmp_path / "t.model")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "eod": "<|endoftext|>"}))
    load_tokenizer(tmp_path / "t.model")
    path.write_text(json.dumps({**content, "eod": "</s>"}))
    with pytest.raises(
        InputError, match=r"t\.model\.meta\.json: eod is '</s>'.*documents end with its '<\|endoftext\|>'"
    ):
        load_tokenizer(tmp_path / "t.model")


def test_training_over_an_earlier_model_leaves_nothing_of_it(tmp_path):
    side_file(tmp_path / "t.json").write_text('{"schema": "kis.tokenizer/1", "eod": "</s>"}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    trained = train_tokenizer(TEXTS, tmp_path / "t.json", TokenizerConfig(vocab_size=400, kind="byte-bpe"))
    assert load_tokenizer(tmp_path / "t.json").fingerprint == trained.fingerprint


def same_everywhere(tokenizer, folder):
    """The copy as another folder has it, after the original is gone."""
    copy = load_tokenizer(write_copy(tokenizer, folder))
    moved = folder.with_name(f"{folder.name}-moved")
    folder.rename(moved)
    copy = load_tokenizer(moved / copy.file_name)
    assert (copy.fingerprint, copy.eod_id, copy.vocab_size) == (
        tokenizer.fingerprint,
        tokenizer.eod_id,
        tokenizer.vocab_size,
    )
    assert copy.encode_documents(TEXTS) == tokenizer.encode_documents(TEXTS)
    again = load_tokenizer(write_copy(copy, folder.with_name("again")))
    assert again.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_a_copy_of_a_trained_tokenizer_is_the_same_tokenizer(tmp_path, kind):
    tokenizer = train_tokenizer(TEXTS, tmp_path / NAMES[kind], TokenizerConfig(vocab_size=400, kind=kind))
    same_everywhere(tokenizer, tmp_path / "copy")


def test_a_copy_keeps_the_end_of_document_that_a_config_names(hugging, tmp_path):
    hugging.with_name("tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    same_everywhere(load_tokenizer(hugging), tmp_path / "copy")


@pytest.mark.parametrize("name", ["t.tiktoken", "cl100k_base.tiktoken"])
def test_a_copy_of_a_tiktoken_file_keeps_pattern_and_special_tokens(tmp_path, name):
    path = tiktoken_file(tmp_path, name, pattern="o200k", eod="<|other|>")
    if name.startswith("cl100k"):
        ranks = [*(bytes([value]) for value in range(256)), *(b"%d" % number for number in range(200_000, 300_000))]
        path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(ranks)))
        side_file(path).unlink()
    same_everywhere(load_tokenizer(path), tmp_path / "copy")


def test_a_copy_takes_nothing_from_an_earlier_one(hugging, tmp_path):
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "tokenizer.json.meta.json").write_text("damaged")
    (tmp_path / "copy" / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    tokenizer = load_tokenizer(hugging)
    assert load_tokenizer(write_copy(tokenizer, tmp_path / "copy")).eod_id == tokenizer.eod_id == 0


def test_a_corpus_is_made_again_after_such_a_change_and_the_command_says_which_token_it_is(hugging, tmp_path, capsys):
    command = ["data", "corpus", "--input", str(LEADS), "--tokenizer", str(hugging), "--output", str(tmp_path / "c")]
    assert main(command) == 0
    assert "documents end with token 0 (<|endoftext|>)" in capsys.readouterr().out
    assert main(command) == 0
    assert "up to date" in capsys.readouterr().err
    hugging.with_name("tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    assert main(command) == 0
    said = capsys.readouterr()
    assert "up to date" not in said.err
    assert "documents end with token 400 (</s>)" in said.out
    assert read_corpus_meta(tmp_path / "c")["eod_id"] == 400
    assert main([*command, "--no-append-eod"]) == 0
    assert "no document ends with token 400 (</s>)" in capsys.readouterr().out


def test_exposures_with_another_end_of_document_are_refused_with_both_fingerprints(hugging, tmp_path, facts, templates):
    before = load_tokenizer(hugging)
    render(facts, templates, before, tmp_path / "exposures")
    build_corpus([LEADS], before, tmp_path / "c", validation_share=0)
    hugging.with_name("tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    after = load_tokenizer(hugging)
    for prefix in ("exposures", "c"):
        with pytest.raises(InputError) as error:
            inspect_corpus(tmp_path / prefix, tokenizer=after)
        assert before.fingerprint[:12] in str(error.value)
        assert after.fingerprint[:12] in str(error.value)
