"""Tokenizers of every kind and feature: what is chosen gives the ids of the tokenizer's own library in any text."""

import base64
import io
import json
import unicodedata

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from megatron_kis.data_tools.readers.documents import iter_documents
from megatron_kis.data_tools.tokenizers.encoder import AWKWARD, choose_encoder
from megatron_kis.data_tools.tokenizers.gigatoken import GigatokenEncoder
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer

from .conftest import LEADS

TEXTS = [document.text for document in iter_documents([LEADS])]
SCRIPTS = [
    "naïve café Straße",
    "Ελληνικά και ΣΑΣ",
    "Кириллица",
    "עברית بالعربية",
    "北京は東京です。",
    "ไทย ลาว",
    "हिन्दी বাংলা తెలుగు",
    "한국어 한국어",
    "🙂👩\u200d👩\u200d👧 🇩🇪",
    "A\u030a e\u0301 ﬁ ① Ａ",
    "12 345 6789 ٣٤",
    "it's WE'LL don't",
    "\u0c5c's \ua7ce's \U000323b0's 𞤀's",  # letters of the newest Unicode
]
EOD = "<|endoftext|>"
FLAGS = {
    "plain": {},
    "lstrip": {"lstrip": True},
    "rstrip": {"rstrip": True},
    "single word": {"single_word": True},
    "normalized": {"normalized": True},
    "special": {"special": True},
    "all": {"lstrip": True, "rstrip": True, "single_word": True, "normalized": True},
}
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN = GPT4.replace("{1,3}", "")
CHARACTERS = ["▁", *"abcdefghijklmnopqrstuvwxyzABCDE.,'!1234567890"]


def trained(*, normalizer=None, cut=None, prefix_space=False, model=None):
    """A byte-level BPE model."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=cut is None)
    split = [pre_tokenizers.Split(Regex(cut), "isolated")] if cut else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, bytes_only]) if split else bytes_only
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[EOD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, *SCRIPTS], trainer)
    content = json.loads(tokenizer.to_str())
    content["model"] |= model or {}
    return Tokenizer.from_str(json.dumps(content))


def with_added(tokenizer, spellings, **flags):
    flags = {"normalized": False, **flags}
    tokenizer.add_tokens([AddedToken(spelling, **flags) for spelling in spellings])
    return tokenizer


def framed(tokenizer, single):
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[(EOD, 0)])
    return tokenizer


def llama2(normalizer=None, pre_tokenizer=None, **flags):
    """Characters, bytes, and some merges, with a mark for spaces."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256)), *CHARACTERS]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("i", "n"), ("▁", "a"), ("e", "r"), ("▁", "▁"), ("▁▁", "▁▁")]
    pieces += [left + right for left, right in merges]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    model = models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    special = [AddedToken(name, special=True, **{"normalized": False, **flags}) for name in ("<unk>", "<s>", "</s>")]
    tokenizer.add_special_tokens(special)
    return tokenizer


def metaspace(scheme):
    return pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)


def marks():
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def word_pieces():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]", EOD], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", EOD], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def holes():
    content = json.loads(trained().to_str())
    content["model"]["vocab"] = {piece: 3 * token for piece, token in content["model"]["vocab"].items()}
    return Tokenizer.from_str(json.dumps(content))


RUNS = [" " * length for length in range(2, 25)]
ADDED = ["foo", "Foo bar", "<tag>", "[REF]", "é", "|||MAIL|||"]

HUGGING = {
    "bytes": trained,
    "prefix space": lambda: trained(prefix_space=True),
    "NFC": lambda: trained(normalizer=normalizers.NFC()),
    "NFKC": lambda: trained(normalizer=normalizers.NFKC()),
    "lower case": lambda: trained(normalizer=normalizers.Lowercase()),
    "GPT-4": lambda: trained(cut=GPT4),
    "Qwen": lambda: trained(cut=QWEN, normalizer=normalizers.NFC()),
    "Llama 3": lambda: framed(trained(cut=GPT4, model={"ignore_merges": True}), f"{EOD} $A"),
    "both ends": lambda: framed(trained(), f"{EOD} $A {EOD}"),
    "end of word": lambda: trained(model={"end_of_word_suffix": "</w>"}),
    "runs of spaces, NFC": lambda: with_added(trained(normalizer=normalizers.NFC()), RUNS, normalized=True),
    "runs of newlines": lambda: with_added(trained(cut=GPT4), ["\n" * length for length in range(2, 20)]),
    "normalized after NFC": lambda: with_added(trained(normalizer=normalizers.NFC()), ADDED, normalized=True),
    "normalized after lower case": lambda: with_added(
        trained(normalizer=normalizers.Lowercase()), ADDED, normalized=True
    ),
    "one within another": lambda: with_added(trained(), ["ab", "abc", "bcd", "<|end", EOD + "x"]),
    "eod swallows spaces": lambda: with_added(trained(), [EOD], lstrip=True, rstrip=True, special=True),
    "many": lambda: with_added(trained(), [*(f"<unused{number}>" for number in range(2000)), "<h1>"]),
    "holes": holes,
    "word pieces": word_pieces,
    "unigram": unigram,
    **{f"added, {name}": (lambda flags=flags: with_added(trained(), ADDED, **flags)) for name, flags in FLAGS.items()},
    **{
        f"Llama 2, {scheme}": (lambda scheme=scheme: llama2(pre_tokenizer=metaspace(scheme)))
        for scheme in ("always", "first", "never")
    },
    "Llama 2, normalizer": lambda: llama2(normalizer=marks()),
    "Llama 2, normalized tokens": lambda: with_added(
        llama2(normalizer=marks(), normalized=True), ADDED, normalized=True
    ),
    "Gemma": lambda: with_added(
        llama2(normalizer=normalizers.Replace(" ", "▁")), ["\n\n", "▁▁", "▁▁▁", "\n", "<h1>", "[multimodal]"]
    ),
}

