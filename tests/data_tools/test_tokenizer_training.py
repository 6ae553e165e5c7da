import json
import os
import random
import re
import subprocess
import sys
import time

import pytest

from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import sha256_file
from megatron_kis.data_tools.readers.documents import iter_documents
from megatron_kis.data_tools.tokenizers import training as tokenizer_training
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from megatron_kis.data_tools.tokenizers.training import (
    CHARACTER_COVERAGE,
    MODEL_KINDS,
    Sample,
    TokenizerConfig,
    train_tokenizer,
)

from .conftest import LEADS

NAMES = {"unigram": "t.model", "bpe": "t.model", "byte-bpe": "t.json"}
CHINESE = "山上的雪很白，河里的水很清。我们在城里住了三年，每天早上都去市场买菜。"
RARE = "".join(chr(0x4E00 + 7 * index) for index in range(400))
WORDS = [CHINESE[start : start + 2] for start in range(0, len(CHINESE), 2)]
CHINESE_LINES = ["".join(random.Random(line).choices(WORDS, k=15)) for line in range(800)] + [
    RARE[start : start + 40] for start in range(0, 400, 40)
]


def leads():
    return [document.text for document in iter_documents([LEADS])]


ALONE = """
import os, sys
os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
from pathlib import Path
from megatron_kis.data_tools.readers.documents import iter_documents
from megatron_kis.data_tools.tokenizers.training import TokenizerConfig, train_tokenizer
texts = (document.text for document in iter_documents([Path(sys.argv[1])]))
train_tokenizer(texts, Path(sys.argv[2]), TokenizerConfig(vocab_size=600, kind=sys.argv[3]))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot pin a process to a core")
@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_a_model_has_the_same_bytes_on_one_core_and_on_all(tmp_path, kind):
    here, alone = tmp_path / NAMES[kind], tmp_path / "alone" / NAMES[kind]
    alone.parent.mkdir()
    train_tokenizer(leads(), here, TokenizerConfig(vocab_size=600, kind=kind))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", ALONE, LEADS, alone, kind], check=True, env=environment)
    assert sha256_file(here) == sha256_file(alone)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_vocabulary_too_small_for_the_characters_names_two_ways_out_that_work(tmp_path, kind):
    def made(**how):
        config = TokenizerConfig(kind=kind, option="--{}".format, **{"vocab_size": 600, **how})
        return train_tokenizer(CHINESE_LINES, tmp_path / "t.model", config)

    with pytest.raises(InputError) as error:
        made()
    found = re.fullmatch(
        r"--vocab_size: no tokenizer of 600 pieces: characters and bytes need (\d+) with a character coverage of"
        r" 0\.9995; at least (\d+), or --character_coverage (0\.\d+) \(the other characters become bytes\)",
        str(error.value),
    )
    assert found, str(error.value)
    assert found[1] == found[2]
    assert made(vocab_size=int(found[2])).vocab_size == int(found[2])
    fewer = made(character_coverage=float(found[3]))
    assert fewer.vocab_size == 600
    assert fewer.decode(fewer.encode(RARE)) == RARE
    assert json.loads((tmp_path / "t.model.meta.json").read_text())["character_coverage"] == float(found[3])


def test_no_coverage_is_named_where_none_that_is_allowed_would_do(tmp_path):
    with pytest.raises(InputError, match=r"; at least \d+$"):
        train_tokenizer([RARE] * 9, tmp_path / "t.model", TokenizerConfig(vocab_size=400))


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_a_vocabulary_too_large_for_the_text_names_the_largest_that_works(tmp_path, kind):
    path = tmp_path / NAMES[kind]
    for vocab_size in (9_000, 900_000):
        with pytest.raises(InputError) as error:
            train_tokenizer(leads(), path, TokenizerConfig(vocab_size=vocab_size, kind=kind))
        found = re.fullmatch(
            rf"vocab_size: no tokenizer of {vocab_size} pieces: the text gives (\d+); at most \1", str(error.value)
        )
        assert found, str(error.value)
        config = TokenizerConfig(vocab_size=int(found[1]), kind=kind)
        assert train_tokenizer(leads(), path, config).vocab_size == config.vocab_size


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_text_of_one_character_is_too_little(tmp_path, kind):
    with pytest.raises(InputError, match=r"the text gives \d+; (train it on more text: at least 300 are|at most)"):
        train_tokenizer(["a" * 300_000, "", "\n\n"], tmp_path / NAMES[kind], TokenizerConfig(vocab_size=400, kind=kind))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ({"vocab_size": 100}, "vocab_size: is 100; from 300 to 1000000"),
        ({"vocab_size": 10**20}, "vocab_size: is 100000000000000000000; from 300 to 1000000"),
        ({"character_coverage": 0.9}, "character_coverage: is 0.9; from 0.98 to 1"),
        ({"character_coverage": float("nan")}, "character_coverage: is nan; from 0.98 to 1"),
        ({"kind": "word"}, "model: is 'word'; valid: unigram, bpe, byte-bpe"),
        ({"kind": "byte-bpe"}, "t.model: is not a name of a byte-bpe model"),
    ],
)
def test_wrong_values_are_refused_before_any_text_is_read(tmp_path, how, problem):
    with pytest.raises(InputError) as error:
        train_tokenizer(iter(lambda: 1 / 0, 1), tmp_path / "t.model", TokenizerConfig(**{"vocab_size": 400, **how}))
    assert problem in str(error.value)


@pytest.mark.parametrize("name", ["t.json", "t.tiktoken"])
def test_a_sentencepiece_model_has_no_name_of_another_kind(tmp_path, name):
    with pytest.raises(InputError, match="is not a name of a unigram model"):
        train_tokenizer(leads(), tmp_path / name, TokenizerConfig(vocab_size=400))


def test_a_tokenizer_config_that_is_there_already_does_not_name_the_end_of_documents(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "a"}')
    trained = train_tokenizer(leads(), tmp_path / "tokenizer.json", TokenizerConfig(vocab_size=400, kind="byte-bpe"))
    assert trained.piece(trained.eod_id) == "<|endoftext|>"
    assert load_tokenizer(tmp_path / "tokenizer.json").fingerprint == trained.fingerprint


def test_lines_with_sentencepieces_own_mark_are_not_lost(tmp_path):
    texts = [f"\u2585 {text}" for text in leads()]
    assert train_tokenizer(texts, tmp_path / "t.model", TokenizerConfig(vocab_size=400)).vocab_size == 400


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("text", ["x" * 20_000_000, "some words " * 2_000_000, "北京" * 5_000_000])
def test_a_text_without_line_breaks_is_cut_in_a_time_that_grows_with_its_length(text, whole):
    start = time.process_time()
    pieces = list(tokenizer_training._pieces(text, whole))
    assert time.process_time() - start < 5  # copying the rest at each cut took a minute
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 4_000


def test_a_sample_is_even_in_order_and_within_its_limit():
    pieces = [f"{number:05d}" * 20 for number in range(50_000)]
    samples = []
    for seed in (0, 0, 1):
        sample = Sample(limit=1_000_000)
        sample.draw(pieces, seed)
        samples.append(sample.pieces)
        assert 700_000 < sample.kept == sum(map(len, sample.pieces)) <= 1_000_000
        assert sample.read == 5_000_000
        assert sample.pieces == sorted(sample.pieces)
    assert samples[0] == samples[1] != samples[2]
    tenths = [sum(int(piece[:5]) // 5_000 == tenth for piece in samples[0]) / len(samples[0]) for tenth in range(10)]
    assert all(0.07 < share < 0.13 for share in tenths)


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_of_much_text_a_sample_is_used_and_said_but_all_names(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(tokenizer_training, "_SAMPLE", 4_000)
    said = []
    texts = leads() * 3
    config = TokenizerConfig(vocab_size=320, kind=kind)
    name = "Quxqazington Wyzzflora"
    trained = train_tokenizer(texts, tmp_path / NAMES[kind], config, names=[name] * 2000, say=said.append)
    assert [line.partition(",")[0] for line in said] == ["training on an even sample"]
    meta = json.loads((tmp_path / f"{NAMES[kind]}.meta.json").read_text())
    assert meta["bytes_used"] <= 4_000 < meta["bytes_read"]
    assert len(trained.encode(name)) < len(name) / 2


def test_the_command_names_its_own_options(tmp_path, capsys):
    text = tmp_path / "zh.jsonl"
    lines = [{"text": line} for line in CHINESE_LINES]
    random.Random(0).shuffle(lines)
    text.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["data", "tokenizer", "--input", str(text), "--output", str(tmp_path / "t.model"), "--vocab-size", "600"]
    assert main(command) == 2
    found = re.search(r"kis: error: --vocab-size: .*, or (--character-coverage) (0\.\d+) ", capsys.readouterr().err)
    assert found
    assert main([*command, found[1], found[2]]) == 0
    assert main([*command, "--character-coverage", "2"]) == 2
    assert "--character-coverage: is 2.0; from 0.98 to 1" in capsys.readouterr().err


def test_the_command_makes_the_kind_of_model_that_the_name_says(tmp_path):
    for name, kind in (("t.json", "byte-bpe"), ("t.model", "unigram")):
        command = ["data", "tokenizer", "--input", str(LEADS), "--vocab-size", "400", "--output", str(tmp_path / name)]
        assert main(command) == 0
        assert json.loads((tmp_path / f"{name}.meta.json").read_text())["model"] == kind
    assert json.loads((tmp_path / "t.model.meta.json").read_text())["character_coverage"] == CHARACTER_COVERAGE


@pytest.mark.parametrize("kind", MODEL_KINDS)
@pytest.mark.parametrize("seed", [-1, 99999999999999999999])
def test_any_whole_number_is_a_seed(tmp_path, kind, seed):
    path = tmp_path / NAMES[kind]
    train_tokenizer(leads(), path, TokenizerConfig(vocab_size=600, kind=kind, seed=seed))
    assert json.loads((tmp_path / f"{NAMES[kind]}.meta.json").read_text())["seed"] == seed


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_half_a_character_in_a_name_is_refused_before_any_text_is_read(tmp_path, kind):
    texts, names = iter(lambda: 1 / 0, 1), ["Rom", "Paris \ud83d Tower"]
    with pytest.raises(InputError, match=r"'Paris \\ud83d Tower': a name holds half of a surrogate pair"):
        train_tokenizer(texts, tmp_path / NAMES[kind], TokenizerConfig(vocab_size=400, kind=kind), names=names)
    assert list(tmp_path.iterdir()) == []
