"""Settings of the infusion in real runs: schedules, popularity, lists, several corpora, boundaries, extensions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_json
from megatron_kis.config.run import RunConfig
from megatron_kis.data.exposure_store import ExposureStore
from megatron_kis.training.audit import audit_run, differences_of
from megatron_kis.training.trainer import train
from tests.runs import trained

pytestmark = pytest.mark.slow

MakeRun = Callable[..., RunConfig]


def losses_of(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]


@pytest.mark.parametrize(
    "infusion",
    [
        {"schedule": {"kind": "bursts", "count": 2, "width": 0.5}},
        {"schedule": "back_loaded", "templates": "random"},
        {"schedule": {"kind": "final", "share": 0.5}, "templates": 1},
        {"zipf_exponent": 1.0},
        {"frequency": 5.5},
    ],
    ids="-".join,
)
def test_every_setting_of_the_infusion_keeps_its_promises_in_a_run(tiny_run: MakeRun, infusion: dict[str, Any]) -> None:
    folder = train(tiny_run(infusion=infusion))
    assert differences_of(audit_run(folder)) == 0
    record = read_json(folder / "run.json", "kis.run/1")
    assert record["infusion_frequency"] == pytest.approx(infusion.get("frequency", 8), abs=1 / 16)


def test_frequencies_come_from_a_file(tiny_run: MakeRun, tiny_data: Path, tmp_path: Path) -> None:
    facts = ExposureStore(tiny_data / "exposures").ids("infused")
    listed = tmp_path / "frequencies.tsv"
    listed.write_text("".join(f"{fact}\t{number}\n" for number, fact in enumerate(facts)))
    config = tiny_run(infusion={"frequency": None, "frequencies": listed})
    received = read_json(train(config) / "exposures.json", "kis.ledger/1")["received"]["infused"]
    assert received == {fact: number for number, fact in enumerate(facts)}


def test_other_frequencies_in_the_same_file_are_another_run(tiny_run: MakeRun, tiny_data: Path, tmp_path: Path) -> None:
    facts = ExposureStore(tiny_data / "exposures").ids("infused")
    listed = tmp_path / "frequencies.tsv"
    listed.write_text("".join(f"{fact}\t1\n" for fact in facts))
    config = tiny_run(infusion={"frequency": None, "frequencies": listed})
    train(config)
    train(config)
    listed.write_text("".join(f"{fact}\t2\n" for fact in facts))
    with pytest.raises(InputError, match=r"holds a complete run on another plan \([0-9a-f]{12}, now [0-9a-f]{12}\)"):
        train(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines, "nobody\t3"], r"frequencies.tsv:17: no infused fact has the id 'nobody'"),
        (lambda lines: [*lines, lines[0]], r"frequencies.tsv:17: lists .* again; list every fact once"),
        (lambda lines: lines[1:], r"does not list 1 infused facts, the first is"),
        (lambda lines: ["one two three", *lines], r"frequencies.tsv:1: is 'one two three'; must be a fact's id"),
        (lambda lines: [lines[0].replace("\t1", "\t-1"), *lines[1:]], r"frequencies.tsv:1: .* a whole number"),
    ],
)
def test_a_wrong_list_of_frequencies_is_refused_by_line(
    tiny_run: MakeRun, tiny_data: Path, tmp_path: Path, change: Callable[[list[str]], list[str]], message: str
) -> None:
    lines = [f"{fact}\t1" for fact in ExposureStore(tiny_data / "exposures").ids("infused")]
    listed = tmp_path / "frequencies.tsv"
    listed.write_text("\n".join(change(lines)))
    with pytest.raises(InputError, match=message):
        train(tiny_run(infusion={"frequency": None, "frequencies": listed}))


def test_several_corpora_are_read_by_their_weights_and_told_in_the_record(tiny_run: MakeRun, tiny_data: Path) -> None:
    both = [0.75, str(tiny_data / "corpus"), 0.25, str(tiny_data / "corpus.validation")]
    record = read_json(train(tiny_run(name="both", data={"corpus": both})) / "run.json", "kis.run/1")
    assert [read["sequences"] for read in record["general_text"]] == [120, 40]
    assert record["general_text"][1]["epochs"] > record["general_text"][0]["epochs"] > 0
    only = read_json(trained(tiny_run()) / "run.json", "kis.run/1")
    assert only["fingerprints"]["corpus"] != record["fingerprints"]["corpus"]


def test_documents_that_do_not_see_each_other_train_otherwise(tiny_run: MakeRun) -> None:
    usual = trained(tiny_run())
    apart = train(tiny_run(name="apart", documents={"reset_attention": True}))
    unmasked = train(tiny_run(name="boundaries", documents={"mask_boundaries": True}))
    assert losses_of(usual) != losses_of(apart)
    assert losses_of(usual) != losses_of(unmasked)
    local = train(tiny_run(name="local", documents={"reset_attention": True}, model={"transformer_impl": "local"}))
    assert losses_of(local) == pytest.approx(losses_of(apart), abs=1e-4)


def test_layers_that_would_pass_over_the_mask_are_refused(tiny_run: MakeRun) -> None:
    asked = tiny_run(documents={"reset_attention": True}, model={"transformer_impl": "transformer_engine"})
    with pytest.raises(InputError, match=r"documents.reset_attention: .* use model.transformer_impl=sdpa or auto"):
        train(asked)


def test_a_finished_run_is_extended_and_its_sequences_stay(tiny_run: MakeRun) -> None:
    trunk = {"schedule": "wsd", "warmup_share": 0, "decay_share": 0.1}  # the same rates, whatever the budget
    first = train(tiny_run(training={"optimizer": trunk}))
    training = {"token_budget": 30 * 8 * 64, "optimizer": trunk}
    longer = tiny_run(name="longer", extends=first, training=training, infusion={"frequency": 3})
    folder = train(longer)
    assert differences_of(audit_run(folder)) == 0
    record, base = (read_json(run / "run.json", "kis.run/1") for run in (folder, first))
    assert record["infusion_frequency"] == 8 + 3
    assert record["plan"]["extends"] == base["plan"]
    assert losses_of(folder)[0] == losses_of(first)[0]


def test_a_trunk_goes_on_from_its_checkpoint_under_an_extended_plan(tiny_run: MakeRun) -> None:
    settings: dict[str, Any] = {"checkpoints": {"moments": {"every": 5}, "keep_last": 9}, "logging": {"every": 1}}
    wsd = {"schedule": "wsd", "warmup_share": 0.1, "decay_share": 0.2}
    trunk = train(tiny_run(name="trunk", training={"optimizer": wsd}, **settings))
    longer = {"token_budget": 30 * 8 * 64, "optimizer": wsd}
    branch = tiny_run(name="branch", extends=trunk, training=longer, infusion={"frequency": 3}, **settings)
    folder = train(branch, branch_from=f"{trunk}@15")
    assert losses_of(folder)[:15] == losses_of(trunk)[:15]
    audit = audit_run(folder)
    assert differences_of(audit) == 0
    assert audit["infused"]["fewest"] == audit["infused"]["most"] == 8 + 3


def test_only_a_finished_run_of_the_same_settings_is_extended(tiny_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"extends: .* is not a finished run; finish it first"):
        train(tiny_run(extends=tmp_path / "nothing"))
    first = trained(tiny_run())
    with pytest.raises(InputError, match=r"training.seed: is 1, the run it extends has 0; use 0"):
        train(tiny_run(name="b", extends=first, training={"token_budget": 30 * 8 * 64, "seed": 1}))
    with pytest.raises(InputError, match=r"less than one sequence more than the run so far"):
        train(tiny_run(name="c", extends=first))
