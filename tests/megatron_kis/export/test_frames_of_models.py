"""Tokenizers like those of well-known models: one frame around documents here and in the exported tokenizer."""

import json
from types import SimpleNamespace

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.convert.tokenizer_json import _check, write_tokenizer
from megatron_kis.data_tools.readers.documents import iter_documents
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from megatron_kis.data_tools.tokenizers.training import TokenizerConfig, train_tokenizer
from tests.data_tools.conftest import LEADS

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

TEXTS = ["The river crosses the town. It is 12 km long.", "Une ville de montagne, naïve."] * 20

# The special tokens in the order of their ids, what is put before a text, eos_token of tokenizer_config.json, and: what
# documents begin with, end with, and what is remarked.
MODELS = {
    "GPT-2": (["<|endoftext|>"], "", "<|endoftext|>", "", "<|endoftext|>", ""),
    "NeoX": (["<|endoftext|>", "<|padding|>"], "", None, "", "<|endoftext|>", ""),
    "Llama 2": (["<unk>", "<s>", "</s>"], "<s>", "</s>", "<s>", "</s>", ""),
    "Llama 3": (
        ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "",
    ),
    "Llama 3, instruct": (
        ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|begin_of_text|>",
        "<|eot_id|>",
        "for <|end_of_text|>, write",
    ),
    "Gemma": (["<pad>", "<eos>", "<bos>", "<end_of_turn>"], "<bos>", "<eos>", "<bos>", "<eos>", ""),
    "Gemma, instruct": (
        ["<pad>", "<eos>", "<bos>", "<end_of_turn>"],
        "<bos>",
        "<end_of_turn>",
        "<bos>",
        "<end_of_turn>",
        "for <eos>, write",
    ),
    "Qwen": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "", "<|endoftext|>", "", "<|endoftext|>", ""),
    "Qwen, instruct": (
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "",
        "<|im_end|>",
        "",
        "<|im_end|>",
        'for <|endoftext|>, write {"schema": "kis.tokenizer/1", "eod": "<|endoftext|>"} into tokenizer.json.meta.json',
    ),
}


def make(folder, special, before, eos):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if before:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{before} $A", special_tokens=[(before, special.index(before))]
        )
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    if eos:
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    return load_tokenizer(folder)


@pytest.mark.parametrize("name", MODELS)
def test_the_frame_is_told_and_handed_on(tmp_path, name):
    special, put, eos, before, end, remark = MODELS[name]
    tokenizer = make(tmp_path / "model", special, put, eos)
    begin = f"token {special.index(before)} ({before})" if before else "no token of their own"
    assert tokenizer.frame_line() == f"documents end with token {special.index(end)} ({end}), and begin with {begin}"
    assert (remark in "".join(tokenizer.remarks)) if remark else not tokenizer.remarks
    write_tokenizer(tmp_path / "model", tmp_path / "model", longest=64, samples=[])
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    for text in (*TEXTS[:2], "", " a  b", "\n"):
        assert theirs(text)["input_ids"] == tokenizer.encode_documents([text])[0]
    assert (theirs.eos_token, theirs.bos_token) == (end, before or end)
    assert load_tokenizer(tmp_path / "model").fingerprint == tokenizer.fingerprint


def test_another_end_of_documents_ends_the_remark(tmp_path):
    special, put, eos, *_ = MODELS["Qwen, instruct"]
    make(tmp_path, special, put, eos)
    (tmp_path / "tokenizer.json.meta.json").write_text('{"schema": "kis.tokenizer/1", "eod": "<|endoftext|>"}')
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eod_id, tokenizer.remarks) == (0, ())


@pytest.mark.parametrize(
    ("put", "config", "remark"),
    [
        ("", {"add_bos_token": True}, "has add_bos_token, but tokenizer.json puts no token before a text"),
        ("<s>", {"add_bos_token": False}, "has no add_bos_token, but tokenizer.json puts a token before a text"),
        ("<s>", {"add_bos_token": True}, ""),
        ("", {"add_bos_token": False}, ""),
    ],
)
def test_a_configuration_that_says_otherwise_is_remarked(tmp_path, put, config, remark):
    make(tmp_path, ["<unk>", "<s>", "</s>"], put, None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    remarks = load_tokenizer(tmp_path).remarks
    assert (remark in remarks[0]) if remark else not remarks


@pytest.mark.slow
def test_a_sentencepiece_model_says_that_it_does_not_begin_documents(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    with (tmp_path / "llama.model").open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS),
            model_writer=model,
            model_type="bpe",
            vocab_size=320,
            byte_fallback=True,
            minloglevel=2,
            hard_vocab_limit=False,
        )
    tokenizer = load_tokenizer(tmp_path / "llama.model")
    assert tokenizer.frame_record() == {"before": [], "after": []}
    assert "<s> begins documents, and none begins with it" in tokenizer.remarks[0]
    assert train_tokenizer(TEXTS, tmp_path / "own.json", TokenizerConfig(vocab_size=300, kind="byte-bpe")).remarks == ()


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_sentencepiece_model_of_ours_is_handed_on_with_its_frame(tmp_path, kind):
    texts = [document.text for document in iter_documents([LEADS])]
    tokenizer = train_tokenizer(texts, tmp_path / "t.model", TokenizerConfig(vocab_size=400, kind=kind))
    write_tokenizer(tmp_path / "t.model", tmp_path, longest=64, samples=[])
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (*TEXTS[:2], " a  b", "\n"):
        assert theirs(text)["input_ids"] == tokenizer.encode_documents([text])[0]
    assert theirs.eos_token == theirs.bos_token == "<|endoftext|>"


@pytest.mark.slow
@pytest.mark.parametrize("more", [{"user_defined_symbols": ["[REF]"]}, {"normalization_rule_name": "nmt_nfkc"}])
def test_a_sentencepiece_model_that_the_export_does_not_express_is_refused(tmp_path, more):
    sentencepiece = pytest.importorskip("sentencepiece")
    options = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, **more}
    with (tmp_path / "t.model").open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS),
            model_writer=model,
            model_type="bpe",
            vocab_size=320,
            byte_fallback=True,
            minloglevel=2,
            hard_vocab_limit=False,
            **options,
        )
    with pytest.raises(InputError, match=r"t\.model: .* in tokenizer\.json; export with --no-tokenizer"):
        write_tokenizer(tmp_path / "t.model", tmp_path, longest=64, samples=[])


@pytest.mark.parametrize(("model", "taken"), [("Unigram", True), ("BPE", False)])
def test_another_split_of_the_same_pieces_is_told_in_awkward_texts_alone(tiny_data, caplog, model, taken):
    """For a unigram model splits of the same pieces in another order are equally likely, and libraries differ there."""
    ours = load_tokenizer(tiny_data / "tokenizer.model")

    class Swapped:
        def __init__(self) -> None:
            self.model = type(model, (), {})()

        def encode(self, text, **_):
            return SimpleNamespace(ids=ours.encode(text)[::-1])

    if taken:
        _check(ours, Swapped(), [], tiny_data / "tokenizer.model")
        assert "another of the equally likely splits of '" in caplog.text
    else:
        with pytest.raises(InputError, match=r"tokenizer\.model: in .* in tokenizer\.json; export with --no-tokenizer"):
            _check(ours, Swapped(), [], tiny_data / "tokenizer.model")
    with pytest.raises(InputError, match=r"token 0 and its followers are"):
        _check(ours, Swapped(), [ours.encode("The river is long.")], tiny_data / "tokenizer.model")
