from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_kis.common.errors import InputError
from megatron_kis.config.ladder import ModelShape
from megatron_kis.config.run import RunConfig
from megatron_kis.convert.llama import split_qkv
from megatron_kis.convert.to_huggingface import _parts, export_huggingface
from megatron_kis.convert.tokenizer_json import write_tokenizer
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from megatron_kis.data_tools.tokenizers.training import TokenizerConfig, train_tokenizer
from megatron_kis.evaluate.restore import restored
from megatron_kis.probes.questions import read_questions
from megatron_kis.training.artifacts import open_run
from tests.conftest import TINY_VOCABULARY
from tests.megatron_kis.ranks import finish
from tests.runs import trained

transformers = pytest.importorskip("transformers")
pytest.importorskip("safetensors")

MakeRun = Callable[..., RunConfig]


def both_logits(run: Path, output: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the run and of its export on some of its statements, [rows, T, vocabulary]."""
    config = open_run(run).config
    questions = read_questions(config.data.questions, {"held_out": 1})
    length = min(len(question.options[0].tokens) for question in questions.questions)
    rows = torch.tensor([[1, *question.options[0].tokens[: length - 1]] for question in questions.questions])
    with restored(run, config, vocabulary=TINY_VOCABULARY, step=None) as (engine, _), torch.no_grad():
        engine.chunks[0].eval()
        ours = engine.chunks[0](rows, torch.arange(length).expand_as(rows), None)
    model = transformers.AutoModelForCausalLM.from_pretrained(output).eval()
    with torch.no_grad():
        return ours, model(rows).logits


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        {"layers": 2, "width": 32, "heads": 4, "query_groups": 2},
        {"layers": 1, "width": 24, "heads": 3, "tied_embeddings": False, "rope_base": 500},
    ],
    ids=["grouped queries", "untied, other wavelengths"],
)
def test_an_exported_model_has_the_logits_of_the_run(tiny_run: MakeRun, tmp_path: Path, shape: dict[str, Any]) -> None:
    run = trained(tiny_run(model=shape))
    ours, theirs = both_logits(run, export_huggingface(run, tmp_path / "hf"))
    assert ours.std() > 0.1
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)
    assert not list(tmp_path.glob(".hf*"))


@pytest.mark.slow
@pytest.mark.distributed
def test_a_model_of_two_tensor_ranks_is_exported_whole(tiny_run: MakeRun, tmp_path: Path) -> None:
    config = tiny_run(model={"layers": 2, "width": 32, "heads": 4, "query_groups": 2}, parallel={"tensor": 2})
    finish(config, 2)
    ours, theirs = both_logits(config.output, export_huggingface(config.output, tmp_path / "hf"))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_the_exported_tokenizer_and_its_record_are_the_runs(tiny_run: MakeRun, tmp_path: Path) -> None:
    run = trained(tiny_run())
    folder = export_huggingface(run, tmp_path / "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = load_tokenizer(open_run(run).config.data.tokenizer)
    for text in ("The  town, of Zürich\n", " ab\u2003c", "naïve — 東京 🜁", "1,234.5"):
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == ours.decode(ours.encode(text))
    assert theirs.bos_token_id == theirs.eos_token_id == ours.eod_id
    record = json.loads((folder / "export.json").read_text())
    assert (record["schema"], record["run"], record["step"]) == ("kis.export/1", "tiny", 20)


@pytest.mark.parametrize(("kind", "name"), [("bpe", "t.model"), ("byte-bpe", "tokenizer.json")])
def test_other_kinds_of_tokenizer_keep_their_ids(tmp_path: Path, tiny_sources: Any, kind: str, name: str) -> None:
    texts = [json.loads(line)["text"] for line in tiny_sources.text.read_text().splitlines()]
    ours = train_tokenizer(texts, tmp_path / name, TokenizerConfig(vocab_size=400, kind=kind))
    (tmp_path / "hf").mkdir()
    samples = [ours.encode(text) for text in [*texts[:200], "é 東京", "a  b"]]
    write_tokenizer(tmp_path / name, tmp_path / "hf", longest=64, samples=samples)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert [theirs.encode(text, add_special_tokens=False) for text in texts[200:300]] == ours.encode_batch(
        texts[200:300]
    )


def test_queries_keys_and_values_are_taken_apart_group_by_group() -> None:
    shape = ModelShape(layers=1, width=8, heads=4, query_groups=2, ffn_width=8)
    rows = torch.arange(2 * (2 + 2) * 2.0)[:, None].expand(-1, 8)  # each row its own number
    query, key, value = split_qkv(rows.contiguous(), shape)
    assert query[:, 0].tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert key[:, 0].tolist() == [4, 5, 12, 13]
    assert value[:, 0].tolist() == [6, 7, 14, 15]


def test_large_models_are_cut_into_numbered_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_kis.convert.to_huggingface._PART_BYTES", 100)
    parts = _parts({name: torch.zeros(15) for name in "abc"})
    assert {file: list(part) for file, part in parts.items()} == {
        f"model-0000{number}-of-00003.safetensors": [name] for number, name in enumerate("abc", start=1)
    }


@pytest.mark.slow
def test_wrong_input_is_refused_and_leaves_nothing(tiny_run: MakeRun, tmp_path: Path) -> None:
    run = trained(tiny_run())
    with pytest.raises(InputError, match="no complete checkpoint of step 7"):
        export_huggingface(run, tmp_path / "hf", step=7)
    with pytest.raises(InputError, match="no such folder; give the folder of a run"):
        export_huggingface(tmp_path / "absent", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine").touch()
    with pytest.raises(InputError, match="not empty"):
        export_huggingface(run, tmp_path / "hf")
