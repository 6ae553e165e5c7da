"""Megatron-LM's ``pretrain()`` under a plan, on a CPU: what it was fed and asked, and what is left for analysis."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_kis.analysis.runs.load import load_runs
from megatron_kis.cli.main import main
from megatron_kis.config.run import RunConfig
from megatron_kis.study.status import status_of
from megatron_kis.training.audit import audit_run, differences_of
from tests.forked import run_kis
from tests.megatron_kis.megatron_lm.on_cpu import pretrain
from tests.pages import ROOT, blocks
from tests.run_files import rows
from tests.runs import trained

pytest.importorskip("megatron.training", reason="megatron.training is in megatron-core from 0.19 on (Python 3.12)")

SETTINGS: dict[str, Any] = {
    "training": {"precision": "fp32", "micro_batch_size": 2},
    "probes": {"moments": {"shares": [0.0, 0.4, 1.0]}},
}


WITHOUT_A_RUN = (
    "--num-layers 2 --hidden-size 16 --ffn-hidden-size 48 --num-attention-heads 2 --seq-length 64"
    " --max-position-embeddings 64"
    " --micro-batch-size 4 --global-batch-size 8 --train-samples 80 --lr 1e-3 --lr-decay-style linear --swiglu"
    " --lr-warmup-samples 8 --tokenizer-type NullTokenizer --vocab-size 400 --eval-iters 1 --eval-interval 5"
    " --split 90,5,5 --kis-ratio 0.2 --kis-background-frequency 4 --kis-set probes.facts_per_group=8"
)


CONTINUED = (
    "--use-checkpoint-args --ckpt-format torch_dist --dist-ckpt-strictness log_all --seq-length 64"
    " --max-position-embeddings 64 --micro-batch-size 8 --global-batch-size 8 --train-samples 80 --lr 1e-3"
    " --tokenizer-type NullTokenizer --vocab-size 400 --eval-iters 0 --eval-interval 10 --split 90,5,5"
    " --kis-frequency 4 --kis-set probes.moments.shares=[0.0] probes.templates.train=2"
    " probes.templates.held_out=1 probes.templates.question=1"
)


def written(config: RunConfig) -> Path:
    path = config.output.parent / f"{config.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run of 20 steps that was trained in one go. Shared: read it."""
    folder = tmp_path_factory.mktemp("finished")
    config = _config(tiny_data, folder)
    status, said = pretrain(folder, "--kis-run", written(config))
    assert status == 0, said
    return config


def _config(data: Path, folder: Path, **changes: Any) -> RunConfig:
    content: dict[str, Any] = {
        "name": "tiny",
        "output": folder / "runs" / "tiny",
        "device": "cpu",
        "data": {
            "corpus": data / "corpus",
            "validation": data / "corpus.validation",
            "exposures": data / "exposures",
            "tokenizer": data / "tokenizer.model",
        },
        "model": {"layers": 2, "width": 16, "heads": 2},
        "training": {
            "token_budget": 20 * 8 * 64,
            "sequence_length": 64,
            "global_batch_size": 8,
            **SETTINGS["training"],
        },
        "infusion": {"frequency": 8, "background": {"frequency": 6}},
        "probes": {**SETTINGS["probes"], "templates": {"train": 2, "held_out": 1, "question": 1}},
        "validation": {"moments": {"shares": [0.5, 1.0]}},
        "logging": {"every": 5},
    }
    return RunConfig.model_validate(content | changes)


def losses(run: Path) -> dict[tuple[str, int], float]:
    return {(row["kind"], row["step"]): row["loss"] for row in rows(run, "metrics.jsonl")}


def probed(run: Path) -> list[Any]:
    return [[row[key] for key in ("step", "group", "split", "scoring", "margin")] for row in rows(run, "probes.jsonl")]


def test_every_fact_got_its_exposures_and_every_question_was_asked(finished: RunConfig) -> None:
    audit = audit_run(finished.output)
    assert differences_of(audit) == 0
    assert [audit["infused"][name] for name in ("fewest", "most")] == [8, 8]
    assert audit["background"]["received"] > 0
    assert {row["step"] for row in rows(finished.output, "probes.jsonl")} == {0, 8, 20}
    assert {step for kind, step in losses(finished.output) if kind == "validation"} == {10, 20}
    assert losses(finished.output)["train", 20] < losses(finished.output)["train", 5]
    record = json.loads((finished.output / "run.json").read_text())
    assert (record["trainer"], record["params"]) == ("Megatron-LM", 14928)


