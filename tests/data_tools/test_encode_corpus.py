"""What becomes of a corpus where gigatoken is wrong, or fails, far behind the first documents."""

import json
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import AddedToken, Tokenizer

from megatron_kis.cli.main import main
from megatron_kis.common.progress import LineProgress
from megatron_kis.data_tools.corpus.build import build_corpus
from megatron_kis.data_tools.corpus.meta import read_corpus_meta
from megatron_kis.data_tools.corpus.plan import CorpusBuildConfig
from megatron_kis.data_tools.readers.documents import iter_documents
from megatron_kis.data_tools.tokenizers import encoder as encode
from megatron_kis.data_tools.tokenizers.encoder import choose_encoder
from megatron_kis.data_tools.tokenizers.gigatoken import GigatokenEncoder, _pieces
from megatron_kis.data_tools.tokenizers.reference_encoder import EncodersDifferError, ReferenceEncoder
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from megatron_kis.data_tools.tokenizers.training import TokenizerConfig, train_tokenizer
from megatron_kis.data_tools.tokenizers.unsafe_text import UnsafeTextFinder

from .conftest import LEADS

TEXTS = [document.text for document in iter_documents([LEADS])]
PLAIN = "plain text of the document number {}, which goes on for a while and ends here."


def symbols(path: Path) -> Path:
    """SentencePiece pieces as Mistral's tokenizers have them: user-defined ones, and a space before each text."""
    with path.open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS * 3),
            model_writer=model,
            model_type="bpe",
            vocab_size=420,
            minloglevel=2,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            hard_vocab_limit=False,
            user_defined_symbols=["[REF]", "[/REF]"],
        )
    return path


def single_words(path: Path) -> Path:
    """A ``tokenizer.json`` with a token that is none within a word."""
    tokenizer = Tokenizer.from_str(
        train_tokenizer(TEXTS, path, TokenizerConfig(vocab_size=400, kind="byte-bpe")).model.decode()
    )
    tokenizer.add_tokens([AddedToken("foo", single_word=True, normalized=False)])
    path.write_text(tokenizer.to_str(), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("make", "name", "late"),
    [
        (symbols, "t.model", "as shown in [REF] for item {}"),
        (symbols, "t.model", "[REF] a{}[/REF][/REF]"),
        (single_words, "t.json", "a foobar of foo and {}foo"),
    ],
)
def test_tokens_that_turn_up_late_are_encoded_as_by_the_tokenizers_own_library(tmp_path, make, name, late):
    path, text = make(tmp_path / name), tmp_path / "text.jsonl"
    rows = [(late if i > 3000 and i % 10 == 9 else PLAIN).format(i) for i in range(6000)]
    text.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    for output, more in (("auto", []), ("reference", ["--encoder", "reference"])):
        command = ["data", "corpus", "--input", str(text), "--tokenizer", str(path), "--validation-share", "0"]
        assert main([*command, "--output", str(tmp_path / output), *more]) == 0
    assert read_corpus_meta(tmp_path / "auto")["versions"]["encoder"].startswith("gigatoken")
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"auto{suffix}").read_bytes() == (tmp_path / f"reference{suffix}").read_bytes()


@pytest.fixture(scope="module")
def fast(tmp_path_factory):
    path = tmp_path_factory.mktemp("fast") / "t.json"
    return train_tokenizer(TEXTS, path, TokenizerConfig(vocab_size=400, kind="byte-bpe"))


class PanicException(BaseException):
    """As Rust's panics reach Python: no ``Exception``."""


class Failing:
    """A backend that fails at a word."""

    def __init__(self, backend, error):
        self.backend, self.error = backend, error

    def encode(self, text):
        if "Brahms" in text:
            raise self.error
        return self.backend.encode(text)


class FailingGigatoken(GigatokenEncoder):
    """Fails in the middle of the work."""

    error: BaseException = PanicException("index out of bounds\n and a stack")

    def __init__(self, tokenizer, **options):
        super().__init__(tokenizer, **options)
        self._backend = Failing(self._backend, self.error)


def build(tokenizer, source, prefix, **options):
    lines = []
    build_corpus(
        [source],
        tokenizer,
        prefix,
        validation_share=0,
        config=CorpusBuildConfig(part_bytes=700, **options),
        progress=LineProgress(lines.append),
    )
    return lines, prefix.with_suffix(".bin").read_bytes()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("error", [PanicException("index out of bounds\n and a stack"), ValueError("no such byte")])
