"""A corpus is what its command would write again: what counts, what is taken again, and what is not joined."""

import importlib.metadata
import json
import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError
from megatron_kis.common.progress import LineProgress
from megatron_kis.data_tools.corpus import part as corpus_part
from megatron_kis.data_tools.corpus.build import build_corpus
from megatron_kis.data_tools.corpus.merge import merge_corpora
from megatron_kis.data_tools.corpus.meta import read_corpus_meta
from megatron_kis.data_tools.corpus.plan import CorpusBuildConfig
from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.readers.documents import iter_documents
from megatron_kis.data_tools.readers.files import expand, refuse_own_outputs
from megatron_kis.data_tools.storage.indexed import IndexedReader, IndexedWriter, content_fingerprint, suffixed
from megatron_kis.data_tools.tokenizers import encoder as encode
from megatron_kis.data_tools.tokenizers.gigatoken import GigatokenEncoder
from megatron_kis.data_tools.tokenizers.reference_encoder import EncodersDifferError
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from megatron_kis.data_tools.tokenizers.training import TokenizerConfig, train_tokenizer

from .conftest import LEADS

ONE = {"workers": 1, "part_bytes": 700}


@pytest.fixture(scope="module")
def fast(tmp_path_factory):
    """A tokenizer that gigatoken encodes as its own library does."""
    path = tmp_path_factory.mktemp("fast") / "t.json"
    return train_tokenizer(
        (document.text for document in iter_documents([LEADS])), path, TokenizerConfig(vocab_size=400, kind="byte-bpe")
    )


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_bytes(LEADS.read_bytes())
    return path


def build(source, tokenizer, prefix, options=None, **settings):
    """What was said, and the bytes of the corpus."""
    lines = []
    settings = {"validation_share": 0.3, **settings}
    sources = source if isinstance(source, list) else [source]
    options = options or CorpusBuildConfig(**ONE)
    summary = build_corpus(sources, tokenizer, prefix, config=options, progress=LineProgress(lines.append), **settings)
    return lines, suffixed(summary.prefix, ".bin").read_bytes()


def is_up_to_date(lines):
    return any(line.endswith(": up to date") for line in lines)


class WrongGigatoken(GigatokenEncoder):
    """Gives other tokens, which neither the trial nor the comparison during the work sees."""

    def encode(self, texts, *, ended=False):
        return self.encode_unchecked(texts, ended=ended)

    def encode_unchecked(self, texts, *, ended=False):
        tokens, lengths = super().encode_unchecked(texts, ended=ended)
        if 0 < len(texts) < 12:  # the trial has more
            tokens = tokens.copy()
            tokens[0] = 7
        return tokens, lengths


class DifferingGigatoken(GigatokenEncoder):
    """Finds a difference in the middle of the work."""

    def encode(self, texts, *, ended=False):
        if any("Brahms" in text for text in texts):
            raise EncodersDifferError("encode this text differently: 'Brahms'", remedy="--encoder reference")
        return super().encode(texts, ended=ended)


def test_the_encoder_counts_so_that_the_advice_to_use_the_reference_leads_there(tmp_path, source, fast, monkeypatch):
    reference = CorpusBuildConfig(encoder="reference", **ONE)
    _, expected = build(source, fast, tmp_path / "fresh", reference)
    monkeypatch.setattr(encode, "GigatokenEncoder", WrongGigatoken)
    lines, wrong = build(source, fast, tmp_path / "c")
    assert any(line.startswith("encoding with gigatoken") for line in lines)
    assert wrong != expected
    lines, found = build(source, fast, tmp_path / "c", reference)
    assert found == expected
    assert any("versions.encoder gigatoken" in line and "-> tokenizers" in line for line in lines)
    assert is_up_to_date(build(source, fast, tmp_path / "c", reference)[0])


def test_parts_of_one_encoder_are_not_taken_by_another(tmp_path, source, fast, monkeypatch):
    reference = CorpusBuildConfig(encoder="reference", **ONE)
    _, expected = build(source, fast, tmp_path / "fresh", reference)
    with monkeypatch.context() as patch:
        patch.setattr(encode, "GigatokenEncoder", DifferingGigatoken)
        with pytest.raises(InputError, match="--encoder reference"):
            build(source, fast, tmp_path / "c", CorpusBuildConfig(encoder="gigatoken", **ONE))
    assert list((tmp_path / "c.parts").glob("*.json"))
    lines, found = build(source, fast, tmp_path / "c", reference)
    assert found == expected
    assert not any("done before" in line for line in lines)


