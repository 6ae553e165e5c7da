"""The bytes of a corpus against Megatron-Core's own builder, fed as Megatron-LM's tools/preprocess_data.py feeds it."""

import json

import pytest

from megatron_kis.data_tools.corpus.build import build_corpus
from megatron_kis.data_tools.corpus.plan import CorpusBuildConfig
from megatron_kis.data_tools.corpus.sentences import load_splitter
from megatron_kis.data_tools.storage.indexed import IndexedReader, suffixed
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from megatron_kis.data_tools.tokenizers.training import TokenizerConfig, train_tokenizer

from .conftest import LEADS

TEXTS = [json.loads(line)["text"] for line in LEADS.read_text(encoding="utf-8").splitlines()]
ODD = [
    "",
    "  ",
    "One. Two? Three!",
    "Dr. Smith of Mt. Cook.\n\nA new line.",
    "x",
    "\n",
    "北京。上海。",
    "Ends <|endoftext|>",
]


@pytest.fixture(scope="module", params=["tokenizer.model", "tokenizer.json"])
def tokenizer(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / request.param
    train_tokenizer(
        TEXTS, path, TokenizerConfig(vocab_size=400, kind="byte-bpe" if path.suffix == ".json" else "unigram")
    )
    return load_tokenizer(path)


def preprocess(texts, prefix, encode, *, vocab_size, eod, split=lambda text: [text]):
    """The tool's ``Encoder.encode`` and ``process_json_file``: sentences without tokens go, documents stay."""
    indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    dtype = indexed_dataset.DType.optimal_dtype(vocab_size)
    builder = indexed_dataset.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for text in texts:
        document, lengths = [], []
        for sentence in split(text):
            ids = encode(sentence)
            if len(ids) > 0:
                document.extend(ids)
                lengths.append(len(ids))
        if len(document) > 0 and eod is not None:
            document.append(eod)
            lengths[-1] += 1
        builder.add_document(document, lengths)
    builder.finalize(f"{prefix}.idx")


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def assert_same(ours, theirs):
    for suffix in (".bin", ".idx"):
        assert suffixed(ours, suffix).read_bytes() == suffixed(theirs, suffix).read_bytes()


@pytest.mark.parametrize("append_eod", [True, False])
@pytest.mark.parametrize("workers", [1, 2])
def test_whole_documents_give_the_bytes_of_megatrons_tool(tmp_path, tokenizer, append_eod, workers):
    texts = [*TEXTS, *ODD] * 2
    source = write_jsonl(tmp_path / "text.jsonl", texts)
    options = CorpusBuildConfig(append_eod=append_eod, keep_empty=True, workers=workers, part_bytes=1500)
    build_corpus([source], tokenizer, tmp_path / "ours", validation_share=0, config=options)
    encode = lambda text: tokenizer.encode_documents([text])[0]  # noqa: E731
    eod = tokenizer.eod_id if append_eod else None
    preprocess(texts, tmp_path / "theirs", encode, vocab_size=tokenizer.vocab_size, eod=eod)
    assert_same(tmp_path / "ours", tmp_path / "theirs")
    assert IndexedReader(tmp_path / "ours").documents == len(texts)


@pytest.mark.parametrize("keep_newlines", [False, True])
def test_sentences_give_the_bytes_of_megatrons_tool_with_the_same_punkt(tmp_path, tokenizer, keep_newlines):
    punkt = pytest.importorskip("nltk.tokenize.punkt")
    texts = [*TEXTS, *ODD]
    source = write_jsonl(tmp_path / "text.jsonl", texts)
    options = CorpusBuildConfig(
        sentences=True, keep_newlines=keep_newlines, keep_empty=True, workers=1, part_bytes=2000
    )
    build_corpus([source], tokenizer, tmp_path / "ours", validation_share=0, config=options)
    learned = load_splitter(tmp_path / "ours.punkt.json")._splitter._params

    class CustomLanguageVars(punkt.PunktLanguageVars):  # as in the tool
        _period_context_fmt = r"""
            \S*                          # some word material
            %(SentEndChars)s             # a potential sentence ending
            \s*
            (?=(?P<after_tok>
                %(NonWord)s              # either other punctuation
                |
                (?P<next_tok>\S+)
            ))"""

    variables = CustomLanguageVars() if keep_newlines else None
    splitter = punkt.PunktSentenceTokenizer(train_text=learned, lang_vars=variables)
    encode = lambda text: tokenizer.encode_documents([text])[0]  # noqa: E731
    preprocess(
        texts,
        tmp_path / "theirs",
        encode,
        vocab_size=tokenizer.vocab_size,
        eod=tokenizer.eod_id,
        split=splitter.tokenize,
    )
    assert_same(tmp_path / "ours", tmp_path / "theirs")
    reader = IndexedReader(tmp_path / "ours")
    reader.verify()
    assert len(reader) > reader.documents == len(texts)


def test_sentences_are_learned_once_and_the_model_is_plain_json(tmp_path, tokenizer):
    pytest.importorskip("nltk")
    said = []
    from megatron_kis.common.progress import LineProgress

    for name in ("one", "two"):
        options = CorpusBuildConfig(sentences=True, workers=1)
        prefix = tmp_path / "c"
        build_corpus(
            [LEADS], tokenizer, prefix, config=options, validation_share=0.3, progress=LineProgress(said.append)
        )
        suffixed(prefix, ".meta.json").rename(tmp_path / f"{name}.json")
    assert sum("learned from the text" in line for line in said) == 1
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    learned = json.loads((tmp_path / "c.punkt.json").read_text(encoding="utf-8"))
    assert learned["schema"] == "kis.punkt/1"
    assert learned["characters"] == sum(map(len, TEXTS))
