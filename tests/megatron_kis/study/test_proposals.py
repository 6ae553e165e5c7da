from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_kis.common.configuration import load_config, parse_config
from megatron_kis.common.errors import InputError
from megatron_kis.config.study import ListedRun, StudyConfig
from megatron_kis.study.proposals import PlannedRun, Wanted, add_runs, match_proposals, trained_cells
from megatron_kis.study.specs import expand_grid
from tests.studies import GRID_STUDY

SMALL, LARGE = (70_000, 99_968), (90_000, 249_984)  # N and D as they are trained: whole vocabularies, whole batches


def study(**changes: Any) -> StudyConfig:
    return parse_config(StudyConfig, {**GRID_STUDY, **changes}, source="study")


def cells(of: StudyConfig) -> dict[tuple[int, int], tuple[str, int]]:
    return trained_cells(of, [("cpu-32_D100k_F0_s0", *SMALL), ("3x32_D250k_F7_s4", *LARGE), ("elsewhere", 1, 2)])


def all_names(of: StudyConfig) -> list[str]:
    return [spec.name for spec in expand_grid(of)]


def test_proposals_become_runs_of_the_ladder_with_free_seeds() -> None:
    planned = study()
    proposals = [Wanted(*SMALL, 3.0), Wanted(*LARGE, 7.0), Wanted(*LARGE, 7.0)]
    found = match_proposals(planned, proposals, cells(planned), all_names(planned))
    assert found == [
        PlannedRun(
            ListedRun(size="cpu-32", tokens=100_000, frequency=3, seed=0)
        ),  # a new level: the study's first seed
        PlannedRun(ListedRun(size="3x32", tokens=250_000, frequency=7, seed=1)),  # 0 and 4 are there
        PlannedRun(ListedRun(size="3x32", tokens=250_000, frequency=7, seed=2)),
    ]
    study(runs=[item.run.model_dump(exclude_none=True) for item in found if item.run])  # and the study takes them


def test_what_is_planned_and_not_done_is_not_planned_again() -> None:
    listed = {"size": "cpu-32", "tokens": 100_000, "frequency": 3, "seed": 5}
    planned = study(runs=[listed])
    done = all_names(study())
    first, second = match_proposals(planned, [Wanted(*SMALL, 3.0), Wanted(*SMALL, 3.0)], cells(planned), done)
    assert first == PlannedRun(ListedRun(**listed), planned=True)
    assert second == PlannedRun(ListedRun(**{**listed, "seed": 0}))
    (after,) = match_proposals(planned, [Wanted(*SMALL, 3.0)], cells(planned), [*done, "cpu-32_D100k_F3_s5"])
    assert after == PlannedRun(ListedRun(**{**listed, "seed": 0}))


def test_a_proposal_keeps_its_number_of_facts_and_its_ratio() -> None:
    planned = study(facts=[20, 100], infusion_ratios=[0.25], data={**GRID_STUDY["data"], "select": {"infused": 100}})
    proposals = [
        Wanted(*SMALL, 7.4, facts=20),
        Wanted(*SMALL, 9.0, facts=40),
        Wanted(*SMALL, 31.7, facts=40, ratio=0.25),
        Wanted(*SMALL, 31.7, facts=20, ratio=0.25),
        Wanted(*SMALL, 7.0, facts=100),
        Wanted(*SMALL, 0.0, facts=100),
    ]
    known = trained_cells(planned, [("cpu-32_D100k_F0_s0", *SMALL)])
    cell = {"size": "cpu-32", "tokens": 100_000}
    found = match_proposals(planned, proposals, known, all_names(planned))
    assert [item.run for item in found] == [
        ListedRun(**cell, facts=20, frequency=7, seed=1),
        ListedRun(**cell, facts=40, frequency=9, seed=0),
        ListedRun(**cell, facts=40, infusion_ratio=0.25, seed=0),
        ListedRun(**cell, facts=20, infusion_ratio=0.25, seed=1),
        ListedRun(**cell, facts=100, frequency=7, seed=1),  # as the study names them
        ListedRun(**cell, frequency=0, seed=1),
    ]
    waiting = [name for name in all_names(planned) if name != "cpu-32_D100k_K20_R0.25_s4"]
    again = match_proposals(planned, [Wanted(*SMALL, 31.7, facts=20, ratio=0.25)], known, waiting)
    assert again == [PlannedRun(ListedRun(**cell, facts=20, infusion_ratio=0.25, seed=4), planned=True)]


