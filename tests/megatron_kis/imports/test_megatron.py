"""A checkpoint of Megatron-LM as the start of a run: saved by Megatron-Core, read without unpickling."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.distributed.checkpoint.filesystem import _StorageInfo

from megatron_kis.checkpoint.foreign import ForeignCheckpoint
from megatron_kis.checkpoint.pickles import read_pickle
from megatron_kis.checkpoint.shards import read_tensors
from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError
from megatron_kis.config.ladder import ModelShape
from megatron_kis.config.run import RunConfig
from megatron_kis.convert.architectures import read_shape
from megatron_kis.convert.from_megatron import import_megatron, shape_of
from megatron_kis.convert.llama import stored_names
from megatron_kis.convert.to_huggingface import export_huggingface
from megatron_kis.distributed.determinism import seed_device
from megatron_kis.distributed.device import open_device
from megatron_kis.distributed.groups import close_groups, open_groups
from megatron_kis.distributed.megatron_imports import quiet_megatron
from megatron_kis.evaluate.restore import open_checkpoint
from megatron_kis.model.build import ModelSpec, build_model
from tests.conftest import TINY_VOCABULARY
from tests.megatron_kis.imports.models import ROWS, our_logits, run_from
from tests.megatron_kis.ranks import finish
from tests.runs import NO_FACTS

with quiet_megatron():
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.transformer.enums import AttnBackend

MakeRun = Callable[..., RunConfig]

SHAPE = ModelShape(2, 32, 4, 2, 48, False, 700, 1e-3, head_width=12, qkv_bias=True, qk_norm=True)
ARGUMENTS: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "group_query_attention": True,
    "num_query_groups": 2,
    "kv_channels": 12,
    "ffn_hidden_size": 48,
    "untie_embeddings_and_output_weights": True,
    "rotary_base": 700,
    "norm_epsilon": 1e-3,
    "add_qkv_bias": True,
    "qk_layernorm": True,
    "swiglu": True,
    "normalization": "RMSNorm",
    "position_embedding_type": "rope",
    "add_bias_linear": False,
    "rotary_percent": 1.0,
    "num_experts": None,
    "max_position_embeddings": 64,
    "params_dtype": torch.bfloat16,
    "attention_backend": AttnBackend.auto,
    "save": Path("checkpoints"),
}
ROW = torch.from_numpy(np.random.default_rng(0).integers(0, TINY_VOCABULARY, (4, 40)))


def save(folder: Path, **metadata: Any) -> torch.Tensor:
    """Saves a checkpoint as Megatron-LM does, and returns its model's logits."""
    folder.mkdir()
    device = open_device("cpu")
    layout = open_groups(device)
    seed_device(device, 0, tensor_rank=0, pipeline_rank=0)
    try:
        model = build_model(ModelSpec(SHAPE, ROWS, 64, layout, device, implementation="local", init_std=0.2))
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.data.uniform_(-0.5, 0.5).add_(0.0 if name.endswith("bias") else 1.0)
        with torch.no_grad():
            logits: torch.Tensor = model.eval()(ROW, torch.arange(ROW.shape[1]).expand_as(ROW), None)
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        weights = model.sharded_state_dict(metadata={"dp_cp_group": group, **metadata})
        content = {"args": argparse.Namespace(**ARGUMENTS), "checkpoint_version": 3.0, "iteration": 7, "model": weights}
        with quiet_megatron():
            dist_checkpointing.save(content, str(folder))
    finally:
        close_groups()
    return logits


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A folder of checkpoints, and the logits of its newest."""
    root = tmp_path_factory.mktemp("megatron")
    (root / "latest_checkpointed_iteration.txt").write_text("7")
    return root, save(root / "iter_0000007")


def test_an_imported_checkpoint_has_its_own_logits(
    saved: tuple[Path, torch.Tensor], tiny_run: MakeRun, tiny_data: Path, tmp_path: Path, capsys: Any
) -> None:
    root, logits = saved
    output = tmp_path / "start"
    tokenizer = tiny_data / "tokenizer.model"
    assert main(["import", "megatron", str(root), "--output", str(output), "--tokenizer", str(tokenizer)]) == 0
    section = yaml.safe_load(capsys.readouterr().out)["model"]
    assert {name: section[name] for name in ("head_width", "qkv_bias", "qk_norm", "tied_embeddings", "rope_base")} == {
        "head_width": 12,
        "qkv_bias": True,
        "qk_norm": True,
        "tied_embeddings": False,
        "rope_base": 700,
    }
    assert logits.std() > 0.3
    torch.testing.assert_close(our_logits(run_from(output, tiny_run), ROW), logits, rtol=0, atol=1e-4)
    assert json.loads((output / "start.json").read_text())["max_position_embeddings"] == 64
    transformers = pytest.importorskip("transformers")
    exported = export_huggingface(output, tmp_path / "hf")  # biases and norms: a Qwen3 with biases
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(exported).eval()(ROW).logits
    torch.testing.assert_close(theirs, logits, rtol=0, atol=1e-4)
    alone = import_megatron(root / "iter_0000007", tmp_path / "alone")
    assert alone.content["tokenizer"] is None
    weights = [read_tensors(start / "weights", stored_names(SHAPE)) for start in (output, alone.folder)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
def test_layers_that_were_saved_one_by_one_are_stacked(saved: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    save(tmp_path / "apart", non_homogeneous_layers=True)
    apart, whole = (
        read_tensors(import_megatron(source, tmp_path / name).folder / "weights", stored_names(SHAPE))
        for name, source in (("one", tmp_path / "apart"), ("two", saved[0]))
    )
    assert all(torch.equal(apart[name], whole[name]) for name in whole)


def test_a_tokenizer_that_is_not_the_models_is_refused(
    saved: tuple[Path, torch.Tensor],
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ForeignCheckpoint, "tensors", None)  # refused before the weights are read
    words = ["import", "megatron", str(saved[0]), "--output", str(tmp_path / "start")]
    assert main([*words, "--tokenizer", str(tmp_path / "absent.json")]) == 2
    assert "absent.json" in capsys.readouterr().err
    assert main([*words, "--tokenizer", str(tiny_data / "tokenizer.model"), "--eod", "x"]) == 2
    assert "--eod: cannot be chosen" in capsys.readouterr().err
    assert main([*words, "--eod", "x"]) == 2
    assert "--eod: names a token, and there is no tokenizer" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_cannot_be_exported_is_refused_before_the_weights_are_read(
    saved: tuple[Path, torch.Tensor], tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise InputError("no counterpart")

    start = import_megatron(saved[0], tmp_path / "start", tokenizer=tiny_data / "tokenizer.model")
    monkeypatch.setattr("megatron_kis.convert.to_huggingface.write_tokenizer", refuse)
    monkeypatch.setattr("megatron_kis.checkpoint.shards.read_tensors", None)
    with pytest.raises(InputError, match="no counterpart"):
        export_huggingface(start.folder, tmp_path / "hf")


def changed(saved: tuple[Path, torch.Tensor], folder: Path) -> Path:
    return Path(shutil.copytree(saved[0] / "iter_0000007", folder))


def test_without_arguments_the_shape_is_that_of_a_file(saved: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    model = tmp_path / "run.yaml"
    content = {**SHAPE.as_dict(), "rope_base": 10_000}
    model.write_text(yaml.safe_dump({"name": "mine", "model": content}))
    with pytest.raises(InputError, match=r"run\.yaml: model\.rope_base: is 10000, .* arguments say 700"):
        import_megatron(saved[0], tmp_path / "start", model=model)
    folder = changed(saved, tmp_path / "bare")
    torch.save({"iteration": 7}, folder / "common.pt")
    with pytest.raises(InputError, match=r"no arguments .*--model FILE"):
        import_megatron(folder, tmp_path / "start")
    assert import_megatron(folder, tmp_path / "start", model=model).content["model"]["rope_base"] == 10_000
    model.write_text(yaml.safe_dump({**content, "ffn_width": 64}))
    with pytest.raises(InputError, match=r"fc2\.weight is \(2, 32, 48\), the model's shape needs \(2, 32, 64\)"):
        import_megatron(folder, tmp_path / "other", model=model)
    model.write_text(yaml.safe_dump({**content, "tied_embeddings": True}))
    with pytest.raises(InputError, match=r"has output_layer\.weight, which this model does not have"):
        import_megatron(folder, tmp_path / "other", model=model)
    assert not (tmp_path / "other").exists()


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_nothing_in_a_checkpoint_is_executed(saved: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    folder, trap = changed(saved, tmp_path / "planted"), tmp_path / "executed"
    arguments = argparse.Namespace(**ARGUMENTS, planted=Planted(trap))
    torch.save({"args": arguments}, folder / "common.pt")
    import_megatron(folder, tmp_path / "start")
    torch.save(Planted(trap), folder / "common.pt")
    with zipfile.ZipFile(folder / "common.pt") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        (folder / ".metadata").write_bytes(archive.read(name))
    with pytest.raises(InputError, match=r"\.metadata: not a list of parts"):
        import_megatron(folder, tmp_path / "other")
    assert not trap.exists()
    found = read_pickle((folder / "common.pt").read_bytes(), where="common.pt")
    assert (found.name, found.values) == (f"{os.mkdir.__module__}.mkdir", (str(trap),))


def test_what_is_no_such_checkpoint_is_refused(saved: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        import_megatron(tmp_path / "absent", tmp_path / "start")
    (tmp_path / "old" / "mp_rank_00").mkdir(parents=True)
    with pytest.raises(InputError, match=r"the older format.*--ckpt-format torch_dist"):
        import_megatron(tmp_path / "old", tmp_path / "start")
    folder = changed(saved, tmp_path / "other")
    (folder / "metadata.json").write_text('{"sharded_backend": "zarr", "sharded_backend_version": 1}')
    with pytest.raises(InputError, match=r"metadata\.json: the format is zarr"):
        import_megatron(folder, tmp_path / "start")
    for said, problem in (("[" * 100_000, "nested"), ("{", "not valid JSON"), ("[1]", "does not name the checkpoint")):
        (folder / "metadata.json").write_text(said)
        with pytest.raises(InputError, match=rf"metadata\.json.*{problem}"):
            import_megatron(folder, tmp_path / "start")
    for said in ("12", "9" * 5000, "x" * 300, "../other", ".."):
        (tmp_path / "latest_checkpointed_iteration.txt").write_text(said)
        with pytest.raises(InputError, match=f"names '{said[:40]}', which does not exist"):
            import_megatron(tmp_path, tmp_path / "start")
    folder = changed(saved, tmp_path / "cut")
    for part in folder.glob("*.distcp"):
        part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    with pytest.raises(InputError, match="cut: its tensors cannot be read"):
        import_megatron(folder, tmp_path / "start")
    (folder / ".metadata").write_bytes(b"no pickle")
    with pytest.raises(InputError, match=r"\.metadata: cannot be read"):
        import_megatron(folder, tmp_path / "start")
    assert not (tmp_path / "start").exists()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"swiglu": False}, "the argument swiglu is False"),
        ({"normalization": "LayerNorm"}, "the argument normalization is LayerNorm"),
        ({"rotary_interleaved": True}, "the argument rotary_interleaved is True"),
        ({"num_experts": 8}, "the argument num_experts is 8"),
        ({"add_bias_linear": True}, "the argument add_bias_linear is True"),
        ({"window_size": (128, 0)}, "the argument window_size is set"),
        ({"apply_layernorm_1p": True}, "the argument apply_layernorm_1p is True"),
        ({"layernorm_zero_centered_gamma": True}, "the argument layernorm_zero_centered_gamma is True"),
        ({"heterogeneous_layers_config_encoded_json": "{}"}, "the argument heterogeneous_layers_config_encoded_json"),
        ({"num_layers": None}, "do not give the model's shape"),
        ({"num_attention_heads": 3}, r"model\.query_groups 3 heads cannot share 2"),
    ],
    ids=str,
)
def test_arguments_of_another_model_are_refused_by_name(
    saved: tuple[Path, torch.Tensor], tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    folder = changed(saved, tmp_path / "other")
    torch.save({"args": argparse.Namespace(**ARGUMENTS | change)}, folder / "common.pt")
    with pytest.raises(InputError, match=complaint):
        import_megatron(folder, tmp_path / "start")


@pytest.mark.parametrize(("offset", "length"), [(0, 2**60), (2**70, 8), (2**20, 8)])
def test_settings_beyond_the_end_of_their_file_are_refused(
    saved: tuple[Path, torch.Tensor], tmp_path: Path, offset: int, length: int
) -> None:
    folder = changed(saved, tmp_path / "other")
    (folder / "common.pt").unlink(missing_ok=True)
    (folder / "__0_9.distcp").write_bytes(b"N.")
    checkpoint = ForeignCheckpoint(folder)
    checkpoint._objects["common_state/shard_0_1"] = _StorageInfo("__0_9.distcp", offset, length)
    with pytest.raises(InputError, match=r"__0_9\.distcp: is too short \(2 bytes\); it is damaged"):
        checkpoint.settings()


def test_an_argument_whose_name_is_no_text_is_left_out(saved: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    folder = changed(saved, tmp_path / "other")
    endless = b"cos\nname\nK\x01" + b"2\x86" * 60 + b"\x85R"  # as text it would have 2^60 numbers
    (folder / "common.pt").write_bytes(
        b"\x80\x04}X\x04\x00\x00\x00args}(X\x01\x00\x00\x00aK\x01" + endless + b"K\x02us."
    )
    assert ForeignCheckpoint(folder).settings() == {"a": 1}


def test_without_groups_each_head_has_its_own_keys() -> None:
    alone = ARGUMENTS | {"group_query_attention": False, "num_query_groups": 1, "kv_channels": None}
    shape = shape_of(alone, "checkpoint")
    assert (shape.query_groups, shape.head_width, shape.rope_scaling) == (4, None, None)
    assert (
        shape_of(ARGUMENTS | {"use_rope_scaling": True, "rope_scaling_factor": 32}, "checkpoint").rope_scaling == 32.0
    )


@pytest.mark.slow
@pytest.mark.distributed
def test_a_checkpoint_of_two_tensor_ranks_is_read_whole(tiny_run: MakeRun, tmp_path: Path) -> None:
    changes = {"training": {"token_budget": 2 * 8 * 64}, "infusion": NO_FACTS, "parallel": {"tensor": 2}}
    config = tiny_run(model={"layers": 2, "width": 32, "heads": 4, "qk_norm": True}, **changes)
    finish(config, 2)
    model = tmp_path / "model.yaml"
    model.write_text(yaml.safe_dump(config.model.model_dump(mode="json", exclude_none=True)))
    folder = open_checkpoint(config.output, None).folder
    start = import_megatron(folder, tmp_path / "start", model=model)
    names = stored_names(config.model.shape())
    ours, theirs = read_tensors(folder, names), read_tensors(start.folder / "weights", names)
    assert all(torch.equal(ours[name], theirs[name]) for name in names)


HOSTILE = {
    "a key of a million tuples": b"\x80\x04}(K\x01" + b"\x85" * 1_000_000 + b"K\x01u.",
    "a key of a shared tuple": b"\x80\x04}(K\x01" + b"2\x86" * 60 + b"K\x01u.",
    "a set of a shared tuple": b"\x80\x04(K\x01" + b"2\x86" * 60 + b"\x91.",
    "a call of a list": b"\x80\x04]" + b"2\x862\x86" * 40 + b")R.",
    "a call with a list": b"\x80\x04cos\nmkdir\n](K\x01eR.",
    "a number of 8,000 bits": b"\x80\x04\x8a\xff" + b"\x7f" * 255 + b".",
    "a file of 2^60 bytes": b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b"x.",
    "no end": b"\x80\x04]",
    "nothing": b"",
    "another end": b"\x80\x04.",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_pickle_that_is_made_to_harm_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(InputError, match=r"^common\.pt: cannot be read \(") as caught:
        read_pickle(data, where="common.pt")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_compressed_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "common.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x04" + b"N0" * 1_000_000 + b"N.")
    with pytest.raises(InputError, match=r"data\.pkl is compressed"):
        read_pickle(path.read_bytes(), where=str(path))


@pytest.mark.parametrize("base", [float("inf"), float("nan")])
def test_wavelengths_without_end_are_refused(base: float) -> None:
    with pytest.raises(InputError, match=r"^here: its arguments do not give the model's shape"):
        shape_of({**ARGUMENTS, "rotary_base": base}, "here")
    llama = {"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    with pytest.raises(InputError, match=r"config\.json: not the configuration of a Llama"):
        read_shape({**llama, "num_attention_heads": 2, "rope_theta": base}, Path("config.json"))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_of_many_frames_is_read_as_it_was_written(protocol: int) -> None:
    content = {f"layer {number}": [number, (number, -1.5, None, True)] for number in range(20_000)}
    assert read_pickle(pickle.dumps(content, protocol), where="common.pt") == content
