"""Which facts a run shows stays the same when its study asks other questions."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_kis.config.run import RunConfig
from megatron_kis.data_tools.preparation.prepare import DataPrepConfig, prepare_questions
from megatron_kis.data_tools.selection.select import SelectConfig
from megatron_kis.probes.infusion_order import infusion_order
from megatron_kis.training.artifacts import as_begun, keep_inputs, open_run
from megatron_kis.training.inputs import Inputs, open_inputs
from megatron_kis.training.trainer import train
from tests.conftest import TINY_SELECTION, TINY_VOCABULARY
from tests.runs import cut_off
from tests.sources import Sources

MakeRun = Callable[..., RunConfig]


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


def ask_otherwise(data: Path, sources: Sources) -> None:
    """Makes the questions again with one wrong option each, so that other facts share their options."""
    settings = DataPrepConfig(
        text=(sources.text,),
        facts=sources.triples,
        templates=sources.templates,
        vocab_size=TINY_VOCABULARY,
        select=SelectConfig(**TINY_SELECTION, distractors=1),
        validation_share=0.05,
    )
    prepare_questions(settings, data)


def on(make: MakeRun, data: Path, **changes: object) -> RunConfig:
    names = {"corpus": "corpus", "validation": "corpus.validation", "exposures": "exposures"}
    files = {name: data / file for name, file in names.items()} | {"tokenizer": data / "tokenizer.model"}
    return make(data=files, **{"infusion": {"facts": 5}, **changes})


def shown(inputs: Inputs) -> list[bool]:
    return [bool(count) for count in inputs.plan.expected("infused").tolist()]


def test_runs_that_start_later_show_the_same_facts_and_keep_what_tells_their_order(
    tiny_run: MakeRun, data: Path, tiny_sources: Sources
) -> None:
    config = on(tiny_run, data)
    before = open_inputs(config)
    ask_otherwise(data, tiny_sources)
    after = open_inputs(config)
    assert after.fingerprints["questions"] != before.fingerprints["questions"]
    assert after.fingerprints["order"] == before.fingerprints["order"]
    assert shown(after) == shown(before)
    assert {question.fact for question in after.questions.questions if question.group == "infused"} == {
        question.fact for question in before.questions.questions if question.group == "infused"
    }
    kept = keep_inputs(config.output, config, after.tokenizer, after.fingerprints["questions"])
    assert kept["order"] == "inputs/order.jsonl.gz"
    own = open_inputs(config, questions=config.output / kept["questions"])
    assert own.fingerprints == after.fingerprints
    (data / "exposures.order.jsonl").unlink()  # so that the questions of now tell it
    assert open_inputs(config).fingerprints["order"] != before.fingerprints["order"]
    assert infusion_order(after.questions) != infusion_order(before.questions)


@pytest.mark.slow
def test_a_run_that_was_cut_off_goes_on_with_the_facts_and_the_questions_that_it_began_with(
    tiny_run: MakeRun, data: Path, tiny_sources: Sources, tmp_path: Path
) -> None:
    often = {"checkpoints": {"moments": {"every": 5}, "asynchronous": False}, "probes": {"moments": {"every": 6}}}
    config = on(tiny_run, data, **often)
    cut_off(config, 13)
    begun = open_run(config.output).record["fingerprints"]
    ask_otherwise(data, tiny_sources)
    changed = on(tiny_run, data, **often | {"probes": {"moments": {"every": 4}, "templates": {"held_out": 1}}})
    going_on, questions = as_begun(changed)
    assert questions == config.output / "inputs" / "questions.jsonl.gz"
    assert going_on.probes.templates == config.probes.templates
    assert going_on.probes.moments == changed.probes.moments
    train(changed)
    record = open_run(config.output).record
    assert {name: record["fingerprints"][name] for name in begun} == begun
    assert [session["from_step"] for session in record["sessions"]] == [0, 10]
    sizes = {path.stat().st_size > 0 for path in (config.output / "outcomes").glob("step-*.npz")}
    assert sizes == {True}


@pytest.mark.slow
def test_a_run_that_begins_anew_is_asked_the_questions_of_now(
    tiny_run: MakeRun, data: Path, tiny_sources: Sources
) -> None:
    config = on(tiny_run, data)
    cut_off(config, 3)  # before its first checkpoint
    assert (config.output / "inputs" / "questions.jsonl.gz").exists()
    (config.output / "asked" / "x").mkdir(parents=True)  # of an earlier training
    ask_otherwise(data, tiny_sources)
    now = open_inputs(config).fingerprints
    train(config)
    record = open_run(config.output).record
    assert {name: record["fingerprints"][name] for name in now} == now
    assert not (config.output / "asked").exists()
