"""One run in this process: what it logs, what it guarantees, and how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_kis.common.errors import InputError, JobError
from megatron_kis.common.files import locked, read_json, sha256_file
from megatron_kis.config.ladder import ModelShape
from megatron_kis.config.run import RunConfig
from megatron_kis.data.ledger import Ledger
from megatron_kis.distributed.device import open_device
from megatron_kis.distributed.groups import ParallelDims
from megatron_kis.model.build import ModelSpec, assemble_model
from megatron_kis.training.trainer import train
from tests.runs import trained

MakeRun = Callable[..., RunConfig]


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def losses_of(folder: Path) -> list[float]:
    return [row["loss"] for row in rows_of(folder, "metrics.jsonl") if row["kind"] == "train"]


def test_a_run_learns_and_leaves_every_record(tiny_run: MakeRun) -> None:
    config = tiny_run(training={"optimizer": {"learning_rate": 1e-2}})
    folder = train(config)

    losses = losses_of(folder)
    assert losses[-1] < losses[0] - 0.3
    record = read_json(folder / "run.json", "kis.run/1")
    assert record["tokens"] == 20 * 8 * 64
    assert record["infusion_frequency"] == 8
    assert record["params"] == config.model.shape().params(512)  # 400 pieces padded to a multiple of 128
    assert record["nonembedding_params"] == record["params"] - 512 * 16
    done = read_json(folder / "DONE", "kis.done/1")
    assert done["files"] == {name: sha256_file(folder / name) for name in done["files"]}
    assert set(done["files"]) == {"run.json", "metrics.jsonl", "probes.jsonl", "exposures.json"}
    assert done["inputs"] == {name: sha256_file(folder / name) for name in done["inputs"]}
    assert set(done["inputs"]) == {
        "inputs/questions.jsonl.gz",
        "inputs/tokenizer.model",
        "inputs/tokenizer.model.meta.json",
    }
    validation = [row for row in rows_of(folder, "metrics.jsonl") if row["kind"] == "validation"]
    assert [row["step"] for row in validation] == [10, 20]
    assert validation[1]["loss"] < validation[0]["loss"]


def test_every_fact_is_received_as_often_as_planned(tiny_run: MakeRun) -> None:
    folder = trained(tiny_run())
    ledger = read_json(folder / "exposures.json", "kis.ledger/1")
    assert ledger["exact"]
    assert set(ledger["received"]["infused"].values()) == {8}
    assert set(ledger["received"]["background"].values()) == {ledger["plan"]["background_frequency"]}
    assert ledger["tokens"] == 20 * 8 * 64
    assert ledger["infused_tokens"] == ledger["plan"]["infused_tokens"] > 0
    assert rows_of(folder, "metrics.jsonl")[-1]["step"] == 20
    assert losses_of(folder)


def test_probes_cover_all_groups_splits_and_rules(tiny_run: MakeRun) -> None:
    folder = train(tiny_run(probes={"moments": {"shares": [0.0, 0.5]}}))
    rows = rows_of(folder, "probes.jsonl")
    assert sorted({row["step"] for row in rows}) == [0, 10, 20]
    seen = {(row["group"], row["split"], row["scoring"]) for row in rows}
    groups, splits = ("infused", "background", "control"), ("train", "held_out", "question")
    rules = ("statement", "sum", "mean_token", "mean_char", "mean_byte", "pmi")
    assert seen == {(group, split, rule) for group in groups for split in splits for rule in rules}
    for row in rows:
        assert row["facts"] == 16
        assert row["correct"] == sum(template["correct"] for template in row["templates"])
        assert row["n"] == sum(template["n"] for template in row["templates"])
    with np.load(folder / "outcomes" / "step-20.npz", allow_pickle=False) as outcomes:
        assert outcomes["correct"].shape == (16 * 3 * 4, len(rules))


@pytest.mark.slow
def test_a_cpu_trains_without_pytorchs_compiler(tiny_run: MakeRun, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(tiny_run().model_dump_json(), encoding="utf-8")
    code = f"import sys\nfrom megatron_kis.cli.main import main\nmain(['train', {str(path)!r}])\nprint(*sys.modules)\n"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ended.stdout.splitlines()[-1].split())
    assert "torch.optim" in loaded
    assert not loaded & {"torch._dynamo", "torch._inductor"}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_another_seed_other_ones(tiny_run: MakeRun) -> None:
    first = losses_of(trained(tiny_run()))
    again = losses_of(train(tiny_run(name="again")))
    other = losses_of(train(tiny_run(name="other", training={"seed": 1})))
    assert first == again
    assert first != other


@pytest.mark.slow
def test_probes_and_validation_do_not_touch_the_training(tiny_run: MakeRun) -> None:
    seldom = losses_of(trained(tiny_run()))
    moments = {"moments": {"every": 3}}
    often = losses_of(train(tiny_run(name="often", probes=moments, validation=moments)))
    assert often == seldom


@pytest.mark.slow
def test_micro_batches_change_nothing_but_rounding(tiny_run: MakeRun) -> None:
    whole = losses_of(trained(tiny_run()))
    parts = losses_of(train(tiny_run(name="parts", training={"micro_batch_size": 2})))
    np.testing.assert_allclose(parts, whole, atol=1e-5)


@pytest.mark.slow
def test_sdpa_attention_equals_megatrons_own(tiny_run: MakeRun) -> None:
    ours = losses_of(trained(tiny_run()))
    theirs = losses_of(train(tiny_run(name="local", model={"transformer_impl": "local"})))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.slow
def test_grouped_query_attention_equals_megatrons_own(tiny_run: MakeRun) -> None:
    shape = {"width": 32, "heads": 4, "query_groups": 2}
    ours = losses_of(train(tiny_run(name="sdpa", model=shape)))
    theirs = losses_of(train(tiny_run(name="local", model={**shape, "transformer_impl": "local"})))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputed_activations_change_nothing(tiny_run: MakeRun, recompute: str) -> None:
    stored = losses_of(trained(tiny_run()))
    again = losses_of(train(tiny_run(name="again", parallel={"recompute": recompute})))
    assert again == stored


@pytest.mark.slow
def test_transformer_engine_is_refused_where_it_cannot_be(tiny_run: MakeRun) -> None:
    with pytest.raises(InputError, match=r"transformer_impl: Transformer Engine is asked for, and it needs CUDA"):
        train(tiny_run(model={"transformer_impl": "transformer_engine"}, training={"precision": "auto"}))
    with pytest.raises(InputError, match=r"parallel\.context: Megatron-Core's own attention needs whole sequences"):
        shared = ParallelDims(2, 0, 1, 0, 1, 0, 1, 0, context_size=2)
        spec = ModelSpec(ModelShape(1, 32, 2, 2, 64), 256, 64, shared, open_device("cpu"), implementation="local")
        assemble_model(spec)


@pytest.mark.slow
def test_fp8_is_refused_without_transformer_engine(tiny_run: MakeRun) -> None:
    with pytest.raises(InputError, match=r"training\.precision: FP8 needs Transformer Engine's layers on CUDA"):
        train(tiny_run(training={"precision": "fp8"}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        pytest.param({"parallel": {"virtual": 2}}, r"parallel: virtual is 2: .*set pipeline as well", id="one-stage"),
        pytest.param({"parallel": {"context": 2}}, "cannot hold .* x context=2", id="one-process"),
    ],
)
def test_parallelism_that_cannot_be_run_is_refused_by_name(
    tiny_run: MakeRun, settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        train(tiny_run(**settings))


@pytest.mark.slow
def test_the_rate_falls_with_the_width_if_a_reference_is_given(tiny_run: MakeRun) -> None:
    optimizer = {"learning_rate": 1e-3, "reference_width": 8, "warmup_share": 0.0, "schedule": "wsd"}
    folder = train(tiny_run(training={"optimizer": optimizer}))  # width 16
    assert rows_of(folder, "metrics.jsonl")[0]["lr"] == pytest.approx(5e-4)


@pytest.mark.slow
def test_a_done_run_is_left_as_it_is(tiny_run: MakeRun) -> None:
    config = tiny_run()
    folder = trained(config)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert train(config) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.slow
def test_a_done_run_of_other_settings_is_refused(tiny_run: MakeRun) -> None:
    trained(tiny_run())
    with pytest.raises(InputError, match="other settings"):
        train(tiny_run(infusion={"frequency": 2}))


@pytest.mark.slow
def test_two_runs_do_not_share_a_folder(tiny_run: MakeRun) -> None:
    config = tiny_run()
    with locked(config.output, "kis train"), pytest.raises(JobError, match="another 'kis train' is running here"):
        train(config)
    assert sorted(path.name for path in config.output.iterdir()) == [".lock"]


@pytest.mark.slow
def test_an_unfinished_run_starts_anew(tiny_run: MakeRun) -> None:
    config = tiny_run()
    config.output.mkdir(parents=True)
    (config.output / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n{"torn')
    whole = losses_of(train(config))
    assert len(whole) == 4
    assert whole == losses_of(trained(tiny_run(output=config.output.with_name("other"))))


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tiny_run: MakeRun) -> None:
    config = tiny_run(training={"optimizer": {"learning_rate": 1e30, "warmup_share": 0.0}})
    with pytest.raises(JobError, match=r"at step \d+"):
        train(config)
    assert not (config.output / "DONE").exists()


@pytest.mark.slow
def test_exposures_that_did_not_arrive_are_an_error(tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    observe = Ledger.observe_many

    def forgetful(self: Ledger, sequences: Any, layouts: Any) -> None:
        bare = [layout._replace(exposures=()) if not self.sequences else layout for layout in layouts]
        observe(self, sequences, bare)

    monkeypatch.setattr(Ledger, "observe_many", forgetful)
    config = tiny_run(infusion={"frequency": 15})
    with pytest.raises(JobError, match="did not get the planned exposures"):
        train(config)
    assert not (config.output / "DONE").exists()


@pytest.mark.slow
def test_a_frequency_that_does_not_fit_is_refused_before_training(tiny_run: MakeRun) -> None:
    config = tiny_run(infusion={"frequency": 100_000})
    with pytest.raises(InputError, match="the largest that fits"):
        train(config)
    assert not config.output.exists()


@pytest.mark.slow
def test_data_of_another_tokenizer_are_refused(tiny_run: MakeRun, tiny_data: Path, tmp_path: Path) -> None:
    meta = json.loads((tiny_data / "corpus.meta.json").read_text())
    for suffix in (".bin", ".idx"):
        (tmp_path / f"corpus{suffix}").write_bytes((tiny_data / f"corpus{suffix}").read_bytes())
    (tmp_path / "corpus.meta.json").write_text(json.dumps({**meta, "tokenizer_fingerprint": "0" * 64}))
    with pytest.raises(InputError, match="was made with tokenizer 000000"):
        train(tiny_run(data={"corpus": tmp_path / "corpus"}))
