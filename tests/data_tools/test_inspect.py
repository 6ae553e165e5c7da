from collections import Counter

import numpy as np
import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.corpus.build import build_corpus
from megatron_kis.data_tools.inspect import describe, inspect_corpus
from megatron_kis.data_tools.rendering.render import render
from megatron_kis.data_tools.storage.indexed import IndexedReader, IndexedWriter
from megatron_kis.data_tools.tokenizers.training import TokenizerConfig, train_tokenizer

from .conftest import LEADS


@pytest.fixture
def corpus(tmp_path, tokenizer):
    return build_corpus([LEADS], tokenizer, tmp_path / "c", validation_share=0)


def test_counts_lengths_and_a_decoded_sample_are_shown(corpus, tokenizer):
    result = inspect_corpus(corpus.prefix, tokenizer=tokenizer, sample=2)
    assert (result["kind"], result["documents"], result["tokens"]) == ("corpus", 20, corpus.tokens)
    assert [entry["sequence"] for entry in result["sample"]] == [0, 19]
    assert result["sample"][0]["text"].startswith("A river is a natural stream")
    assert any("A river is" in line for line in describe(result))


def test_an_exposure_store_is_inspected_too(tmp_path, facts, templates, tokenizer):
    render(facts, templates, tokenizer, tmp_path / "e")
    result = inspect_corpus(tmp_path / "e", tokenizer=tokenizer)
    assert result["kind"] == "exposures"
    assert [(entry["group"], entry["facts"], entry["most"]) for entry in result["exposures"]] == [
        ("infused", 4, 3),
        ("background", 4, 3),
    ]
    for entry in result["sample"]:
        assert next(fact.subject for fact in facts if fact.id == entry["fact"]) in entry["text"]
    assert any("background peak_country: 4 facts, 12 exposures" in line for line in describe(result))


def test_tokens_and_lengths_are_counted(corpus, tokenizer):
    result = inspect_corpus(corpus.prefix, tokenizer=tokenizer)
    tokens = np.fromfile(corpus.prefix.with_name("c.bin"), "<u2")
    counts = Counter(tokens.tolist())
    histogram = result["token_histogram"]
    assert (histogram["vocab_size"], histogram["used"]) == (400, len(counts))
    listed = [(entry["token"], entry["count"]) for entry in histogram["most_frequent"]]
    assert listed == sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:20]
    assert {entry["piece"] for entry in histogram["most_frequent"]} == {tokenizer.piece(token) for token, _ in listed}
    lengths = IndexedReader(corpus.prefix).lengths
    for entry in result["length_histogram"]:
        within = (lengths >= entry["from"]) & (lengths <= entry["to"])
        assert entry["sequences"] == within.sum()
    assert sum(entry["sequences"] for entry in result["length_histogram"]) == 20


def test_an_index_of_facts_that_was_changed_is_found(tmp_path, facts, templates, tokenizer):
    render(facts, templates, tokenizer, tmp_path / "e")
    path = tmp_path / "e.ids.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(reversed(lines)) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"e\.facts\.npy: is not the index that was written"):
        inspect_corpus(tmp_path / "e")


def test_foreign_files_are_counted_or_refused_by_what_is_wrong(tmp_path, tokenizer):
    with IndexedWriter(tmp_path / "f", vocab_size=70_000) as writer:
        writer.add([5, 69_999])
    assert inspect_corpus(tmp_path / "f")["kind"] == "indexed tokens without description"
    with pytest.raises(InputError, match=r"f\.bin: holds token 69999, the vocabulary has 400"):
        inspect_corpus(tmp_path / "f", tokenizer=tokenizer)
    for value, problem in ((-2, "holds token -2"), (2**31 - 1, "holds token 2147483647")):
        np.array([5, value], "<i4").tofile(tmp_path / "f.bin")
        with pytest.raises(InputError, match=problem):
            inspect_corpus(tmp_path / "f")
    (tmp_path / "f.idx").write_bytes(b"PK" + bytes(60))
    with pytest.raises(InputError, match="not a Megatron index"):
        inspect_corpus(tmp_path / "f")


def test_one_changed_token_is_found(corpus):
    path = corpus.prefix.with_name("c.bin")
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="the files changed or are damaged"):
        inspect_corpus(corpus.prefix)


def test_another_tokenizer_is_refused(tmp_path, corpus):
    other = train_tokenizer(
        LEADS.read_text(encoding="utf-8").splitlines(), tmp_path / "o.model", TokenizerConfig(vocab_size=320)
    )
    with pytest.raises(InputError, match="another tokenizer"):
        inspect_corpus(corpus.prefix, tokenizer=other)
