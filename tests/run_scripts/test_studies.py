"""The study files that come with the software: each is valid, its layouts fit, and its comment says what it costs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from megatron_kis.cli.main import main
from megatron_kis.cli.study.common import data_config, load_study
from megatron_kis.common.configuration import load_config
from megatron_kis.config.run import RunConfig
from megatron_kis.study.grid import runs_of

STUDIES = sorted((Path(__file__).parents[2] / "run_scripts" / "studies").glob("*.yaml"))
PRICED = ["cpu-small", "frontier", "paper", "quickstart", "reference", "single-gpu"]
FACT_TOKENS = 20  # an exposure of Wikidata's facts, about; the comments say so


def study_of(name: str) -> Path:
    return next(path for path in STUDIES if path.stem == name)


def runs(path: Path) -> list[RunConfig]:
    study = load_study(argparse.Namespace(study=path, overrides=[]))
    return runs_of(study, data_config(study))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_file_is_valid_and_its_runs_have_folders_of_their_own(path: Path) -> None:
    found = runs(path)
    assert len({run.output for run in found}) == len(found)
    assert path.stem == "template" or {run.study for run in found} == {path.stem}


@pytest.mark.parametrize("name", PRICED)
def test_the_comment_of_a_study_says_what_the_plan_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(study_of(name)), "--gpu", "h100"]) == 0
    total = capsys.readouterr().out.splitlines()[-1]
    assert f"#   {total}" in study_of(name).read_text().splitlines()


@pytest.mark.parametrize("name", PRICED)
def test_the_layouts_of_a_study_fit_as_they_are_written(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(study_of(name)), "--gpu", "h100", "--json"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert models and all(row["as_written"] for row in models)


def test_the_single_gpu_study_takes_less_than_a_day_even_at_a_low_utilisation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", str(study_of("single-gpu")), "--mfu", "0.1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["gpus"] for row in found["models"]} == {1}
    assert found["gpu_hours"] < 24


def test_the_papers_ladder_is_the_papers() -> None:
    found = runs(study_of("paper"))
    assert {run.model.preset for run in found} == {"137m", "410m", "1b", "3b"}
    assert max(run.training.token_budget for run in found) == 100_000_000_000


@pytest.mark.parametrize("name", ["single-gpu", "paper", "frontier"])
def test_exposures_leave_room_and_budgets_share_their_ratios(name: str) -> None:
    study = load_study(argparse.Namespace(study=study_of(name), overrides=[]))
    groups = study.background.groups
    assert len(groups) > 1 and study.background.policy == "protected"
    assert sum(group.facts for group in groups) == study.data.select.background
    background = sum(group.facts * group.frequency for group in groups) * FACT_TOKENS
    shares: dict[int, list[float]] = {}
    for run in runs_of(study, data_config(study)):
        share = run.infusion.ratio
        if share is None:
            assert run.infusion.frequency is not None
            shown = (run.infusion.facts or 0) * run.infusion.frequency
            share = shown * FACT_TOKENS / run.training.token_budget
            shares.setdefault(run.training.token_budget, []).append(share)
        assert share + background / run.training.token_budget < 0.95
    assert all(max(found) == pytest.approx(0.81, abs=0.01) for found in shares.values())


@pytest.mark.parametrize(("name", "relations"), [("single-gpu", 6), ("paper", 6), ("template", 3)])
def test_a_study_asks_how_many_facts_and_how_often(name: str, relations: int) -> None:
    """Every K has whole blocks of facts that share their options; no curve has two doses; a share shows each fact."""
    study = load_study(argparse.Namespace(study=study_of(name), overrides=[]))
    found = runs_of(study, data_config(study))
    doses: dict[tuple[str, int, str], set[float]] = {}
    ratios: dict[tuple[str, int, int], set[float]] = {}
    for run in found:
        facts, budget = run.infusion.facts, run.training.token_budget
        assert (facts or 0) % ((study.data.select.distractors + 1) * relations) == 0
        if run.infusion.ratio is not None:
            assert facts is not None and run.infusion.ratio * budget > 10 * facts * FACT_TOKENS
            doses.setdefault((run.model.label, budget, "facts"), set()).add(facts)
            ratios.setdefault((run.model.label, budget, facts), set()).add(run.infusion.ratio)
        elif run.infusion.frequency:
            doses.setdefault((run.model.label, budget, "frequency"), set()).add(run.infusion.frequency)
    for (size, budget, _), often in ratios.items():
        if len(often) > 3:  # as often as several shares of the tokens allow
            doses.setdefault((size, budget, "frequency"), set()).update(often)
    unshown = {(run.model.label, run.training.token_budget) for run in found if run.infusion.frequency == 0}
    assert {axis for *_, axis in doses} == {"facts", "frequency"}
    assert all(len(levels) >= 2 and (size, budget) in unshown for (size, budget, _), levels in doses.items())
    sizes = [{size for size, _, axis in doses if axis == one} for one in ("facts", "frequency")]
    assert sizes[0] == sizes[1]
    assert study.analysis.axis == "auto"
    assert study.probes.facts_per_group and study.probes.facts_per_group < study.data.select.infused


@pytest.mark.parametrize("key", ["data", "background", "probes", "validation", "training", "facts", "analysis"])
def test_the_frontier_is_comparable_with_the_papers_ladder(key: str) -> None:
    paper, frontier = (
        load_study(argparse.Namespace(study=study_of(name), overrides=[])).model_dump()
        for name in ("paper", "frontier")
    )
    for study in (paper, frontier):
        study["data"].pop("tokenizer")  # the frontier takes the one that the other trains
    assert frontier[key] == paper[key]


def test_the_example_of_a_run_reads_the_data_that_the_quickstart_makes() -> None:
    path = STUDIES[0].parents[1] / "runs" / "example.yaml"
    run = load_config(RunConfig, path)
    quickstart = runs(study_of("quickstart"))[0]
    for key in ("corpus", "validation", "exposures", "tokenizer"):
        own, made = (getattr(one.data, key) for one in (run, quickstart))
        assert [Path(where).resolve() for where in _places(own)] == [Path(where).resolve() for where in _places(made)]
    assert run.output.resolve() == path.parents[2] / "runs" / "example"


def _places(value: object) -> list[object]:
    return [getattr(one, "path", one) for one in value] if isinstance(value, tuple | list) else [value]