def test_where_gigatoken_fails_the_tokenizers_own_library_encodes_all(tmp_path, fast, monkeypatch, workers, error):
    source = tmp_path / "text.jsonl"
    rows = [*TEXTS[:1] * 20, "Brahms in the middle", *TEXTS[:1] * 20]
    source.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    monkeypatch.setattr(FailingGigatoken, "error", error)
    monkeypatch.setattr(encode, "GigatokenEncoder", FailingGigatoken)
    monkeypatch.setattr("megatron_kis.data_tools.corpus.build.sample_texts", lambda *_args, **_options: iter(TEXTS[:1]))
    lines, found = build(fast, source, tmp_path / "c", workers=workers)
    reason = str(error).partition("\n")[0]
    assert any(f"failed ({reason}); all of it is encoded again" in line for line in lines)
    assert found == build(fast, source, tmp_path / "r", encoder="reference")[1]


def test_where_gigatoken_fails_in_the_trial_it_is_not_chosen(fast, monkeypatch):
    monkeypatch.setattr(encode, "GigatokenEncoder", FailingGigatoken)
    encoder, why = choose_encoder(fast, ["Johannes Brahms"])
    assert isinstance(encoder, ReferenceEncoder)
    assert why.endswith("failed (index out of bounds)")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_an_interrupt_is_no_failure_of_gigatoken(fast, monkeypatch, error):
    monkeypatch.setattr(FailingGigatoken, "error", error())
    with pytest.raises(error):
        FailingGigatoken(fast).encode(["Johannes Brahms"])


class Uncertain:
    """A backend that is wrong in texts with an accent."""

    def __init__(self, backend):
        self.backend = backend

    def encode(self, text):
        tokens = self.backend.encode(text)
        if "é" in text:
            tokens = tokens.copy()
            tokens[tokens > 300] -= 1
        return tokens


def test_a_piece_of_every_batch_is_compared_not_of_its_first_text_alone(fast):
    encoder = GigatokenEncoder(fast)
    encoder._backend = Uncertain(encoder._backend)
    texts = ["the water of the river and the town"] * 300 + ["é the water of the river and the town"]
    with pytest.raises(EncodersDifferError, match="encode this text differently: 'é the water"):
        encoder.encode(texts)


def test_pieces_are_few_and_from_everywhere():
    texts = [f"{number:05d} " * 40 for number in range(4000)]
    pieces = [piece for start in range(100) for piece in _pieces(texts[start * 40 :])]
    assert sum(map(len, pieces)) < 0.002 * sum(len(text) for start in range(100) for text in texts[start * 40 :])
    assert len({piece.split()[1][:3] for piece in pieces}) > 20
    assert _pieces([""]) == [""]


@pytest.mark.parametrize("text", ["\u0c5c's", "\ua7ce's", "\U000323b0's", "\U0001cc00"])
def test_characters_that_unicode_tables_disagree_on_are_left_to_the_tokenizers_own_library(fast, text):
    encoder = GigatokenEncoder(fast)
    batch = ["plain", f"it {text} is", "naïve 北京 🙂"]
    assert UnsafeTextFinder(fast, blanks=False).found(batch) in ([1], [])  # none where Python knows it
    expected = ReferenceEncoder(fast).encode(batch)
    assert [part.tolist() for part in encoder.encode_unchecked(batch)] == [part.tolist() for part in expected]


def test_the_corpus_records_what_stands_around_documents(tmp_path, fast):
    build(fast, LEADS, tmp_path / "c")
    assert read_corpus_meta(tmp_path / "c")["frame"] == {"before": [], "after": []}


def test_unused_pieces_of_sentencepiece_are_left_to_it(tmp_path):
    tokenizer = train_tokenizer(TEXTS, tmp_path / "t.model", TokenizerConfig(vocab_size=400, kind="bpe"))
    model, piece = tokenizer.model, "▁the".encode()
    at = model.index(b"\x0a" + bytes([len(piece)]) + piece + b"\x15")  # the piece, and then its score
    size = model[at - 1]
    unused = model[: at - 1] + bytes([size + 2]) + model[at : at + size] + b"\x18\x05" + model[at + size :]
    (tmp_path / "u.model").write_bytes(unused)
    other = load_tokenizer(tmp_path / "u.model")
    assert other.normal_spellings == ("▁the",)
    encoder, _ = choose_encoder(other, TEXTS)
    assert isinstance(encoder, GigatokenEncoder)
    texts = ["the water in the", "xthe", "no"]
    expected = ReferenceEncoder(other).encode(texts)
    assert expected[1].tolist() != ReferenceEncoder(tokenizer).encode(texts)[1].tolist()
    assert [part.tolist() for part in encoder.encode_unchecked(texts)] == [part.tolist() for part in expected]