PIECES = {
    "plain": {},
    "user-defined": {"user_defined_symbols": ["[REF]", "foo", "fo", "▁▁", "x y", "\n\n", "é"]},
    "user-defined, no prefix": {"user_defined_symbols": ["[REF]", "foo", "▁▁"], "add_dummy_prefix": False},
    "control": {"control_symbols": ["[INST]", "foo"]},
    "nmt_nfkc": {"normalization_rule_name": "nmt_nfkc", "user_defined_symbols": ["foo", "fi", "A"]},
    "nfkc_cf": {"normalization_rule_name": "nfkc_cf", "user_defined_symbols": ["foo"]},
    "spaces removed": {"remove_extra_whitespaces": True, "user_defined_symbols": ["x y"]},
    "space behind": {"treat_whitespace_as_suffix": True},
    "digits": {"split_digits": True},
    "no bytes": {"byte_fallback": False},
}


def pieces(path, kind, **options):
    model = io.BytesIO()
    chosen = {
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "vocab_size": 420 if options.get("byte_fallback", True) else 200,
        **options,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 3),
        model_writer=model,
        model_type=kind,
        minloglevel=2,
        hard_vocab_limit=False,
        character_coverage=0.98,
        **chosen,
    )
    path.write_bytes(model.getvalue())
    return load_tokenizer(path)


def ranks(path, pattern, words):
    """A tiktoken file of single bytes and some words."""
    tokens = [*(bytes([value]) for value in range(256)), *words]
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)))
    meta = {"schema": "kis.tokenizer/1", "pattern": pattern, "special_tokens": {EOD: 400, "<|im_start|>": 401}}
    path.with_name(path.name + ".meta.json").write_text(json.dumps(meta))
    return load_tokenizer(path)


ORDERS = {  # the second has tokens before those that they are made of
    "parts first": [b"th", b"he", b" t", b"in", b"  ", b"\n\n", "é".encode(), b"'s", b"12", b"the", b" the", b"ing"],
    "parts last": [b"ing", b"in", b" the", b" t", b"th", b"the", b"he", b"\n\n", b"   ", "é".encode(), b"'s", b"12"],
}
KINDS = [
    *HUGGING,
    *(f"{kind}: {name}" for kind in ("bpe", "unigram") for name in PIECES),
    *(f"tiktoken: {pattern} {order}" for pattern in ("gpt2", "gpt4", "o200k", "llama3") for order in ORDERS),
]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Makes a tokenizer by its name, once, with what is chosen for it."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("zoo")
            kind, _, rest = name.partition(": ")
            if name in HUGGING:
                path = folder / "tokenizer.json"
                path.write_text(HUGGING[name]().to_str(), encoding="utf-8")
                tokenizer = load_tokenizer(path)
            elif kind == "tiktoken":
                pattern, _, order = rest.partition(" ")
                tokenizer = ranks(folder / "t.tiktoken", pattern, ORDERS[order])
            else:
                tokenizer = pieces(folder / "t.model", kind, **PIECES[rest])
            made[name] = (tokenizer, choose_encoder(tokenizer, TEXTS)[0])
        return made[name]

    return get


def around(spelling):
    """Texts with a spelling alone, first, last, behind and before a letter, between spaces, twice."""
    s = spelling
    return [
        s,
        f"{s}a",
        f"a{s}",
        f"a{s}b",
        f" {s} ",
        f"a  {s}  b",
        f"{s}{s}",
        f"{s} {s}",
        f"\n{s}\n",
        f"é{s}1.{s}!",
        s.upper(),
    ]


