"""What an analysis will ask for is checked before anything is made or trained."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_kis.checkpoint.start import START_SCHEMA
from megatron_kis.cli.main import main
from megatron_kis.config.model import ModelConfig
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from megatron_kis.study import preflight
from tests.sources import Sources
from tests.studies import write_study


@pytest.fixture
def study(tmp_path: Path, tiny_sources: Sources, tiny_data: Path) -> Path:
    """A study whose data are there, with templates of its own to change."""
    shutil.copytree(tiny_data, tmp_path / "out" / "data")
    templates = tmp_path / "templates.yaml"
    shutil.copy(tiny_sources.templates, templates)
    return write_study(tmp_path, Sources(tiny_sources.text, tiny_sources.triples, templates))


def refused(study: Path, command: str, capsys: pytest.CaptureFixture[str], *changes: str) -> str:
    before = sorted(study.parent.rglob("*"))
    capsys.readouterr()
    assert main(["study", *command.split(), str(study), *changes]) == 2
    assert sorted(study.parent.rglob("*")) == before
    return capsys.readouterr().err


def without(study: Path, *relations: str, split: str = "held_out") -> None:
    path = study.parent / "templates.yaml"
    content = yaml.safe_load(path.read_text())
    for relation in relations:
        del content[relation][split]
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def planned(study: Path, capsys: pytest.CaptureFixture[str], *changes: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["study", "plan", str(study), "--json", *changes]) == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


def remarks(study: Path, capsys: pytest.CaptureFixture[str], *changes: str) -> dict[str, str]:
    design = planned(study, capsys, *changes)["design"]
    found: dict[str, str] = {}
    for remark in design["remarks"]:
        found[remark["key"]] = f"{found.get(remark['key'], '')}{remark['problem']}; {remark['change']}\n"
    return found


COMMANDS = ["plan", "run", "submit --dry-run"]
WRONG = {
    "analysis.split=heldout": "'heldout' is not a split of the templates; did you mean 'held_out'?",
    "analysis.scoring=statment": "scoring=statment: 'statment' is not a scoring rule; did you mean 'statement'?",
    "probes.templates={train: 1}": (
        "analysis.split: 'held_out' is not asked, probes.templates leaves held_out out; ask for it there, or analyse "
        "one that is asked: train"
    ),
    "probes.templates={train: 1, held_out: 0}": "probes.templates has 0 of held_out",
    "analysis.law=N and E": "analysis.law: unknown law 'N and E'; did you mean 'N and D'?",
}


@pytest.mark.parametrize("command", [*COMMANDS, "next --params=1e6", "report"])
@pytest.mark.parametrize("change", WRONG)
def test_what_no_probe_or_law_has_is_refused_with_the_nearest(
    study: Path, command: str, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "law" in change and command not in COMMANDS:
        pytest.skip("there are no runs yet, which is said first")
    assert WRONG[change] in refused(study, command, capsys, change)


@pytest.mark.parametrize("command", COMMANDS)
def test_templates_that_cannot_be_asked_are_refused_before_the_data_are_made(
    study: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    without(study, "town_region", "painter_teacher")
    said = refused(study, command, capsys)
    assert (
        f"{study.parent / 'templates.yaml'}: held_out: no relation of the infused facts has a held_out sentence" in said
    )
    assert "painter_teacher" in said
    assert "change analysis.split" in said


def test_the_relations_of_each_group_count(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without(study, "town_region")
    change = (
        "data.select={infused: 8, background: 8, control: 8, infused_relations: [painter_teacher], "
        "background_relations: [town_region], control_relations: [town_region]}"
    )
    assert "no relation of the background facts has a held_out sentence: town_region" in refused(
        study, "run", capsys, change
    )


def test_answers_that_begin_their_sentence_have_no_pmi(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = study.parent / "templates.yaml"
    content = yaml.safe_load(path.read_text())
    for lists in content.values():
        lists["held_out"] = ["[Y] is what goes with [X]."]
    path.write_text(yaml.safe_dump(content))
    said = refused(study, "run", capsys, "analysis.scoring=pmi")
    assert "with words before the object, which scoring pmi needs" in said


@pytest.mark.parametrize(("key", "change"), [("tensorboard", "true"), ("wandb", "offline")])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_tracker_that_is_not_installed_is_refused_before_the_first_run(
    study: Path,
    command: str,
    key: str,
    change: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == key else found(name, *rest))
    said = refused(study, command, capsys, f"logging.{key}={change}")
    assert f"logging.{key}: the package {key} is not installed; pip install {key}" in said


def test_a_relation_without_sentences_is_named_with_the_facts_that_it_costs(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(study.parent / "out")
    without(study, "town_region")
    (said,) = [text for key, text in remarks(study, capsys).items() if "town_region" in key]
    assert "town_region has no held_out sentence; 8 of 16" in said
    assert "facts are in no result; add some before training" in said


def test_what_makes_a_study_weak_is_said_by_key(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = remarks(study, capsys, "predict=[1e6]")
    assert "1 model of 1 size can carry none" in found["ladder"]
    assert "every model has fewer than the 4 levels of F" in found["frequencies"]
    assert "16 background facts and 1 seed show a fall of" in found["data.select.background"]
    found = remarks(study, capsys, "frequencies=[3,8]", "background.frequency=0")
    assert "no model is trained without infusion" in found["frequencies"]
    assert (
        "is 0: no background fact is shown, so there is nothing that a model could lose"
        in found["background.frequency"]
    )
    found = remarks(study, capsys, "probes.templates={held_out: 5}")
    assert "asks for 5, and " in found["probes.templates.held_out"]
    said = refused(study, "plan", capsys, "frequencies=[3,8]", "analysis.criterion=general_loss")
    assert "frequencies: no model is trained without infusion" in said


def test_the_plan_and_the_commands_that_train_say_it(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "plan", str(study), "predict=[1e6]"]) == 0
    printed = capsys.readouterr().out
    assert "design check: what this study can show\n- infused: 16 facts, 1 seed: " in printed
    assert "change before training:\n- " in printed
    assert "- ladder: predict asks for a law" in printed
    assert main(["study", "submit", "--dry-run", str(study), "predict=[1e6]"]) == 0
    assert "small: ladder: predict asks for a law" in capsys.readouterr().err


def test_the_design_is_in_the_plan_for_machines(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = planned(study, capsys, "frequencies=[0,2,4,6,8]", "predict=[1e6]")
    assert {row["run"] for row in content["runs"]} >= {"1x16_D5.12k_F0_s0"}
    design = content["design"]
    assert (design["dose"], design["held"]) == ("F", "")
    assert {power["group"] for power in design["powers"]} == {"infused", "background"}
    assert {one["kind"] for one in design["simulated"]} == {"collapse", "onset"}
    assert design["known"][0]["exposures"] == 4
    assert not design["known"][0]["likely"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_size_that_is_not_its_starts_is_refused_before_the_data_are_made(
    study: Path,
    command: str,
    tiny_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.rmtree(study.parent / "out")
    start = study.parent / "start"
    start.mkdir()
    shape = ModelConfig(layers=1, width=16, heads=2).shape()
    content = {"schema": START_SCHEMA, "model": shape.as_dict(), "vocabulary": 512, "files": {}}
    for positions, width, complaint in (
        (16, 16, r"training\.sequence_length: .*made for 16 positions at most"),
        (512, 32, r"ladder\.0\.width: .*is 32, that of the start 16"),
    ):
        (start / "start.json").write_text(json.dumps({**content, "max_position_embeddings": positions}))
        entry = {"layers": 1, "width": width, "heads": 2, "init_from": str(start)}
        assert re.search(complaint, refused(study, command, capsys, f"ladder={json.dumps([entry])}"))
    entry["width"] = 16
    read: list[Path] = []
    monkeypatch.setattr(preflight, "load_tokenizer", lambda path: load_tokenizer(read.append(path) or path))
    (start / "start.json").write_text(json.dumps({**content, "max_position_embeddings": None}))
    sizes = [{**entry, "name": f"w{rate}", "learning_rate": rate} for rate in (0.1, 0.2, 0.3)] + [
        {**entry, "width": 32}
    ]
    tokenizer = tiny_data / "tokenizer.model"
    refused(study, command, capsys, f"ladder={json.dumps(sizes)}", f"data.tokenizer={tokenizer}")
    assert read == [tokenizer]  # once, however many sizes begin with it
    own = {"file": "tokenizer.json", "fingerprint": "another", "eod_id": 1}
    (start / "start.json").write_text(json.dumps({**content, "tokenizer": own}))
    given = [f"ladder={json.dumps([entry])}", f"data.tokenizer={tiny_data / 'tokenizer.model'}"]
    assert "that of the start another; make the data with" in refused(study, command, capsys, *given)
    shutil.rmtree(start)
    gone = refused(study, command, capsys, f"ladder={json.dumps([entry])}")
    assert re.search(r"ladder\.0\.init_from: run \S+: .*start\.json: no such file", gone)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (("training.precision=bf16",), "training.precision: is bf16; a CPU cannot train in bf16"),
        (("training.precision=fp8",), "training.precision: is fp8, which needs CUDA"),
        (("ladder=[{layers: 1, width: 16, heads: 2, transformer_impl: transformer_engine}]",), "which needs CUDA"),
    ],
)
def test_what_the_device_cannot_train_is_refused_before_training(
    study: Path,
    changes: tuple[str, ...],
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert told in refused(study, "plan", capsys, "device=cpu", *changes)
    assert planned(study, capsys, "device=auto", *changes)  # the runs may be executed on another machine
    assert told in refused(study, "run", capsys, "device=auto", *changes)


def test_a_study_for_cuda_is_refused_where_there_is_none(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "device: no CUDA device is available" in refused(study, "run", capsys, "device=cuda")
