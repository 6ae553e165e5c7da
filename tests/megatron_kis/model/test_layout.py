"""Layouts are refused by arithmetic alone, with the key and the numbers, before anything is started."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError
from megatron_kis.config.layout import check_layout, replicas_of
from megatron_kis.config.run import ModelConfig, ParallelConfig, TrainingConfig
from tests.sources import Sources
from tests.studies import write_study

SHAPE = {"layers": 6, "width": 48, "heads": 6, "query_groups": 3, "ffn_width": 96}
BATCH = {"token_budget": 4096, "sequence_length": 64, "global_batch_size": 12}

REFUSED: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = [
    ({"heads": 4, "query_groups": 1}, {"tensor": 2}, {}, "parallel.tensor: 1 query_groups cannot be split 2 ways"),
    ({"heads": 6, "query_groups": 6}, {"tensor": 4}, {}, "parallel.tensor: 6 heads cannot be split 4 ways"),
    ({"ffn_width": 100}, {"tensor": 3}, {}, "parallel.tensor: 100 ffn_width cannot be split 3 ways"),
    ({}, {"tensor": 3}, {}, "parallel.tensor: 512 rows of the vocabulary cannot be split 3 ways"),
    ({}, {"pipeline": 4}, {}, "parallel.pipeline: 6 layers cannot be split into 4 stages"),
    ({}, {"pipeline": 2, "virtual": 2}, {}, "parallel.virtual: a stage's 3 layers cannot be split into 2 chunks"),
    ({}, {"context": 3}, {}, "training.sequence_length: 64 tokens cannot be dealt in 6 pieces to 3 ranks"),
    (
        {"transformer_impl": "local"},
        {"context": 2},
        {},
        "parallel.context: Megatron-Core's own attention needs whole sequences",
    ),
    (
        {"query_groups": 6},
        {"tensor": 2, "sequence": True},
        {"sequence_length": 63},
        "training.sequence_length: 63 tokens cannot be split over 2 tensor ranks",
    ),
    ({}, {"replicas": 5}, {}, "training.global_batch_size: 12 sequences cannot be shared by 5 replicas"),
    (
        {},
        {"replicas": 3},
        {"micro_batch_size": 3},
        "training.micro_batch_size: 3 does not divide a replica's 4 sequences",
    ),
    (
        {},
        {"pipeline": 2, "virtual": 3},
        {},
        "training.micro_batch_size: 1 micro-batches per step cannot take turns on 2 interleaved stages",
    ),
    (
        {},
        {"pipeline": 2, "virtual": 3},
        {"micro_batch_size": 4},
        "training.micro_batch_size: 3 micro-batches per step cannot take turns on 2 interleaved stages",
    ),
    (
        {"heads": 6, "query_groups": 6},
        {"tensor": 2},
        {"precision": "fp8"},
        "training.precision: fp8 needs multiples of 16; on a rank 24 is model.heads x their width",
    ),
    (
        {"ffn_width": 100},
        {},
        {"precision": "fp8"},
        "training.precision: fp8 needs multiples of 16; on a rank 100 is model.ffn_width",
    ),
    (
        {"width": 96},
        {},
        {"precision": "fp8", "sequence_length": 60, "micro_batch_size": 1},
        "training.precision: fp8 needs multiples of 16; on a rank 60 is the number of tokens of a micro-batch",
    ),
    (
        {"width": 96, "heads": 2, "query_groups": 2},
        {"tensor": 2, "sequence": True},
        {"precision": "fp8", "sequence_length": 48, "micro_batch_size": 1},
        "training.precision: fp8 needs multiples of 16; on a rank 24 is the number of tokens of a micro-batch",
    ),
]


@pytest.mark.parametrize(("model", "parallel", "training", "problem"), REFUSED)
def test_what_cannot_be_split_or_shared_is_refused_with_key_and_numbers(
    model: dict[str, Any], parallel: dict[str, Any], training: dict[str, Any], problem: str
) -> None:
    sections = (
        ModelConfig.model_validate(SHAPE | model),
        ParallelConfig(**parallel),
        TrainingConfig.model_validate(BATCH | training),
    )
    with pytest.raises(InputError) as refused:
        check_layout(*sections, vocabulary=400)
    assert str(refused.value).startswith(problem)


def test_what_can_be_split_and_shared_is_accepted() -> None:
    model, training = ModelConfig.model_validate(SHAPE), TrainingConfig.model_validate(BATCH)
    check_layout(model, ParallelConfig(tensor=3), training)  # the vocabulary is not known yet
    check_layout(model, ParallelConfig(tensor=3), training, vocabulary=300)  # 384 rows
    turns = TrainingConfig.model_validate({**BATCH, "micro_batch_size": 1})
    check_layout(model, ParallelConfig(pipeline=2, virtual=3, context=2, replicas=6), turns, vocabulary=400)
    check_layout(model, ParallelConfig(replicas=5), training, replicas=4)
    assert replicas_of(12, tensor=2, pipeline=3) == 2
    with pytest.raises(InputError, match="5 processes cannot hold tensor=2 x pipeline=1; start a multiple of 2"):
        replicas_of(5, tensor=2)


def test_the_check_needs_neither_pytorch_nor_megatron() -> None:
    code = (
        "import sys, megatron_kis.config.layout; print({'torch', 'megatron'} & {m.split('.')[0] for m in sys.modules})"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"


UNEVEN = {"name": "uneven", "layers": 1, "width": 16, "heads": 2, "query_groups": 1, "parallel": {"tensor": 2}}


@pytest.mark.parametrize("command", [["study", "plan"], ["study", "run"], ["study", "submit", "--dry-run"], ["plan"]])
def test_every_size_of_a_study_is_checked_before_anything_is_written(
    command: list[str], tmp_path: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    ladder = [{"layers": 1, "width": 16, "heads": 2}, UNEVEN]
    study = write_study(tmp_path, tiny_sources, ladder=ladder)
    assert main([*command, str(study)]) == 2
    said = capsys.readouterr().err
    assert "run uneven" in said or "uneven:" in said
    assert re.search(r"parallel\.tensor: (run .*: )?1 query_groups cannot be split 2 ways", said)
    assert not (tmp_path / "out" / "runs").exists()
    assert not (tmp_path / "out" / "data").exists()


def test_a_sizes_own_micro_batches_and_the_studys_vocabulary_are_checked(
    tmp_path: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    size = {"layers": 1, "width": 24, "heads": 3, "ffn_width": 48}
    study = write_study(tmp_path, tiny_sources, ladder=[{**size, "parallel": {"replicas": 4}, "micro_batch_size": 4}])
    assert main(["study", "plan", str(study)]) == 2
    assert "4 does not divide a replica's 2 sequences" in capsys.readouterr().err
    study = write_study(tmp_path, tiny_sources, ladder=[{**size, "parallel": {"tensor": 3}}])
    assert main(["study", "plan", str(study)]) == 2
    assert "512 rows of the vocabulary cannot be split 3 ways" in capsys.readouterr().err


def test_kis_plan_of_a_run_checks_its_layout_unless_it_is_to_find_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {
        "name": "r",
        "output": "r",
        "data": dict.fromkeys(("corpus", "validation", "exposures", "tokenizer"), "x"),
        "model": {"layers": 2, "width": 16, "heads": 2, "query_groups": 1},
        "training": BATCH,
        "infusion": {"frequency": 0},
        "parallel": {"tensor": 2},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    assert main(["plan", str(path)]) == 2
    assert "parallel.tensor: 1 query_groups cannot be split 2 ways" in capsys.readouterr().err
    assert main(["plan", str(path), "--gpus", "2"]) == 0


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"training": {"precision": "fp8"}, "model": {"transformer_impl": "sdpa"}},
            "training.precision: FP8 needs Transformer Engine's layers; model.transformer_impl is sdpa",
        ),
        (
            {"training": {"precision": "fp8"}, "documents": {"reset_attention": True}},
            "documents.reset_attention: Transformer Engine's causal layers take no other mask",
        ),
        (
            {"training": {"precision": "fp32"}, "model": {"transformer_impl": "transformer_engine"}},
            "model.transformer_impl: Transformer Engine has no fused attention in FP32",
        ),
        (
            {"model": {"transformer_impl": "transformer_engine"}, "documents": {"reset_attention": True}},
            "documents.reset_attention: Transformer Engine's causal layers take no other mask",
        ),
    ],
)
def test_settings_for_which_no_device_has_layers_are_refused_before_anything_is_written(
    changes: dict[str, dict[str, Any]],
    problem: str,
    tmp_path: Path,
    tiny_sources: Sources,
    capsys: pytest.CaptureFixture[str],
) -> None:
    size = {"layers": 1, "width": 32, "heads": 2, "ffn_width": 96, **changes.get("model", {})}
    training = {"sequence_length": 64, "global_batch_size": 8, **changes.get("training", {})}
    sections = {"training": training, "documents": changes.get("documents", {})}
    study = write_study(tmp_path, tiny_sources, ladder=[size], **sections)
    key, _, why = problem.partition(": ")
    of_ladder = key.replace("model.", "ladder.0.")  # as it is written in the study
    for command in (["study", "plan"], ["study", "run"], ["plan"], ["plan", "--gpus", "1"]):
        assert main([*command, str(study)]) == 2
        said = capsys.readouterr().err
        assert why in said
        assert f"{key}: " in said or f"{of_ladder}: run " in said
    assert not (tmp_path / "out" / "data").exists()
