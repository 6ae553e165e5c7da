"""A model of transformers as the start of a run: the same logits, the same tensors back, and training from its loss."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_kis.checkpoint.start import Start, check_start_tokenizer
from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError
from megatron_kis.config.ladder import ModelShape
from megatron_kis.config.run import RunConfig
from megatron_kis.convert.from_huggingface import import_huggingface
from megatron_kis.convert.llama import join_qkv, split_qkv
from megatron_kis.convert.to_huggingface import export_huggingface
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from megatron_kis.training.inputs import open_inputs
from megatron_kis.training.trainer import train
from tests.conftest import TINY_VOCABULARY
from tests.megatron_kis.imports.models import ROWS, make_model, our_logits, run_from
from tests.megatron_kis.ranks import finish
from tests.run_files import losses
from tests.runs import NO_FACTS

transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

MakeRun = Callable[..., RunConfig]
TIED = {"num_key_value_heads": 2, "rms_norm_eps": 1e-3, "rope_theta": 700.0, "tie_word_embeddings": True}
UNTIED = {"num_key_value_heads": 4, "tie_word_embeddings": False}
LLAMA_31 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
OTHERS: dict[str, dict[str, Any]] = {
    "Llama 3.1": {
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_theta": 5e5, "original_max_position_embeddings": 8192, **LLAMA_31},
    },
    "Qwen2": {"kind": "Qwen2", "num_key_value_heads": 2, "rms_norm_eps": 1e-3},
    "Qwen2 with an unused window, tied": {
        "kind": "Qwen2",
        "num_key_value_heads": 4,
        "sliding_window": 16,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
    },
    "Qwen3 with heads of its own width": {"kind": "Qwen3", "num_key_value_heads": 2, "head_dim": 12},
    "Qwen3 of one group, tied": {
        "kind": "Qwen3",
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    },
    "Mistral without a window": {"kind": "Mistral", "num_key_value_heads": 2, "sliding_window": None},
    "Mistral with a window of all positions": {"kind": "Mistral", "num_key_value_heads": 2, "sliding_window": 64},
    "Mistral with heads of its own width": {
        "kind": "Mistral",
        "num_key_value_heads": 2,
        "sliding_window": None,
        "head_dim": 12,
    },
    "Mistral whose width its heads do not divide": {
        "kind": "Mistral",
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "sliding_window": None,
        "head_dim": 12,
    },
}
"""Other models: the same layers under another name, stretched wavelengths, biases or norms of queries and keys."""


def their_logits(folder: Path, rows: torch.Tensor) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(rows).logits
    return logits


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("changes", [TIED, UNTIED], ids=["tied, grouped, own epsilon and wavelengths", "untied"])
def test_an_imported_model_has_the_logits_of_transformers(
    tiny_run: MakeRun, tiny_data: Path, tmp_path: Path, changes: dict[str, Any], dtype: Any
) -> None:
    folder = make_model(tmp_path / "hf", tiny_data, dtype=dtype, **changes)
    start = import_huggingface(folder, tmp_path / "start")
    rows = torch.from_numpy(np.random.default_rng(0).integers(0, TINY_VOCABULARY, (4, 40)))
    expected = their_logits(folder, rows)
    assert expected.std() > 0.3
    found = our_logits(run_from(start.folder, tiny_run), rows)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_a_model_of_another_architecture_has_the_logits_of_transformers_and_comes_back(
    tiny_run: MakeRun, tiny_data: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = make_model(tmp_path / "hf", tiny_data, **changes)
    start = import_huggingface(folder, tmp_path / "start")
    rows = torch.from_numpy(np.random.default_rng(0).integers(0, TINY_VOCABULARY, (4, 40)))
    expected = their_logits(folder, rows)
    assert expected.std() > 0.3
    config = run_from(start.folder, tiny_run)
    torch.testing.assert_close(our_logits(config, rows), expected, rtol=0, atol=1e-4)
    exported = export_huggingface(start.folder, tmp_path / "exported")
    assert torch.equal(their_logits(exported, rows), expected)
    assert json.loads((exported / "config.json").read_text())["max_position_embeddings"] == 64
    there, here = (safetensors.load_file(place / "model.safetensors") for place in (folder, exported))
    assert sorted(there) == sorted(here)
    for name, tensor in there.items():
        assert torch.equal(here[name], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize("changes", [TIED, UNTIED, OTHERS["Qwen3 with heads of its own width"]], ids=str)
def test_export_gives_back_every_tensor_bit_for_bit(
    tiny_run: MakeRun, tiny_data: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = make_model(tmp_path / "hf", tiny_data, **changes)
    start = import_huggingface(folder, tmp_path / "start")
    optimizer = {"learning_rate": 1e-45, "weight_decay": 0.0}  # a step that rounds to nothing
    still: dict[str, Any] = {"training": {"token_budget": 2 * 8 * 64, "optimizer": optimizer}, "infusion": NO_FACTS}
    run = train(run_from(start.folder, tiny_run, **still))
    back = export_huggingface(run, tmp_path / "back")
    there, here = (safetensors.load_file(place / "model.safetensors") for place in (folder, back))
    assert sorted(there) == sorted(here)
    for name, tensor in there.items():
        assert torch.equal(here[name], tensor), name
    theirs, ours = (json.loads((place / "config.json").read_text()) for place in (folder, back))
    same = ("hidden_size", "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "vocab_size")
    assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("layout", "changes"),
    [
        ({"tensor": 2}, TIED),
        ({"pipeline": 2}, TIED),
        ({"tensor": 2}, OTHERS["Qwen2"]),
        ({"tensor": 2}, OTHERS["Qwen3 with heads of its own width"]),
    ],
    ids=["tensor", "pipeline", "tensor, Qwen2", "tensor, Qwen3"],
)
def test_training_starts_at_the_loss_of_the_model_under_every_layout(
    tiny_run: MakeRun, tiny_data: Path, tmp_path: Path, layout: dict[str, int], changes: dict[str, Any]
) -> None:
    folder = make_model(tmp_path / "hf", tiny_data, **changes)
    start = import_huggingface(folder, tmp_path / "start")
    settings = {"logging": {"every": 1}, "training": {"token_budget": 6 * 8 * 64}, "infusion": NO_FACTS}
    alone = run_from(start.folder, tiny_run, name="alone", **settings)
    two = run_from(start.folder, tiny_run, name="two", parallel=layout, **settings)
    fresh = train(tiny_run(name="fresh", model={**alone.model.model_dump(), "init_from": None}, **settings))
    train(alone)
    finish(two, 2)
    assert list(losses(two.output).values()) == pytest.approx(list(losses(alone.output).values()), abs=1e-5)
    samples = [open_inputs(alone).dataset[number] for number in range(8)]
    rows = torch.from_numpy(np.stack([sample["tokens"] for sample in samples]).astype(np.int64))
    labels = torch.from_numpy(np.stack([sample["labels"] for sample in samples]).astype(np.int64))
    counted = torch.from_numpy(np.stack([sample["loss_mask"] for sample in samples])).flatten() > 0
    logits = their_logits(folder, rows).flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits[counted], labels.flatten()[counted])
    assert losses(alone.output)[1] == pytest.approx(float(expected), abs=1e-4)
    assert abs(losses(fresh)[1] - float(expected)) > 0.01


@pytest.mark.slow
def test_a_run_goes_on_from_its_own_checkpoint_and_not_from_another_start(
    tiny_run: MakeRun, tiny_data: Path, tmp_path: Path
) -> None:
    first = import_huggingface(make_model(tmp_path / "hf", tiny_data, **TIED), tmp_path / "start")
    config = run_from(first.folder, tiny_run)
    train(config)
    record = json.loads((config.output / "run.json").read_text())
    assert record["fingerprints"]["start"] == first.fingerprint
    moved = tmp_path / "moved"
    shutil.move(first.folder, moved)
    done = (config.output / "DONE").stat().st_mtime_ns
    train(run_from(moved, tiny_run))  # the same start at another place: nothing to do
    assert (config.output / "DONE").stat().st_mtime_ns == done
    other = make_model(tmp_path / "other", tiny_data, **TIED)
    weights = safetensors.load_file(other / "model.safetensors")
    safetensors.save_file({name: tensor * 1.5 for name, tensor in weights.items()}, other / "model.safetensors")
    second = import_huggingface(other, tmp_path / "second")
    with pytest.raises(InputError, match="another start"):
        train(run_from(second.folder, tiny_run))


@pytest.mark.slow
def test_rows_that_belong_to_no_piece_are_padded_or_dropped(tiny_data: Path, tmp_path: Path) -> None:
    for vocabulary, added, dropped in ((TINY_VOCABULARY, 112, 0), (640, 0, 128)):
        folder = make_model(tmp_path / f"hf{vocabulary}", tiny_data, vocabulary=vocabulary, **UNTIED)
        start = import_huggingface(folder, tmp_path / f"start{vocabulary}")
        found = {key: start.content[key] for key in ("vocabulary", "rows_added", "rows_dropped")}
        assert found == {"vocabulary": ROWS, "rows_added": added, "rows_dropped": dropped}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"attention_bias": True}, "attention_bias is not supported"),
        ({"sliding_window": 128}, "sliding_window is not supported"),
        ({"head_dim": 16}, r"self_attn\.o_proj\.weight is \(32, 32\), config\.json says \(32, 64\)"),
        ({"head_dim": 7}, r"model\.head_width is 7"),
        ({"vocab_size": 640}, r"embed_tokens\.weight is \(512, 32\), config\.json says \(640, 32\)"),
        ({"model_type": "olmo"}, "model_type 'olmo' is not supported: its norms"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_type 'llama3' is not supported"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type 'yarn' is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is not supported"),
        ({"num_hidden_layers": 3}, r"has no model\.layers\.2"),
        ({"num_hidden_layers": 1}, r"has model\.layers\.1.*, which this model does not have"),
        ({"intermediate_size": 64}, r"config\.json says \(64, 32\)"),
        ({"tie_word_embeddings": False}, r"has no lm_head\.weight"),
        ({"hidden_size": None}, "not the configuration of a Llama"),
    ],
    ids=str,
)
def test_what_is_not_a_plain_llama_is_refused_by_name_and_leaves_nothing(
    tiny_data: Path, tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    folder = make_model(tmp_path / "hf", tiny_data, **TIED)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=complaint):
        import_huggingface(folder, tmp_path / "start")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


@pytest.mark.parametrize(("eod", "said"), [("NOPE", "'NOPE' is not a token of"), ("", "is empty; name a token")])
def test_an_end_of_documents_that_is_no_token_is_refused_by_its_option(
    tiny_data: Path, tmp_path: Path, eod: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_model(tmp_path / "hf", tiny_data, **TIED)
    (folder / "model.safetensors").write_bytes(b"")  # refused before the weights are read
    assert main(["import", "hf", str(folder), "--output", str(tmp_path / "start"), "--eod", eod]) == 2
    line = capsys.readouterr().err
    assert f"--eod: {said}" in line
    assert "partial" not in line
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_pickled_weights_are_not_read(tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_model(tmp_path / "hf", tiny_data, **TIED)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert main(["import", "hf", str(folder), "--output", str(tmp_path / "start")]) == 2
    assert "only pickled weights" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_prints_the_model_section_that_a_run_needs(
    tiny_run: MakeRun, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    folder = make_model(tmp_path / "hf", tiny_data, **TIED)
    assert main(["import", "hf", str(folder), "--output", str(tmp_path / "start")]) == 0
    section = yaml.safe_load(capsys.readouterr().out)["model"]
    assert tiny_run(model=section).model.shape().norm_epsilon == 1e-3
    with pytest.raises(InputError, match=r"model\.width"):
        train(tiny_run(model={**section, "width": 64}))
    with open(tmp_path / "start" / "weights" / "__0_0.distcp", "r+b") as file:
        file.seek(-5000, 2)
        file.write(b"damage")
    with pytest.raises(InputError, match="has changed since it was written"):
        train(tiny_run(model=section))


def test_joining_queries_keys_and_values_undoes_taking_them_apart() -> None:
    shape = ModelShape(layers=1, width=8, heads=4, query_groups=2, ffn_width=8)
    joined = torch.arange(16 * 8.0).view(16, 8)
    assert torch.equal(join_qkv(*split_qkv(joined, shape), shape), joined)


@pytest.mark.slow
def test_sequences_longer_than_a_start_was_made_for_are_refused_and_its_limit_is_exported(
    tiny_run: MakeRun, tiny_data: Path, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "hf", tiny_data, **TIED)
    config = json.loads((folder / "config.json").read_text())
    limits = {"short": 32, "long": 128, "unsaid": None}
    for name, limit in limits.items():
        content = {key: value for key, value in config.items() if key != "max_position_embeddings"}
        content |= {} if limit is None else {"max_position_embeddings": limit}
        (folder / "config.json").write_text(json.dumps(content))
        start = import_huggingface(folder, tmp_path / name)
        assert start.content["max_position_embeddings"] == start.positions == limit
    with pytest.raises(InputError, match=r"training\.sequence_length: is 64, .*made for 32 positions .*use 32 or less"):
        train(run_from(tmp_path / "short", tiny_run))
    short: dict[str, Any] = {"training": {"token_budget": 2 * 8 * 64}, "infusion": NO_FACTS}
    for name, expected in (("long", 128), ("unsaid", 64)):
        run = train(run_from(tmp_path / name, tiny_run, name=name, **short))
        shutil.rmtree(tmp_path / name)  # the run says it itself
        back = export_huggingface(run, tmp_path / f"{name}-back", tokenizer=False)
        assert json.loads((back / "config.json").read_text())["max_position_embeddings"] == expected
    content = {**config, "max_position_embeddings": "many"}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="max_position_embeddings is 'many'"):
        import_huggingface(folder, tmp_path / "never")


@pytest.mark.slow
def test_a_key_twice_in_the_configuration_of_a_model_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "hf", tiny_data, **TIED)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("{", '{"rms_norm_eps": 0.5,', 1))
    with pytest.raises(InputError, match=r"config\.json:\d+: the key 'rms_norm_eps' is given twice"):
        import_huggingface(folder, tmp_path / "start")


def test_data_of_another_tokenizer_than_the_starts_are_refused(
    tiny_run: MakeRun, tiny_data: Path, tmp_path: Path
) -> None:
    start = import_huggingface(make_model(tmp_path / "hf", tiny_data, **TIED), tmp_path / "start")
    config = run_from(start.folder, tiny_run)
    open_inputs(config)  # of another library, with the same pieces
    path = start.folder / "tokenizer.json"
    tokenizer = load_tokenizer(path)
    check_start_tokenizer(start, tokenizer, path)
    content = json.loads(path.read_text())
    pieces = content["model"]["vocab"]
    pieces[300], pieces[301] = pieces[301], pieces[300]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"tokenizer\.model: is tokenizer \w{12}, that of the start \w{12}; make the"):
        open_inputs(config)
    with pytest.raises(InputError, match=r"other\.json: is tokenizer"):
        check_start_tokenizer(start, load_tokenizer(path), Path("other.json"))
    check_start_tokenizer(start, tokenizer, path)  # known by its fingerprint alone
    without = Start(start.folder, {**start.content, "tokenizer": None})
    check_start_tokenizer(without, load_tokenizer(path), path)


def test_a_start_whose_documents_end_with_another_token_has_another_tokenizer(
    tiny_run: MakeRun, tiny_data: Path, tmp_path: Path
) -> None:
    piece = load_tokenizer(tiny_data / "tokenizer.model").piece(300)
    start = import_huggingface(make_model(tmp_path / "hf", tiny_data, **TIED), tmp_path / "start", eod=piece)
    with pytest.raises(InputError, match=r"tokenizer\.model: is tokenizer \w{12}, that of the start \w{12}; make the"):
        open_inputs(run_from(start.folder, tiny_run))