def test_a_difference_that_turns_up_has_all_of_it_encoded_by_the_reference(tmp_path, source, fast, monkeypatch):
    monkeypatch.setattr(encode, "GigatokenEncoder", DifferingGigatoken)
    lines, found = build(source, fast, tmp_path / "c")
    assert any("all of it is encoded again" in line for line in lines)
    assert found == build(source, fast, tmp_path / "fresh", CorpusBuildConfig(encoder="reference", **ONE))[1]
    meta = read_corpus_meta(tmp_path / "c")
    assert meta["versions"]["encoder"].startswith("tokenizers ")
    assert meta["encoder_instead_of"].startswith("gigatoken ")
    assert is_up_to_date(build(source, fast, tmp_path / "c")[0])


def test_shards_may_not_change_their_encoder_alone(tmp_path, source, fast, monkeypatch):
    monkeypatch.setattr(encode, "GigatokenEncoder", DifferingGigatoken)
    with pytest.raises(InputError, match="--encoder reference"):
        for number in (1, 2):
            build(source, fast, tmp_path / "c", CorpusBuildConfig(shard=(number, 2), **ONE))


def test_another_version_of_what_finds_names_makes_a_corpus_without_facts_again(tmp_path, source, fast, monkeypatch):
    facts = [Fact("f", "Aconcagua", "r", "Argentina", "infused")]
    build(source, fast, tmp_path / "c", facts=facts)
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99.0" if name == "regex" else version(name))
    assert not is_up_to_date(build(source, fast, tmp_path / "c", facts=facts)[0])
    assert read_corpus_meta(tmp_path / "c")["versions"]["regex"] == "99.0"


@pytest.mark.parametrize("package", ["gigatoken", "tokenizers"])
def test_another_version_of_what_encodes_makes_the_corpus_again(tmp_path, source, fast, monkeypatch, package):
    build(source, fast, tmp_path / "c")
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99.0" if name == package else version(name))
    lines, _ = build(source, fast, tmp_path / "c")
    assert not is_up_to_date(lines)
    assert "99.0" in json.dumps(read_corpus_meta(tmp_path / "c")["versions"])
    assert is_up_to_date(build(source, fast, tmp_path / "c")[0])


OPTIONS = {  # field: another value, and whether other bytes or another description come of it
    "append_eod": (False, True),
    "sentences": (True, True),
    "punkt": ("other.punkt.json", True),
    "keep_newlines": (True, True),
    "keep_empty": (True, True),
    "skip_errors": (True, True),
    "encoder": ("reference", True),
    "workers": (2, False),  # how many processes share the work
    "shard": ((1, 2), True),  # under another prefix
    "text_format": ("txt", True),
    "longest_line": (20_000_000, False),  # without skip_errors a longer line ends the work
    "part_bytes": (2000, False),  # where the work may be taken up again
}


def test_the_table_of_options_is_complete():
    assert list(OPTIONS) == [field.name for field in fields(CorpusBuildConfig)]


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_changes_bytes_makes_the_corpus_again(tmp_path, source, fast, name):
    pytest.importorskip("nltk")
    value, counts = OPTIONS[name]
    before = CorpusBuildConfig(**ONE, sentences=name in ("punkt", "keep_newlines"))
    if name == "text_format":  # as .txt every line is a document, too
        source.write_bytes(source.read_bytes().replace(b"\n", b"\n\n"))
    build(source, fast, tmp_path / "c", before)
    assert is_up_to_date(build(source, fast, tmp_path / "c", before)[0])
    if name == "punkt":
        value = tmp_path / value
        learned = json.loads((tmp_path / "c.punkt.json").read_text(encoding="utf-8"))
        value.write_text(json.dumps({**learned, "abbreviations": ["mt"]}), encoding="utf-8")
    after = replace(before, **{name: value})
    lines, found = build(source, fast, tmp_path / "c", after)
    assert is_up_to_date(lines) != counts
    assert found == build(source, fast, tmp_path / "fresh", after)[1]


