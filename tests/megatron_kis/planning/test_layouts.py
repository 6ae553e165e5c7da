"""Layouts that the plan offers: they fit, they divide, and their time adds up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError
from megatron_kis.config.ladder import PRESETS
from megatron_kis.planning.hardware import GPUS, gpu
from megatron_kis.planning.layouts import Job, configured_layout, find_layouts
from megatron_kis.planning.table import gpu_time


def job(name: str, *, batch: int = 512, tokens: float = 20e9) -> Job:
    return Job(PRESETS[name], 32_000, tokens, 2048, batch)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "gpus"), [("137m", 1), ("1b", 8), ("7b", 64), ("70b", 256)])
def test_every_layout_fits_and_divides_model_batch_and_gpus(name: str, gpus: int) -> None:
    asked = job(name)
    found = find_layouts(asked, gpus=gpus, kind=GPUS["h100"], interleave=True)
    assert found
    for option in found:
        split = option.split
        assert split.gpus == gpus
        assert split.tensor <= 8
        assert asked.shape.query_groups % split.tensor == 0
        assert asked.shape.layers % (split.pipeline * split.virtual) == 0
        assert split.data * option.micro_batch * option.micro_batches == asked.global_batch
        assert option.memory.total < 80e9
        assert split.distributed_optimizer == (split.data > 1)
    assert [option.step_seconds for option in found] == sorted(option.step_seconds for option in found)


@pytest.mark.slow
def test_only_layouts_that_can_be_trained_are_offered_unless_asked() -> None:
    offered = find_layouts(job("7b"), gpus=64, kind=GPUS["h100"])
    assert {option.split.virtual for option in offered} == {1}
    asked = find_layouts(job("7b"), gpus=64, kind=GPUS["h100"], interleave=True)
    assert {option.split.virtual for option in asked} > {1}


def test_a_model_too_large_is_refused() -> None:
    with pytest.raises(InputError, match=r"--gpus: no layout on 1 H100 holds the model"):
        find_layouts(job("70b"), gpus=1, kind=GPUS["h100"])


def test_a_layout_is_offered_with_what_makes_it_fastest() -> None:
    long = Job(PRESETS["70b"], 32_000, 20e9, 8192, 256)
    found = {option.split.label: option for option in find_layouts(long, gpus=256, kind=GPUS["h100"])}
    first = found["TP8 PP2 DP16 SP"]
    assert first.split.recompute == "none"
    for other in (
        replace(first.split, sequence=False),
        replace(first.split, recompute="full"),
        replace(first.split, sequence=False, recompute="full"),
    ):
        for micro_batch in (1, 2, 4):
            option, fits = configured_layout(long, other, micro_batch=micro_batch, kind=GPUS["h100"])
            assert not fits or option.step_seconds > first.step_seconds
    # what fits only with whole layers computed again is offered so
    again = find_layouts(Job(PRESETS["70b"], 32_000, 20e9, 32768, 64), gpus=64, kind=GPUS["h100"])
    assert any(option.split.recompute == "full" for option in again)


@pytest.mark.slow
def test_interleaved_stages_take_turns_on_a_multiple_of_their_number() -> None:
    found = find_layouts(job("7b", batch=96), gpus=32, kind=GPUS["h100"], interleave=True)
    interleaved = [option for option in found if option.split.virtual > 1]
    assert interleaved
    assert all(option.micro_batches % option.split.pipeline == 0 for option in interleaved)


def test_a_measured_share_of_the_peak_is_that_of_the_fastest_layout() -> None:
    asked = job("7b")
    computed = find_layouts(asked, gpus=64, kind=GPUS["h100"])
    measured = find_layouts(asked, gpus=64, kind=GPUS["h100"], mfu=0.2)
    assert measured[0].step_seconds == pytest.approx(asked.flops / (64 * 989e12 * 0.2))
    assert measured[0].mfu == pytest.approx(0.2)
    assert [option.split for option in measured] == [option.split for option in computed]
    ratios = [one.step_seconds / other.step_seconds for one, other in zip(measured, computed, strict=True)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))
    own, _ = configured_layout(asked, computed[-1].split, micro_batch=1, kind=GPUS["h100"], mfu=0.2)
    assert own.step_seconds == pytest.approx(asked.flops / (64 * 989e12 * 0.2))


def test_gpu_hours_are_those_of_all_steps() -> None:
    option = find_layouts(job("1b"), gpus=8, kind=GPUS["h100"])[0]
    steps = int(20e9 // (512 * 2048))
    assert option.gpu_hours == pytest.approx(option.step_seconds * steps * 8 / 3600)


def test_an_unknown_gpu_is_refused_with_one_that_is_known() -> None:
    assert gpu("H100").name == "H100"
    with pytest.raises(InputError, match="no GPU 'h10'"):
        gpu("h10")


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert main(["plan", *arguments, "--json"]) == 0
    result: dict[str, object] = json.loads(capsys.readouterr().out)
    return result


def test_presets_shapes_and_files_are_planned(capsys: pytest.CaptureFixture[str]) -> None:
    preset = plan(capsys, "7b", "--tokens", "1e9", "--gpus", "8", "--mfu", "0.4")
    shape = plan(
        capsys,
        "layers=32,width=4096,heads=32,ffn_width=11008,tied_embeddings=false,rope_base=500000",
        "--tokens",
        "1e9",
        "--gpus",
        "8",
        "--mfu",
        "0.4",
    )
    assert preset["gpu_hours"] == shape["gpu_hours"]
    assert preset["models"][0]["mfu_source"] == "given with --mfu"  # type: ignore[index]


@pytest.mark.parametrize("model", ["layers=2,width=64,heads=2,ffn_width:512", "layers=2,width=64,heads=2,layers=3"])
def test_words_of_a_shape_that_would_be_passed_over_are_refused(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", model, "--tokens", "1e9"]) == 2
    assert "is not a list of keys and values; each once" in capsys.readouterr().err


def test_the_time_of_a_run_is_of_its_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content: dict[str, Any] = {
        "name": "r",
        "output": "r",
        "data": dict.fromkeys(("corpus", "validation", "exposures", "tokenizer"), "x"),
        "model": {"preset": "1b"},
        "infusion": {"frequency": 0},
        "training": {"token_budget": 10**9, "sequence_length": 2048, "global_batch_size": 256, "micro_batch_size": 4},
    }
    path = tmp_path / "run.yaml"
    hours: dict[str, Any] = {}
    said = {}
    for precision in ("bf16", "fp32", "fp8"):
        content["training"]["precision"] = precision
        path.write_text(yaml.safe_dump(content))
        hours[precision] = plan(capsys, str(path))["gpu_hours"]
        assert main(["plan", str(path)]) == 0
        said[precision] = capsys.readouterr().out
    assert hours["fp32"] > 9 * hours["bf16"]
    assert "of the FP32 peak" in said["fp32"]
    assert hours["fp8"] == pytest.approx(hours["bf16"], rel=0.05)
    assert "whose time is shown for FP8 too" in said["fp8"]


def test_seconds_are_listed_by_what_takes_them(capsys: pytest.CaptureFixture[str]) -> None:
    row = plan(capsys, "7b", "--tokens", "1e9", "--gpus", "64")["models"][0]  # type: ignore[index]
    assert row["mfu_source"] == "computed"
    for layout in row["layouts"]:
        parts = dict(layout["seconds"])
        assert parts.pop("total") == pytest.approx(sum(parts.values())) == layout["step_seconds"]
    assert main(["plan", "7b", "--tokens", "1e9", "--gpus", "64"]) == 0
    shown = capsys.readouterr().out
    assert " limit " in shown
    assert "tensor" in shown


@pytest.mark.slow
def test_slower_links_cost_time(capsys: pytest.CaptureFixture[str]) -> None:
    def seconds(*arguments: str) -> float:
        row = plan(capsys, "7b", "--tokens", "1e9", "--gpus", "64", "--show", "50", *arguments)["models"][0]  # type: ignore[index]
        return next(
            float(layout["step_seconds"])
            for layout in row["layouts"]
            if (layout["tensor"], layout["pipeline"]) == (8, 1)
        )

    assert seconds() < seconds("--nvlink", "100") < seconds("--nvlink", "50")
    assert seconds() < seconds("--network", "1")
    assert seconds() == seconds("--nvlink", "450", "--network", "50")


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
@pytest.mark.parametrize("flag", ["--nvlink", "--network"])
def test_a_link_without_a_speed_is_refused(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "7b", "--tokens", "1e9", f"{flag}={value}"]) == 2
    assert f"{flag}: is {value}" in capsys.readouterr().err


def test_a_study_costs_what_its_runs_cost(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        "name: s\noutput: out\ndata: {text: [t], facts: f, templates: t, vocab_size: 32000}\n"
        "ladder: [{preset: 137m}, {preset: 1b}]\n"
        "token_budgets: [2000000000, 4000000000]\nfrequencies: [0, 8, 64]\nseeds: [0, 1]\n"
        "training: {sequence_length: 2048, global_batch_size: 512}\n"
    )
    whole = plan(capsys, str(study), "--mfu", "0.4")
    assert [row["runs"] for row in whole["models"]] == [6, 6, 6, 6]  # type: ignore[attr-defined]
    single = sum(
        float(plan(capsys, name, "--tokens", tokens, "--mfu", "0.4")["gpu_hours"])  # type: ignore[arg-type]
        for name in ("137m", "1b")
        for tokens in ("2e9", "4e9")
    )
    assert whole["gpu_hours"] == pytest.approx(6 * single)


def test_runs_listed_beside_the_grid_are_counted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        "name: s\noutput: out\ndata: {text: [t], facts: f, templates: t, vocab_size: 32000}\n"
        "ladder: [{preset: 137m, frequencies: [0]}, {preset: 1b}]\n"
        "token_budgets: [2000000000]\nfrequencies: [0, 8, 64]\nruns: [{size: 137m, tokens: 4000000000, frequency: 3}]\n"
        "training: {sequence_length: 2048, global_batch_size: 512}\n"
    )
    rows = plan(capsys, str(study))["models"]
    assert [(row["model"], row["tokens"], row["runs"]) for row in rows] == [  # type: ignore[attr-defined]
        ("137m", 2e9, 1),
        ("1b", 2e9, 3),
        ("137m", 4e9, 1),
    ]


@pytest.mark.parametrize(
    ("hours", "shown"),
    [
        (32185.2, "32,185 GPU-hours"),
        (4.216, "4.22 GPU-hours"),
        (1.0, "1 GPU-hours"),
        (0.07, "4.2 GPU-minutes"),
        (0.01, "36 GPU-seconds"),
        (2e-6, "less than a GPU-second"),
    ],
)
def test_device_time_is_shown_in_a_unit_that_says_something(hours: float, shown: str) -> None:
    assert gpu_time(hours) == shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["7b"], "--tokens: is missing"),
        (["7c", "--tokens", "1e9"], "no model preset '7c'"),
        (["7b", "--tokens", "1e9", "--gpus", "0"], "--gpus: is 0"),
        (["7b", "--tokens", "1e9", "--mfu", "40"], "--mfu: is 40"),
        (["7b", "--tokens", "1e6"], "1,000,000 tokens are less than one step of 512 x 2048"),
    ],
)
def test_a_wrong_question_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_plan_says_which_part_of_a_run_sets_the_peak(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, "1b", "--tokens", "1e9", "--gpus", "8")["models"][0]["layouts"][0]["memory"]  # type: ignore[index]
    assert found["peak"] == "passes"
    assert set(found["parts"]) == {"passes", "update", "validation", "probe", "save", "load"}
    assert main(["plan", "1b", "--tokens", "1e9", "--gpus", "8"]) == 0
    shown = capsys.readouterr().out
    assert f"{found['parts']['passes'] / 1e9:.1f} passes" in shown
    assert "validation" in shown
    assert max(map(len, shown.splitlines())) <= 120


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("model: {preset: 1b}", {"layers": "transformer_engine"}),
        ("model: {preset: 1b, transformer_impl: sdpa}", {"layers": "sdpa"}),
        ("model: {preset: 1b}\ndocuments: {reset_attention: true}", {"layers": "sdpa"}),
    ],
)
def test_a_file_says_what_its_memory_depends_on(
    setting: str, expected: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run.yaml"
    run.write_text(
        f"{setting}\nname: r\noutput: out\ninfusion: {{frequency: 0}}\n"
        "data: {corpus: a, validation: b, exposures: c, tokenizer: d}\n"
        "training: {token_budget: 1e8, sequence_length: 2048, global_batch_size: 8, micro_batch_size: 1}\n"
        "validation: {max_tokens: 1e9}\n"
    )
    found = plan(capsys, str(run))["models"][0]["layouts"][0]["memory"]  # type: ignore[index]
    assert found["layers"] == expected["layers"]
    assert found["parts"]["validation"] > 4e9  # a loss in fp32 for each token
