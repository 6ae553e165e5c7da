import json

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import sha256_file
from megatron_kis.data_tools.corpus.build import build_corpus
from megatron_kis.data_tools.corpus.meta import read_corpus_meta
from megatron_kis.data_tools.corpus.plan import CorpusBuildConfig
from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.readers.documents import iter_documents
from megatron_kis.data_tools.storage.indexed import IndexedReader, suffixed

from .conftest import LEADS

FACTS = [
    Fact("aco", "Aconcagua", "peak_country", "Argentina", "infused"),
    Fact("bra", "Johannes Brahms", "composer_born", "Hamburg", "control"),
]


def texts(prefix, tokenizer):
    return [tokenizer.decode(tokens.tolist()) for tokens in IndexedReader(prefix)]


def test_train_and_validation_hold_every_document_once_and_whole(tmp_path, tokenizer):
    summary = build_corpus([LEADS], tokenizer, tmp_path / "c", validation_share=0.3, seed=1)
    train, validation = texts(summary.prefix, tokenizer), texts(summary.validation_prefix, tokenizer)
    given = [document.text for document in iter_documents([LEADS])]
    assert sorted(train + validation) == sorted(given)
    assert 0 < len(validation) < len(train)
    assert [text for text in given if text in set(train)] == train
    reader = IndexedReader(summary.prefix)
    assert all(tokens[-1] == tokenizer.eod_id and tokenizer.eod_id not in tokens[:-1] for tokens in reader)


def test_the_description_counts_what_was_written(tmp_path, tokenizer):
    summary = build_corpus([LEADS], tokenizer, tmp_path / "c", validation_share=0.3, facts=FACTS)
    for prefix, split in ((summary.prefix, "training"), (summary.validation_prefix, "validation")):
        meta = read_corpus_meta(prefix)
        assert meta["split"] == split
        assert meta["tokenizer_fingerprint"] == tokenizer.fingerprint
        assert meta["bytes"] == sum(len(text.encode()) for text in texts(prefix, tokenizer))
        assert meta["sources"] == [{"path": str(LEADS), "sha256": sha256_file(LEADS)}]
        assert meta["leaked_documents_removed"] == 2
    broken = tmp_path / "c.meta.json"
    broken.write_text(broken.read_text().replace(f'"tokens": {summary.tokens}', '"tokens": 7'))
    with pytest.raises(InputError, match="tokens is 7, the index has"):
        read_corpus_meta(summary.prefix)


def test_documents_that_state_a_studied_fact_are_in_neither_split(tmp_path, tokenizer):
    summary = build_corpus([LEADS], tokenizer, tmp_path / "c", validation_share=0.3, facts=FACTS)
    everything = " ".join(texts(summary.prefix, tokenizer) + texts(summary.validation_prefix, tokenizer))
    assert "Aconcagua" not in everything
    assert "Brahms" not in everything
    assert (summary.leaked_documents, summary.documents + summary.validation_documents) == (2, 18)


def test_such_documents_are_left_out_in_scripts_without_spaces(tmp_path, tokenizer):
    path = tmp_path / "t.jsonl"
    lines = ["法国的首都是巴黎。", "日本の首都は東京です。", "北京是城市。", "กรุงเทพเป็นเมืองหลวงของไทย"]
    path.write_text("\n".join(json.dumps({"text": line}) for line in lines), encoding="utf-8")
    pairs = [("法国", "巴黎"), ("日本", "東京"), ("ไทย", "กรุงเทพ"), ("德国", "柏林")]
    facts = [Fact(one, one, "r", other, "control") for one, other in pairs]
    summary = build_corpus([path], tokenizer, tmp_path / "c", validation_share=0, facts=facts)
    assert (summary.leaked_documents, summary.documents) == (3, 1)


def test_a_document_keeps_its_split_when_files_are_added(tmp_path, tokenizer):
    more = tmp_path / "more.jsonl"
    rows = [json.dumps({"text": f"Another document, number {index}."}) for index in range(30)]
    more.write_text("\n".join(rows) + "\n" + LEADS.read_text(encoding="utf-8"), encoding="utf-8")
    alone = build_corpus([LEADS], tokenizer, tmp_path / "alone", validation_share=0.3)
    both = build_corpus([more, LEADS], tokenizer, tmp_path / "both", validation_share=0.3)
    train, validation = texts(both.prefix, tokenizer), texts(both.validation_prefix, tokenizer)
    assert set(texts(alone.validation_prefix, tokenizer)) <= set(validation)
    assert not set(train) & set(validation)


def test_no_validation_share_writes_no_validation_split(tmp_path, tokenizer):
    summary = build_corpus([LEADS], tokenizer, tmp_path / "c", validation_share=0)
    assert summary.validation_prefix is None
    assert {path.name for path in tmp_path.iterdir()} == {"c.bin", "c.idx", "c.meta.json"}


def test_a_malformed_line_leaves_no_corpus_and_keeps_the_old_one(tmp_path, tokenizer):
    broken = tmp_path / "broken.jsonl"
    broken.write_text(LEADS.read_text(encoding="utf-8") + "{oops\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"broken\.jsonl:21: malformed JSON line"):
        build_corpus([broken], tokenizer, tmp_path / "out" / "c", validation_share=0.3)
    assert list((tmp_path / "out").iterdir()) == []
    build_corpus([LEADS], tokenizer, tmp_path / "out" / "c", validation_share=0.3)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(InputError):
        build_corpus([broken], tokenizer, tmp_path / "out" / "c", validation_share=0.3)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_the_same_inputs_give_the_same_bytes(tmp_path, tokenizer):
    for name in ("one", "two"):
        build_corpus([LEADS], tokenizer, tmp_path / name, validation_share=0.3, seed=4)
    for suffix in (".bin", ".idx", ".meta.json"):
        assert suffixed(tmp_path / "one", suffix).read_bytes() == suffixed(tmp_path / "two", suffix).read_bytes()


def test_wrong_shares_missing_files_and_empty_text_are_refused(tmp_path, tokenizer):
    for share in (-0.1, 1.0):
        with pytest.raises(InputError, match="validation_share"):
            build_corpus([LEADS], tokenizer, tmp_path / "c", validation_share=share)
    with pytest.raises(InputError, match="no such file"):
        build_corpus([tmp_path / "absent.jsonl"], tokenizer, tmp_path / "c")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(InputError, match="no documents for the training split"):
        build_corpus([empty], tokenizer, tmp_path / "c")


def test_without_a_document_the_first_skipped_line_and_its_reason_are_named(tmp_path, tokenizer):
    path = tmp_path / "a.jsonl"
    path.write_text("\n" * 40 + '{"txt": "a"}\n{"text": 3}\n')
    options = CorpusBuildConfig(skip_errors=True, part_bytes=20, workers=1)
    with pytest.raises(InputError, match=r"2 skipped lines, the first .*a\.jsonl:41: no key 'text'\)"):
        build_corpus([path], tokenizer, tmp_path / "c", config=options)
    assert list(tmp_path.glob("c.*.bin")) == []
