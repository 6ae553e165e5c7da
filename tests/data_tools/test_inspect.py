import pytest

from data_tools.corpus import build_corpus
from data_tools.inspect import describe, inspect_corpus
from data_tools.render import render
from data_tools.tokenizer import train_tokenizer
from megatron_kis.errors import InputError

from .conftest import LEADS


@pytest.fixture
def corpus(tmp_path, tokenizer):
    return build_corpus([LEADS], tokenizer, tmp_path / "c", validation_share=0)


def test_counts_lengths_and_a_decoded_sample_are_shown(corpus, tokenizer):
    result = inspect_corpus(corpus.prefix, tokenizer=tokenizer, sample=2)
    assert (result["kind"], result["documents"], result["tokens"]) == ("corpus", 20, corpus.tokens)
    assert [entry["document"] for entry in result["sample"]] == [0, 19]
    assert result["sample"][0]["text"].startswith("A river is a natural stream")
    assert any("A river is" in line for line in describe(result))


def test_an_exposure_store_is_inspected_too(tmp_path, facts, templates, tokenizer):
    render(facts, templates, tokenizer, tmp_path / "e")
    assert inspect_corpus(tmp_path / "e", tokenizer=tokenizer)["kind"] == "exposures"


def test_one_changed_token_is_found(corpus):
    path = corpus.prefix.with_name("c.bin")
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="the files changed or are damaged"):
        inspect_corpus(corpus.prefix)


def test_another_tokenizer_is_refused(tmp_path, corpus):
    other = train_tokenizer(LEADS.read_text(encoding="utf-8").splitlines(), tmp_path / "o.model", vocab_size=320)
    with pytest.raises(InputError, match="another tokenizer"):
        inspect_corpus(corpus.prefix, tokenizer=other)
