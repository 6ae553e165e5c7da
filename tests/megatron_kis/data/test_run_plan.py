"""The plan of a configured run, of its own or going on from a finished run's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import write_json
from megatron_kis.config.run import RunConfig
from megatron_kis.data.exposure_plan import ExposurePlan
from megatron_kis.data.exposure_store import ExposureStore
from megatron_kis.data.extension import ExtendedPlan
from megatron_kis.data.frequency import zipf_popularity
from megatron_kis.probes.questions import read_questions
from megatron_kis.training.run_plan import listed_frequencies, open_plan
from tests.megatron_kis.data.counting import counts

Make = Callable[..., RunConfig]


def plan_of(config: RunConfig, store: ExposureStore) -> Any:
    """The plan of a run, with the questions of its data."""
    return open_plan(config, store, read_questions(config.data.questions, config.probes.templates))


@pytest.fixture(scope="module")
def store(tiny_data: Path) -> ExposureStore:
    return ExposureStore(tiny_data / "exposures")


def finished(config: RunConfig, store: ExposureStore, **changes: Any) -> Path:
    """The record of a run that was trained under a configuration, as far as a plan needs it."""
    config.output.mkdir(parents=True)
    record = {
        "schema": "kis.run/1",
        "config": config.model_dump(mode="json"),
        "plan": plan_of(config, store).identity(),
        "fingerprints": {"exposures": store.fingerprint},
        **changes,
    }
    write_json(config.output / "run.json", record)
    (config.output / "DONE").write_text("{}", encoding="utf-8")
    return config.output


def test_a_plan_has_the_settings_of_its_run(tiny_run: Make, store: ExposureStore) -> None:
    infusion: dict[str, Any] = {
        "frequency": 5,
        "schedule": {"kind": "window", "start": 0.2, "end": 0.9},
        "templates": "random",
        "background": {"frequency": 4, "policy": "protected"},
    }
    plan = plan_of(tiny_run(infusion=infusion, training={"seed": 7}), store)
    assert isinstance(plan, ExposurePlan)
    wanted = ExposurePlan(
        store.lengths("infused"),
        infusion_frequency=5,
        token_budget=20 * 8 * 64,
        sequence_length=64,
        seed=7,
        schedule=infusion["schedule"],
        templates="random",
        background_lengths=store.lengths("background"),
        background_frequency=4,
        background_policy="protected",
    )
    assert plan.identity() == wanted.identity()
    assert list(plan) == list(wanted)


def test_a_budget_is_of_whole_global_batches(tiny_run: Make, store: ExposureStore) -> None:
    assert len(plan_of(tiny_run(training={"token_budget": 21 * 8 * 64 - 1}), store)) == 20 * 8


def test_a_run_may_name_a_ratio_or_the_popularity_of_facts(tiny_run: Make, store: ExposureStore) -> None:
    by_ratio = plan_of(tiny_run(infusion={"frequency": None, "ratio": 0.2}), store)
    assert by_ratio.infusion_ratio == pytest.approx(0.2, abs=30 / (160 * 64))
    popular = plan_of(tiny_run(infusion={"frequency": 4, "zipf_exponent": 1.0}), store)
    drawn = zipf_popularity(16, 1.0, seed=0)
    received = np.array(counts(popular, "infused", 16))
    assert received.sum() == 64
    assert abs(received - 4 * drawn).max() < 1


def test_a_run_may_list_the_frequency_of_each_fact(tiny_run: Make, store: ExposureStore, tmp_path: Path) -> None:
    wanted = np.arange(16) % 4
    path = tmp_path / "frequencies.tsv"
    lines = [f"{fact}\t{count}" for fact, count in zip(store.ids("infused"), wanted, strict=True)]
    path.write_text("\n".join([*reversed(lines), "", ""]), encoding="utf-8")
    plan = plan_of(tiny_run(infusion={"frequency": None, "frequencies": path}), store)
    assert counts(plan, "infused", 16) == wanted.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines, "nobody\t3"], r"f\.tsv:17: no infused fact has the id 'nobody'; see facts\.jsonl"),
        (lambda lines: [*lines, lines[3]], r"f\.tsv:17: lists '.+' again; list every fact once"),
        (lambda lines: lines[2:], r"f\.tsv: does not list 2 infused facts, the first is '.+'; list every fact; 0 is a"),
        (lambda lines: [lines[0].replace("\t", " ")], r"f\.tsv:1: is '.+ 3'; must be a fact's id, a tab and a whole"),
        (lambda lines: [lines[0][:-1] + "-3"], r"f\.tsv:1: is '.+-3'; must be a fact's id, a tab and a whole number"),
        (lambda lines: [lines[0][:-1] + "3.5"], r"f\.tsv:1: is '.+3\.5'; must be a fact's id, a tab and a whole"),
        (
            lambda lines: [lines[0][:-1] + "9" * 25],
            r"f\.tsv:1: is '.*9'; must be a fact's id, a tab and a whole number",
        ),
        (lambda lines: [lines[0][:-1] + "²"], r"f\.tsv:1: is '.+'; must be a fact's id, a tab and a whole number"),
        (lambda lines: [], r"f\.tsv: does not list 16 infused facts"),
    ],
    ids=["unknown", "twice", "missing", "no tab", "negative", "fraction", "huge", "power", "empty"],
)
def test_a_wrong_list_is_refused_by_its_line(
    tiny_run: Make,
    store: ExposureStore,
    tmp_path: Path,
    change: Callable[[list[str]], list[str]],
    message: str,
) -> None:
    path = tmp_path / "f.tsv"
    path.write_text("\n".join(change([f"{fact}\t3" for fact in store.ids("infused")])), encoding="utf-8")
    config = tiny_run(infusion={"frequency": None, "frequencies": path})
    with pytest.raises(InputError, match=message):
        listed_frequencies(config.infusion, store)


def test_a_list_that_is_not_there_is_refused_by_its_path(tiny_run: Make, store: ExposureStore, tmp_path: Path) -> None:
    config = tiny_run(infusion={"frequency": None, "frequencies": tmp_path / "none.tsv"})
    with pytest.raises(InputError, match=r"none\.tsv"):
        plan_of(config, store)


def test_a_run_goes_on_from_a_finished_one(tiny_run: Make, store: ExposureStore) -> None:
    first = tiny_run(name="first")
    second = tiny_run(
        name="second",
        extends=finished(first, store),
        training={"token_budget": 30 * 8 * 64},
        infusion={"frequency": 2, "schedule": "back_loaded"},
    )
    base, plan = plan_of(first, store), plan_of(second, store)
    assert isinstance(plan, ExtendedPlan)
    assert [plan[sequence] for sequence in range(len(base))] == list(base)
    assert len(plan) == 240
    assert counts(plan, "infused", 16) == [10] * 16
    assert plan.tail.inputs.schedule.description == "back_loaded"
    third = tiny_run(
        name="third",
        extends=finished(second, store),
        training={"token_budget": 40 * 8 * 64},
        infusion={"frequency": None, "ratio": 0.1},
    )
    longest = plan_of(third, store)
    assert [longest[sequence] for sequence in range(240)] == list(plan)
    assert isinstance(longest, ExtendedPlan) and isinstance(longest.base, ExtendedPlan)
    assert longest.tail.infusion_ratio == pytest.approx(0.1, abs=30 / (80 * 64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"sequence_length": 32}}, r"training\.sequence_length: is 32, the run it extends has 64; use 64"),
        ({"training": {"global_batch_size": 4}}, r"training\.global_batch_size: is 4, the run it extends has 8; use 8"),
        ({"training": {"seed": 1}}, r"training\.seed: is 1, the run it extends has 0; use 0"),
        ({"training": {"token_budget": 20 * 8 * 64}}, r"token_budget: 10240 tokens are less than one sequence more"),
    ],
    ids=["length", "batch", "seed", "budget"],
)
def test_a_run_of_other_settings_cannot_go_on_from_another(
    tiny_run: Make, store: ExposureStore, change: dict[str, Any], message: str
) -> None:
    folder = finished(tiny_run(name="first"), store)
    training = {"token_budget": 30 * 8 * 64, **change["training"]}
    with pytest.raises(InputError, match=message):
        plan_of(tiny_run(name="second", extends=folder, training=training), store)


def test_only_a_finished_run_is_extended(tiny_run: Make, store: ExposureStore) -> None:
    folder = finished(tiny_run(name="first"), store)
    (folder / "DONE").unlink()
    second = tiny_run(name="second", extends=folder, training={"token_budget": 30 * 8 * 64})
    with pytest.raises(InputError, match=rf"extends: {folder}: is not a finished run; finish it first"):
        plan_of(second, store)


def test_a_run_on_other_exposures_is_not_extended(tiny_run: Make, store: ExposureStore) -> None:
    folder = finished(tiny_run(name="first"), store, fingerprints={"exposures": "0123456789abcdef"})
    second = tiny_run(name="second", extends=folder, training={"token_budget": 30 * 8 * 64})
    with pytest.raises(InputError) as caught:
        plan_of(second, store)
    assert f"was trained on the exposures 0123456789ab, this run's are {store.fingerprint[:12]}" in str(caught.value)


def test_a_record_whose_plan_would_be_another_today_is_refused(tiny_run: Make, store: ExposureStore) -> None:
    first = tiny_run(name="first")
    old = json.loads(json.dumps(plan_of(first, store).identity())) | {"layout_version": 1}
    folder = finished(first, store, plan=old)
    second = tiny_run(name="second", extends=folder, training={"token_budget": 30 * 8 * 64})
    with pytest.raises(InputError, match=r"another exposure plan .* layout_version was 1, is \d"):
        plan_of(second, store)