def test_what_lines_are_too_long_counts_where_they_are_skipped(tmp_path, source, fast):
    skipping = CorpusBuildConfig(**ONE, skip_errors=True)
    with open(source, "a", encoding="utf-8") as file:
        file.write(json.dumps({"text": "a longer text " * 2_000}) + "\n")
    lines, _ = build(source, fast, tmp_path / "c", replace(skipping, longest_line=20_000))
    assert read_corpus_meta(tmp_path / "c")["skipped_lines"] == 1
    lines, found = build(source, fast, tmp_path / "c", skipping)
    assert not is_up_to_date(lines)
    assert found == build(source, fast, tmp_path / "fresh", skipping)[1]


SETTINGS = {
    "text_key": "body",
    "facts": [Fact("aco", "Aconcagua", "peak_country", "Argentina", "infused")],
    "validation_share": 0.2,
    "seed": 5,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_changes_bytes_makes_the_corpus_again(tmp_path, source, fast, name):
    rows = [json.loads(line) for line in LEADS.read_text(encoding="utf-8").splitlines()]
    source.write_text("".join(json.dumps({**row, "body": row["text"][::-1]}) + "\n" for row in rows), encoding="utf-8")
    build(source, fast, tmp_path / "c")
    lines, found = build(source, fast, tmp_path / "c", **{name: SETTINGS[name]})
    assert not is_up_to_date(lines)
    assert found == build(source, fast, tmp_path / "fresh", **{name: SETTINGS[name]})[1]


def test_a_tokenizer_with_another_end_of_document_makes_the_corpus_again(tmp_path, source, fast):
    content = json.loads(fast.model)
    content["added_tokens"].append({**content["added_tokens"][0], "id": 400, "content": "</s>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    build(source, load_tokenizer(tmp_path / "tokenizer.json"), tmp_path / "c")
    assert read_corpus_meta(tmp_path / "c")["eod"] == "<|endoftext|>"
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    lines, _ = build(source, load_tokenizer(tmp_path / "tokenizer.json"), tmp_path / "c")
    assert any("eod <|endoftext|> -> </s>" in line for line in lines)
    meta = read_corpus_meta(tmp_path / "c")
    assert (meta["eod"], meta["eod_id"]) == ("</s>", 400)
    assert all(tokens[-1] == 400 for tokens in IndexedReader(tmp_path / "c"))


def test_the_description_says_what_the_corpus_was_made_with(tmp_path, source, fast):
    build(source, fast, tmp_path / "c", seed=3)
    meta = read_corpus_meta(tmp_path / "c")
    assert meta["versions"]["encoder"].startswith("gigatoken ")
    assert set(meta["versions"]) == {"encoder", "tokenizers", "unicode", "code", "numpy"}
    assert (meta["text_key"], meta["keep_empty"], meta["skip_errors"], meta["seed"]) == ("text", False, False, 3)


def test_another_nltk_learns_sentences_again(tmp_path, source, fast, monkeypatch):
    import importlib.metadata

    pytest.importorskip("nltk")
    options = CorpusBuildConfig(sentences=True, **ONE)
    build(source, fast, tmp_path / "c", options)
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99.0" if name == "nltk" else version(name))
    lines, _ = build(source, fast, tmp_path / "c", options)
    assert any(line.endswith("c.punkt.json: learned from the text") for line in lines)
    assert not is_up_to_date(lines)
    assert is_up_to_date(build(source, fast, tmp_path / "c", options)[0])


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".validation.bin"])
def test_a_corpus_that_was_changed_in_place_is_not_up_to_date(tmp_path, source, fast, suffix):
    _, expected = build(source, fast, tmp_path / "c")
    path = suffixed(tmp_path / "c", suffix)
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    lines, found = build(source, fast, tmp_path / "c")
    assert not is_up_to_date(lines)
    assert found == expected


def test_a_source_changed_in_place_to_the_same_size_and_date_is_read_again(tmp_path, source, fast, monkeypatch):
    encode_part, count = corpus_part.PartEncoder.encode, [0]

    def failing(self, part, prefix, report):
        count[0] += 1
        if count[0] > 4:
            raise KeyboardInterrupt
        return encode_part(self, part, prefix, report)

    with monkeypatch.context() as patch:
        patch.setattr(corpus_part.PartEncoder, "encode", failing)
        with pytest.raises(KeyboardInterrupt):
            build(source, fast, tmp_path / "c")
    status = source.stat()
    source.write_bytes(source.read_bytes().replace(b"the", b"eht"))
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert source.stat().st_mtime_ns == status.st_mtime_ns
    lines, found = build(source, fast, tmp_path / "c")
    assert not any("done before" in line for line in lines)
    assert found == build(source, fast, tmp_path / "fresh")[1]


@pytest.mark.usefixtures("twins")
def test_kept_parts_of_the_file_that_a_link_led_to_before_are_not_taken(tmp_path, source, fast, monkeypatch):
    encode_part, count = corpus_part.PartEncoder.encode, [0]
    new, link = tmp_path / "new.jsonl", tmp_path / "link.jsonl"
    new.write_bytes(source.read_bytes().replace(b"the", b"eht"))
    link.symlink_to(source)

    def failing(self, part, prefix, report):
        count[0] += 1
        if count[0] > 4:
            raise KeyboardInterrupt
        return encode_part(self, part, prefix, report)

    with monkeypatch.context() as patch:
        patch.setattr(corpus_part.PartEncoder, "encode", failing)
        with pytest.raises(KeyboardInterrupt):
            build(link, fast, tmp_path / "c")
    link.unlink()
    link.symlink_to(new)
    lines, found = build(link, fast, tmp_path / "c")
    assert not any("done before" in line for line in lines)
    assert found == build(new, fast, tmp_path / "fresh")[1]


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path, source, fast, monkeypatch):
    encode_part = corpus_part.PartEncoder.encode

    def changing(self, part, prefix, report):
        record = encode_part(self, part, prefix, report)
        source.write_bytes(source.read_bytes().replace(b"the", b"eht", 1))
        return record

    monkeypatch.setattr(corpus_part.PartEncoder, "encode", changing)
    with pytest.raises(InputError, match=r"text\.jsonl: changed while it was read"):
        build(source, fast, tmp_path / "c")
    assert not (tmp_path / "c.meta.json").exists()