def test_a_proposal_of_all_facts_names_no_number_where_the_study_does_not() -> None:
    planned = study(data={**GRID_STUDY["data"], "select": {"infused": 50}})
    proposals = [Wanted(*SMALL, 3.0, facts=50), Wanted(*SMALL, 3.0, facts=49)]
    found = match_proposals(planned, proposals, cells(planned), all_names(planned))
    assert [item.run.facts for item in found if item.run] == [None, 49]


def test_a_model_that_is_no_size_of_the_study_has_no_place() -> None:
    planned = study()
    found = match_proposals(planned, [Wanted(1, 2, 5.0), Wanted(*SMALL, 3.0)], cells(planned), all_names(planned))
    assert [item.run is None for item in found] == [True, False]


HEAD = "# mine\nname: s\nladder: # sizes\n  - {preset: cpu-32}   # small\n"
OLD = {"size": "cpu-32", "tokens": 10, "frequency": 1}
NEW = [ListedRun(size="cpu-32", tokens=100_000, frequency=3, seed=1), ListedRun(size="7b", tokens=5, frequency=0)]


@pytest.mark.parametrize(
    ("tail", "kept"),
    [
        ("", ""),
        ("seeds: [0]", "seeds: [0]"),
        ("runs:\n", ""),
        ("runs: []  # none yet\nseeds: [0]\n", "runs:  # none yet\n  # from next\n"),
        ("runs: [{size: cpu-32, tokens: 10, frequency: 1}]\n", "{size: cpu-32, tokens: 10, frequency: 1}"),
        (
            "runs: [\n  {size: cpu-32, tokens: 10, frequency: 1},  # few, as yet\n  # more to come\n]\nseeds: [0]\n",
            "frequency: 1},  # few, as yet\n  # more to come\n  # from next\n  {size: cpu-32",
        ),
        (
            "runs: [{size: cpu-32, tokens: 10, frequency: 1}  # few, as yet\n]  # the end\n",
            "frequency: 1},  # few, as yet\n  # from next\n  {size: cpu-32",
        ),
        (
            "runs:   # by hand\n- {size: cpu-32, tokens: 10, frequency: 1}  # first\n\n# the end\nseeds: [0]\n",
            "runs:   # by hand\n- {size: cpu-32, tokens: 10, frequency: 1}  # first\n# from next\n",
        ),
        (
            "runs:\n    - size: cpu-32\n      tokens: 10   # few\n      frequency: 1\n\n\nseeds: [0]\n",
            "      tokens: 10   # few\n      frequency: 1\n    # from next\n    - {size: cpu-32",
        ),
    ],
)
def test_runs_are_added_to_a_study_file_that_otherwise_stays_as_it_is(tmp_path: Path, tail: str, kept: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(HEAD + tail)
    before = yaml.safe_load(path.read_text())
    add_runs(path, NEW, remark="from next")
    text = path.read_text()
    assert text.startswith(HEAD)
    assert kept in text
    assert text.count("# from next\n") == 1
    old = [OLD] if "size: cpu-32" in tail else []
    assert yaml.safe_load(text) == {**before, "runs": [*old, *(run.model_dump(exclude_none=True) for run in NEW)]}
    again = [ListedRun(size="cpu-32", tokens=100_000, frequency=3, seed=2)]
    add_runs(path, again, remark="from next again")
    assert yaml.safe_load(path.read_text())["runs"][-1] == again[0].model_dump(exclude_none=True)
    assert len(yaml.safe_load(path.read_text())["runs"]) == len(old) + 3
    assert [file.name for file in tmp_path.iterdir()] == ["study.yaml"]


def test_a_file_in_which_there_is_no_place_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text('{"name": "s", "ladder": [{"preset": "cpu-32"}]}\n')
    with pytest.raises(InputError, match=r"runs: found no place for more runs; add by hand: \{size: cpu-32"):
        add_runs(path, NEW, remark="from next")
    assert path.read_text() == '{"name": "s", "ladder": [{"preset": "cpu-32"}]}\n'


def test_the_file_behind_a_link_is_changed_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "real.yaml").write_text(yaml.safe_dump(GRID_STUDY))
    (tmp_path / "study.yaml").symlink_to("real.yaml")
    add_runs(tmp_path / "study.yaml", NEW[:1], remark="from next")
    assert (tmp_path / "study.yaml").is_symlink()
    assert load_config(StudyConfig, tmp_path / "real.yaml").runs == tuple(NEW[:1])


def test_runs_are_added_to_a_file_with_words_that_yaml_takes_for_booleans(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: s\ndata: {select: {relations: [no, on]}}\nparallel: {sequence: off}\n", encoding="utf-8")
    add_runs(path, [ListedRun(size="cpu-32", tokens=100_000, frequency=3, seed=0)], remark="a remark")
    assert "cpu-32" in path.read_text(encoding="utf-8")