def rows(batch):
    tokens, lengths = batch
    return [row.tolist() for row in np.split(tokens, np.cumsum(lengths)[:-1])]


def check(tokenizer, encoder, texts):
    expected = tokenizer.encode_documents(texts)
    assert (
        rows(encoder.encode_unchecked(texts) if isinstance(encoder, GigatokenEncoder) else encoder.encode(texts))
        == expected
    )
    if isinstance(encoder, GigatokenEncoder):
        ended = [[*row, tokenizer.eod_id] if row else row for row in expected]
        assert rows(encoder.encode(texts, ended=True)) == ended


@pytest.mark.parametrize("name", KINDS)
def test_every_tokenizer_is_encoded_as_by_its_own_library(zoo, name):
    tokenizer, encoder = zoo(name)
    spelled = sorted({*tokenizer.spellings, *tokenizer.normal_spellings, *ADDED, EOD, "x y", "\n\n"})[:60]
    texts = [*AWKWARD, *SCRIPTS, *TEXTS, *(text for spelling in spelled for text in around(spelling))]
    check(tokenizer, encoder, texts)
    for text in texts[:: len(texts) // 40 or 1]:
        check(tokenizer, encoder, [text])


FAST = [
    "bytes",
    "prefix space",
    "NFC",
    "GPT-4",
    "Qwen",
    "Llama 3",
    "runs of spaces, NFC",
    "runs of newlines",
    "holes",
    "added, single word",
    "Llama 2, always",
    "Llama 2, normalizer",
    "Gemma",
    "many",
    "bpe: plain",
    "bpe: user-defined",
    "bpe: user-defined, no prefix",
    "tiktoken: gpt2 parts first",
    "tiktoken: llama3 parts first",
]


@pytest.mark.parametrize("name", FAST)
def test_ordinary_tokenizers_are_fast(zoo, name):
    assert isinstance(zoo(name)[1], GigatokenEncoder)


def test_a_model_at_which_gigatoken_panics_is_encoded_by_its_own_library(zoo, capfd):
    tokenizer, _ = zoo("tiktoken: gpt2 parts last")
    encoder, why = choose_encoder(tokenizer, TEXTS)
    assert not isinstance(encoder, GigatokenEncoder)
    assert why.startswith("gigatoken does not read this model (assertion")
    assert capfd.readouterr().err == ""


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_text_of_any_tokenizer_is_encoded_as_by_its_own_library(zoo, data):
    tokenizer, encoder = zoo(data.draw(st.sampled_from(FAST)))
    spelled = [*tokenizer.spellings[:40], *tokenizer.normal_spellings[:40], *ADDED]
    part = st.sampled_from([*spelled, *SCRIPTS, " ", "  ", "\n", "a", "the", "'s"]) | st.text(max_size=8)
    texts = data.draw(st.lists(st.lists(part, max_size=6).map("".join), max_size=8))
    if texts:
        check(tokenizer, encoder, texts)


@pytest.mark.parametrize("name", ["NFC", "Qwen", "normalized after NFC"])
def test_marks_that_tables_of_nfc_disagree_on_are_left_to_the_tokenizers_own_library(zoo, name):
    tokenizer, encoder = zoo(name)
    assert isinstance(encoder, GigatokenEncoder)
    characters = [chr(character) for character in range(0x30000) if not 0xD800 <= character < 0xE000]
    marks = [character for character in characters if unicodedata.combining(character)]
    others = "\u0301\u0327\u0345\u0334\u302a\u05b4\u3099"
    pairs = [f"a{mark}{other}b a{other}{mark}b e{mark}{other}" for mark in marks for other in others]
    parts = [unicodedata.normalize("NFD", character) for character in characters]
    composed = [text for text, character in zip(parts, characters, strict=True) if text != character]
    newer = ["\u0e97\u0eba\u0ec8\u0e97", "a\U00011935\U00011930", "\u1100\u1161\u11a8 \uac00\u11a8 \uac00\u11a7"]
    for texts in (pairs, composed, [*newer, "a" + "\u0301" * 40 + "\u0327"]):
        assert rows(encoder.encode_unchecked(texts)) == tokenizer.encode_documents(texts)


def test_common_scripts_of_a_model_with_nfc_stay_with_gigatoken(zoo):
    _, encoder = zoo("Qwen")
    burmese, lao = "\u1019\u103c\u1014\u103a\u1019\u102c\u1005\u102c", "\u0e9e\u0eb2\u0eaa\u0eb2\u0ea5\u0eb2\u0ea7"
    assert encoder._unsafe.found([*SCRIPTS[:12], "e\u0301 क़ \u05e9\u05bc\u05c1 Việt Nam", burmese, lao]) == []