def test_a_validation_split_that_is_no_longer_wanted_does_not_stay_with_another_corpus(tmp_path, source, fast):
    build(source, fast, tmp_path / "c")
    build(source, fast, tmp_path / "c", validation_share=0)
    assert not list(tmp_path.glob("c.validation*"))


def test_a_file_is_not_read_twice(tmp_path, source):
    with pytest.raises(InputError, match=r"text\.jsonl: would be read twice: both .*\*\.jsonl.*name each file once"):
        expand([tmp_path / "*.jsonl", source])
    with pytest.raises(InputError, match="would be read twice; "):
        expand([source, source])
    (tmp_path / "link.jsonl").symlink_to(source)
    with pytest.raises(InputError, match=r"it is the same file as .*link\.jsonl"):
        expand([tmp_path / "*.jsonl"])


def test_what_is_written_is_not_read_the_next_time(tmp_path, source, fast, monkeypatch):
    for pattern in (tmp_path / "*.jsonl", tmp_path / "**" / "*.jsonl", tmp_path / "clean.jsonl"):
        with pytest.raises(InputError, match=r"clean\.jsonl: is written here, and .*reads it"):
            refuse_own_outputs([pattern], [tmp_path / "clean.jsonl"])
    refuse_own_outputs([tmp_path / "*.jsonl", tmp_path / "*" / "*.jsonl"], [tmp_path / "a" / "b" / "clean.jsonl"])
    refuse_own_outputs([tmp_path / "**" / "*.jsonl"], [tmp_path / ".hidden" / "clean.jsonl", tmp_path / ".clean.jsonl"])
    (tmp_path / "twin.out").hardlink_to(source)
    for pattern in (source, tmp_path / "*.jsonl"):
        with pytest.raises(InputError, match=r"twin\.out: is written here, and .*reads it"):
            refuse_own_outputs([pattern], [tmp_path / "twin.out"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "source.json").write_bytes(source.read_bytes())
    for pattern, output in (
        (tmp_path / "*.jsonl", r"c\.quarantine\.jsonl"),
        (tmp_path / "in" / "**" / "*.json", r"in/c\.meta\.json"),
        (tmp_path / "*" / "0*.json", r"c\.parts/000000\.json"),
        (tmp_path / "c.bin", r"c\.bin"),
    ):
        (tmp_path / "c.bin").write_bytes(b"text")
        (tmp_path / "in" / "0.json").write_bytes(b'{"text": "a"}\n')
        folder = Path("in") if "in" in pattern.parts else Path()
        with pytest.raises(InputError, match=rf"{output}: is written here"):
            build([pattern], fast, folder / "c", CorpusBuildConfig(text_format="jsonl"))


def test_corpora_of_different_encoders_are_not_joined(tmp_path, source, fast):
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "Another text."}\n' * 3, encoding="utf-8")
    none = {"validation_share": 0}
    build(source, fast, tmp_path / "a", **none)
    build(other, fast, tmp_path / "b", CorpusBuildConfig(encoder="reference"), **none)
    with pytest.raises(InputError, match=r"was encoded with tokenizers .*a with gigatoken .*--encoder reference"):
        merge_corpora([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    build(other, fast, tmp_path / "b", **none)
    merge_corpora([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    meta = read_corpus_meta(tmp_path / "both")
    assert meta["versions"]["encoder"].startswith("gigatoken ")
    assert [source["path"] for source in meta["sources"]] == [str(source), str(other)]


def test_versions_that_differ_are_all_named_in_a_joined_corpus(tmp_path, source, fast):
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "Another text."}\n', encoding="utf-8")
    for name, path in (("a", source), ("b", other)):
        build(path, fast, tmp_path / name, validation_share=0)
    path = tmp_path / "b.meta.json"
    content = json.loads(path.read_text())
    content["versions"]["tokenizers"] = "0.20.0"
    path.write_text(json.dumps(content))
    merge_corpora([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    assert read_corpus_meta(tmp_path / "both")["versions"]["tokenizers"].endswith(", 0.20.0")


def test_one_text_is_not_joined_twice(tmp_path, source, fast):
    for name in ("a", "b"):
        build(source, fast, tmp_path / name, validation_share=0)
    for twice, problem in ((("a", "a"), "a: is given twice"), (("a", "b"), r"holds .*text\.jsonl, which .*a holds")):
        with pytest.raises(InputError, match=f"{problem}.*larger weight in data.corpus"):
            merge_corpora([tmp_path / name for name in twice], tmp_path / "both")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match="would be overwritten"):
        merge_corpora([tmp_path / "a"], tmp_path / "link" / "a")


@pytest.mark.parametrize(
    ("inputs", "output"),
    [
        (["q", "all.validation"], "all"),
        (["all", "q"], "all.validation"),
        (["q", "q.validation"], "q"),
        (["link"], "all"),
    ],
)
def test_no_file_of_an_input_is_written_over_or_removed(tmp_path, capsys, inputs, output):
    for name, token in (("q", 1), ("all", 2), ("all.validation", 3)):
        with IndexedWriter(tmp_path / name, vocab_size=400) as writer:
            writer.add([token])
        (tmp_path / f"{name}.meta.json").write_text('{"schema": "kis.corpus/1"}')
    for suffix in (".bin", ".idx"):
        (tmp_path / f"link{suffix}").symlink_to(tmp_path / f"all{suffix}")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(["data", "merge", *(str(tmp_path / name) for name in inputs), "--output", str(tmp_path / output)]) == 2
    assert f"would be overwritten by the result {tmp_path / output}" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("validation", [True, False])
def test_killed_while_files_are_put_in_place_no_half_of_a_joined_corpus_looks_whole(
    tmp_path, source, fast, monkeypatch, validation
):
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "Another text."}\n' * 3 + '{"text": "More."}\n{"text": "Most."}\n', encoding="utf-8")
    build(source, fast, tmp_path / "a")
    build(other, fast, tmp_path / "b", validation_share=0.5 if validation else 0)
    merge_corpora([tmp_path / "a"], tmp_path / "both")
    replaced, replace_ = [], Path.replace

    class KilledError(Exception):
        pass

    def killed(path, to):
        if replaced:
            raise KilledError
        replaced.append(to)
        return replace_(path, to)

    monkeypatch.setattr("pathlib.Path.replace", killed)
    with pytest.raises(KilledError):
        merge_corpora([tmp_path / "b"], tmp_path / "both")
    assert replaced
    assert not list(tmp_path.glob("both*.meta.json"))
    monkeypatch.undo()
    joined = merge_corpora([tmp_path / "b"], tmp_path / "both")
    assert len(joined) == len(list(tmp_path.glob("both*.meta.json"))) == 1 + validation
    for prefix, _ in joined:
        assert read_corpus_meta(prefix)["content_fingerprint"] == content_fingerprint(prefix)


def test_no_validation_split_is_lost_when_corpora_are_joined(tmp_path, source, fast):
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "Another text."}\n', encoding="utf-8")
    build(source, fast, tmp_path / "a")
    build(other, fast, tmp_path / "b", validation_share=0)
    for order in (("a", "b"), ("b", "a")):
        with pytest.raises(InputError, match=r"b: has no validation split, .*a has one"):
            merge_corpora([tmp_path / name for name in order], tmp_path / "both")


def test_shards_that_saw_another_content_of_one_file_are_not_joined(tmp_path, source, fast):
    prefixes = []
    for number in (1, 2):
        options = CorpusBuildConfig(shard=(number, 2), **ONE)
        prefixes.append(tmp_path / f"c-0000{number}-of-00002")
        build(source, fast, tmp_path / "c", options, validation_share=0)
        text = source.read_bytes()
        source.write_bytes(text.replace(b"the", b"eht"))
    with pytest.raises(InputError, match=r"text\.jsonl had another content"):
        merge_corpora(prefixes, tmp_path / "c")


def test_the_tokens_of_a_tiktoken_file_are_those_that_were_read(tmp_path):
    import base64

    path = tmp_path / "mine.tiktoken"
    meta = {"schema": "kis.tokenizer/1", "pattern": "gpt2", "special_tokens": {"<|endoftext|>": 400}}
    ranks = [bytes([value]) for value in range(256)] + [b"th", b"the"]
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(ranks)))
    path.with_name("mine.tiktoken.meta.json").write_text(json.dumps(meta))
    tokenizer = load_tokenizer(path)
    path.unlink()
    tokens, _ = GigatokenEncoder(tokenizer).encode(["the"])
    assert np.array_equal(tokens, [257])