def test_the_run_is_one_of_its_study_and_is_analysed(finished: RunConfig) -> None:
    (status,) = status_of([finished])
    assert status.state == "done", status
    runs = load_runs(finished.output.parent)
    assert runs.problems.empty
    assert runs.runs["exposures_exact"].tolist() == [True]
    assert runs.losses["step"].tolist() == [10, 20]
    points = finished.output.parent / "points.csv"
    collapse = run_kis("law", "collapse", finished.output.parent, "--output", points)
    assert collapse.returncode == 0, collapse.stderr
    assert "14928" in points.read_text(encoding="utf-8")


def test_a_run_that_resumes_is_the_run_that_was_never_stopped(
    finished: RunConfig, tiny_data: Path, tmp_path: Path
) -> None:
    config = _config(tiny_data, tmp_path)
    save = tmp_path / "saved"
    run = written(config)
    status, said = pretrain(tmp_path, "--kis-run", run, "--save", save, "--save-interval", 20, "--exit-interval", 6)
    assert status == 0, said
    assert not (config.output / "DONE").exists()
    status, said = pretrain(tmp_path, "--kis-run", run, "--load", save)
    assert status == 0, said
    assert losses(config.output) == losses(finished.output)
    assert probed(config.output) == probed(finished.output)
    assert differences_of(audit_run(config.output)) == 0
    plan = json.loads((config.output / "run.json").read_text())["fingerprints"]["plan"]
    saved = b"".join(path.read_bytes() for path in save.glob("iter_0000006/*"))
    assert plan.encode() in saved  # among Megatron-LM's arguments


@pytest.mark.distributed
@pytest.mark.parametrize("more", [(), pytest.param(("--eval-iters", 0), id="no validation", marks=pytest.mark.slow)])
def test_a_run_that_was_lost_after_its_last_checkpoint_resumes_from_it(
    tiny_data: Path, tmp_path: Path, more: tuple[object, ...]
) -> None:
    config = _config(tiny_data, tmp_path)
    save, words = tmp_path / "saved", ["--kis-run", written(config), *more]
    status, said = pretrain(tmp_path, *words, "--save", save, "--save-interval", 15, ranks=2)
    assert status == 0, said
    assert sorted(path.name for path in (save / "kis").iterdir()) == ["iter_0000015.json", "iter_0000020.json"]
    before, counted = losses(config.output), audit_run(config.output)
    for name in ("DONE", "exposures.json"):
        (config.output / name).unlink()
    status, said = pretrain(tmp_path, *words, "--load", save, ranks=2)
    assert status == 0, said
    assert (losses(config.output), audit_run(config.output)) == (before, counted)
    assert differences_of(counted) == 0
    assert (config.output / "DONE").exists()


@pytest.mark.slow
def test_a_resume_with_another_plan_ends_before_anything_is_written(tiny_data: Path, tmp_path: Path) -> None:
    config = _config(tiny_data, tmp_path)
    words = ["--kis-run", written(config), "--save", tmp_path / "saved", "--load", tmp_path / "saved"]
    words += ["--save-interval", 6]
    status, said = pretrain(tmp_path, *words, "--exit-interval", 6)
    assert status == 0, said
    before = (config.output / "metrics.jsonl").read_bytes()
    status, said = pretrain(tmp_path, *words, "--kis-set", "infusion.frequency=7")
    assert status == 2, said
    assert "iteration 6 was trained with another exposure plan: infusion_frequency 8 -> 7" in said
    assert (config.output / "metrics.jsonl").read_bytes() == before


@pytest.mark.distributed
@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(("--pipeline-model-parallel-size", 2), id="stages"),
        pytest.param(
            ("--tensor-model-parallel-size", 2),
            id="tensor",
            marks=pytest.mark.slow,
        ),
        pytest.param((), id="replicas", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_count_and_probe_as_one(
    finished: RunConfig, tiny_data: Path, tmp_path: Path, layout: tuple[object, ...]
) -> None:
    config = _config(tiny_data, tmp_path)
    status, said = pretrain(tmp_path, "--kis-run", written(config), *layout, ranks=2)
    assert status == 0, said
    audit = audit_run(config.output)
    assert (differences_of(audit), audit["infused"]["received"], audit["sequences"]) == (0, 16 * 8, 160)
    assert probed(config.output)[0][:4] == probed(finished.output)[0][:4]
    if "--pipeline-model-parallel-size" not in layout:  # whose initial weights are others
        assert losses(config.output)["train", 20] == pytest.approx(losses(finished.output)["train", 20], rel=1e-4)
        margins = [[row[-1] for row in probed(run.output)] for run in (config, finished)]
        assert margins[0] == pytest.approx(margins[1], abs=1e-3)


@pytest.mark.parametrize(
    "ranks", [pytest.param(1, id="one rank"), pytest.param(2, id="tensor", marks=[pytest.mark.slow])]
)
def test_without_a_run_everything_else_is_megatrons(tiny_data: Path, tmp_path: Path, ranks: int) -> None:
    words = [*WITHOUT_A_RUN.split(), "--tensor-model-parallel-size", ranks]
    paths = ["--kis-exposures", tiny_data / "exposures", "--kis-output", tmp_path / "flags"]
    paths += ["--data-path", tiny_data / "corpus", "--data-cache-path", tmp_path / "cache"]
    status, said = pretrain(tmp_path, *words, *paths, ranks=ranks)
    assert status == 0, said
    record = json.loads((tmp_path / "flags" / "run.json").read_text())
    assert record["settings"]["megatron_lm"]["lr_decay_style"] == "linear"
    assert record["infusion_ratio"] == pytest.approx(0.2, abs=0.01)
    assert differences_of(audit_run(tmp_path / "flags")) == 0
    assert {step for kind, step in losses(tmp_path / "flags") if kind == "validation"} == {5, 10}
    assert load_runs(tmp_path).runs["exposures_exact"].tolist() == [True]


@pytest.mark.slow
def test_a_run_records_the_weights_it_began_with_and_one_with_a_file_takes_none(
    tiny_data: Path, tmp_path: Path
) -> None:
    words = ["--kis-exposures", tiny_data / "exposures", "--data-path", tiny_data / "corpus"]
    words += [*WITHOUT_A_RUN.split(), "--data-cache-path", tmp_path / "cache"]
    saved, load = tmp_path / "saved", ["--finetune", "--load", tmp_path / "saved"]
    status, said = pretrain(
        tmp_path, *words, "--kis-output", tmp_path / "first", "--save", saved, "--save-interval", 10
    )
    assert status == 0, said
    status, said = pretrain(tmp_path, *words, "--kis-output", tmp_path / "second", *load)
    assert status == 0, said
    first, second = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("first", "second"))
    assert second["settings"]["megatron_lm"] == first["settings"]["megatron_lm"] | {"start": str(saved)}
    config = _config(tiny_data, tmp_path)
    status, said = pretrain(tmp_path, "--kis-run", written(config), *load)
    assert status == 2, said
    assert f"the run would begin with the weights of {saved}" in said
    assert not config.output.exists()


@pytest.mark.slow
def test_the_lines_of_the_page_are_a_whole_script(tiny_data: Path, tmp_path: Path) -> None:
    page = blocks(ROOT / "docs" / "how-to" / "megatron-lm.md")
    script = tmp_path / "script.py"
    script.write_text(next(block.text for block in page if block.language == "python"), encoding="utf-8")
    words = ["--kis-exposures", tiny_data / "exposures", "--data-path", tiny_data / "corpus"]
    words += [*WITHOUT_A_RUN.split(), "--data-cache-path", tmp_path / "cache", "--kis-output", tmp_path / "own"]
    status, said = pretrain(tmp_path, *words, script=script)
    assert status == 0, said
    assert differences_of(audit_run(tmp_path / "own")) == 0


@pytest.mark.slow
def test_an_exported_run_is_continued_and_knows_the_same(
    tiny_run: Callable[..., RunConfig], tiny_data: Path, tmp_path: Path
) -> None:
    source = trained(tiny_run())
    exported = tmp_path / "exported"
    assert main(["export", "megatron", str(source), "--output", str(exported)]) == 0
    words = ["--kis-exposures", tiny_data / "exposures", "--data-path", tiny_data / "corpus"]
    words += ["--kis-output", tmp_path / "continued", "--data-cache-path", tmp_path / "cache", "--load", exported]
    words += CONTINUED.split()
    status, said = pretrain(tmp_path, *words)
    assert status == 0, said
    record = json.loads((tmp_path / "continued" / "run.json").read_text())
    assert record["settings"]["megatron_lm"]["start"] == str(exported)
    end = [row for row in probed(source) if row[0] == 20]
    begin = [row for row in probed(tmp_path / "continued") if row[0] == 0]
    assert [row[1:4] for row in begin] == [row[1:4] for row in end]
    assert [row[4] for row in begin] == pytest.approx([row[4] for row in end], abs=1e-4)