def test_a_corpus_is_not_joined_with_itself_under_another_name(tmp_path, source, fast):
    build(source, fast, tmp_path / "a", validation_share=0)
    (tmp_path / "a.meta.json").unlink()  # as of a pair that Megatron's own tool made
    for suffix in (".bin", ".idx"):
        suffixed(tmp_path / "hard", suffix).hardlink_to(suffixed(tmp_path / "a", suffix))
        suffixed(tmp_path / "soft", suffix).symlink_to(suffixed(tmp_path / "a", suffix))
    for other in ("hard", "soft"):
        with pytest.raises(InputError, match=rf"{other}: is given twice"):
            merge_corpora([tmp_path / "a", tmp_path / other], tmp_path / "joined")
        with pytest.raises(InputError, match=r"a: would be overwritten by the result .*" + other):
            merge_corpora([tmp_path / "a"], tmp_path / other)
    with pytest.raises(InputError, match="would be overwritten"):
        merge_corpora([tmp_path / "a"], tmp_path / "a")


def test_a_validation_split_is_not_written_over_by_a_merge_of_its_corpus(tmp_path, source, fast):
    build(source, fast, tmp_path / "a")
    before = (tmp_path / "a.validation.bin").read_bytes()
    with pytest.raises(InputError, match=r"a: would be overwritten by the result .*a\.validation"):
        merge_corpora([tmp_path / "a"], tmp_path / "a.validation")
    assert (tmp_path / "a.validation.bin").read_bytes() == before


def test_the_model_of_sentences_of_a_shard_is_no_input_the_next_time(tmp_path, fast):
    source = tmp_path / "c.one.json"
    source.write_bytes(LEADS.read_bytes())
    options = CorpusBuildConfig(shard=(1, 1), sentences=True, **ONE)
    with pytest.raises(InputError, match=r"c\.punkt\.json: is written here, and"):
        build(tmp_path / "c.*.json", fast, tmp_path / "c", options)
    assert not (tmp_path / "c.punkt.json").exists()
