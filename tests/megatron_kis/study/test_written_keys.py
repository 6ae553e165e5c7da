"""Errors about the runs of a study name the key of its file, the run, and what would be right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megatron_kis.cli.main import main
from megatron_kis.common.configuration import parse_config
from megatron_kis.common.errors import InputError
from megatron_kis.config.study import StudyConfig
from megatron_kis.study.specs import expand_grid
from megatron_kis.study.written import naming_keys, written_key
from tests.sources import Sources
from tests.studies import GRID_STUDY, write_study

SIZE = "layers: 1, width: 16, heads: 2"
CELL = "size: 1x16, tokens: 5120"
OWN = "frequencies=[]"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_sources: Sources) -> Path:
    """A study whose data are made."""
    path = write_study(tmp_path_factory.mktemp("written"), tiny_sources, frequencies=[0, 8])
    assert main(["study", "plan", str(path)]) == 0
    return path


@pytest.mark.parametrize(
    ("changes", "key", "run"),
    [
        (["infusion_ratios=[0.99]"], "infusion_ratios", "1x16_D5.12k_R0.99_s0"),
        ([f"ladder=[{{{SIZE}, infusion_ratios: [0.99]}}]"], "ladder.0.infusion_ratios", "1x16_D5.12k_R0.99_s0"),
        ([f"runs=[{{{CELL}, infusion_ratio: 0.99}}]"], "runs.0.infusion_ratio", "1x16_D5.12k_R0.99_s0"),
        (["infusion_ratios=[0.5]", "trunk.share=0.6"], "infusion_ratios", "1x16_D5.12k_R0.5_s0"),
        (["infusion_ratios=[0.4]", "trunk.share=0.6"], "infusion_ratios", "1x16_D5.12k_R0.4_s0"),
        (["frequencies=[8, 400]"], "frequencies", "1x16_D5.12k_F400_s0"),
        ([f"ladder=[{{{SIZE}, frequencies: [400]}}]"], "ladder.0.frequencies", "1x16_D5.12k_F400_s0"),
        ([f"runs=[{{{CELL}, frequency: 400, facts: 4, seed: 3}}]"], "runs.0.frequency", "1x16_D5.12k_K4_F400_s3"),
    ],
)
def test_a_dose_that_does_not_fit_is_named_with_the_largest_that_does(
    study: Path, changes: list[str], key: str, run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [] if changes[0].startswith("frequencies=") else [OWN]
    line = refused(study, [*own, *changes], capsys)
    found = re.fullmatch(rf"kis: error: {key}: run {run}: .*; the largest that fits is about ([\d.]+), or .*", line)
    assert found, line
    wrong = re.search(r"_[RF]([\d.]+)_s", run)
    assert wrong is not None
    fits = [change.replace(wrong[1], found[1]) for change in changes]
    assert main(["study", "plan", str(study), *own, *fits]) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["background.frequency=400"], "background.frequency: run 1x16_D5.12k_F0_s0: 16 background facts x 400"),
        (["background=[{facts: 9, frequency: 400}]"], "background: run 1x16_D5.12k_F0_s0: 9 background facts x 400"),
        (
            ["background={policy: protected, groups: [{facts: 9, frequency: 400}]}"],
            "background: run 1x16_D5.12k_F0_s0: 9 background facts x 400",
        ),
        (
            ["training.sequence_length=8"],
            "training.sequence_length: run 1x16_D5.12k_F8_s0: an exposure of town_",
        ),
        (["trunk.share=0.01"], "trunk.share: run 1x16_D5.12k_F8_s0: 0.01 of 10 steps is step 0; use a share from 1/10"),
        (["schedule=unform"], "schedule: run 1x16_D5.12k_F8_s0: "),
        (["templates=9"], "templates: run 1x16_D5.12k_F8_s0: "),
        (["token_budgets=[5120, 9]"], "token_budgets: run 1x16_D9_F8_s0: 9 is less than one step of 8 x 64 tokens"),
        ([f"runs=[{{{CELL[:-4]}9, frequency: 1}}]"], "runs.0.tokens: run 1x16_D9_F1_s0: 9 is less than one step"),
        ([f"ladder=[{{{SIZE}, token_budgets: [9]}}]"], "ladder.0.token_budgets: run 1x16_D9_F8_s0: 9 is less than"),
        ([f"ladder=[{{{SIZE}, micro_batch_size: 3}}]"], "ladder.0.micro_batch_size: run 1x16_D5.12k_F8_s0: "),
        (
            ["training.micro_batch_size=3"],
            "training.micro_batch_size: run 1x16_D5.12k_F8_s0: global_batch_size must be a multiple of",
        ),
        ([f"ladder=[{{{SIZE}, parallel: {{tensor: 3}}}}]"], "ladder.0.parallel.tensor: run 1x16_D5.12k_F8_s0: "),
        (["infusion_ratios=[0.002]"], "infusion_ratios: run 1x16_D5.12k_R0.002_s0: 0.002 of 5,120 tokens shows each"),
    ],
)
def test_a_setting_of_runs_is_named_as_the_study_writes_it(
    study: Path, changes: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    frequencies = "frequencies=[0]" if "background" in changes[0] else "frequencies=[8]"
    assert refused(study, [frequencies, *changes], capsys).startswith(f"kis: error: {message}")


def test_every_key_of_a_dose_is_found_where_it_was_written() -> None:
    ladder = [{"preset": "cpu-32"}, {"preset": "cpu-48", "facts": [5], "seeds": [2], "token_budgets": [200_000]}]
    listed = [{"size": "cpu-32", "tokens": 300_000, "frequency": 9, "facts": 7, "seed": 8}]
    config = parse_config(StudyConfig, {**GRID_STUDY, "ladder": ladder, "runs": listed}, source="study")
    specs = {spec.name: spec for spec in expand_grid(config)}
    keys = ("infusion.facts", "infusion.frequency", "infusion.begins", "training.seed", "training.token_budget")
    for name, expected in (
        ("cpu-32_D100k_F7_s0", ("facts", "frequencies", "trunk.share", "seeds", "token_budgets")),
        (
            "cpu-48_D200k_K5_F7_s2",
            ("ladder.1.facts", "frequencies", "trunk.share", "ladder.1.seeds", "ladder.1.token_budgets"),
        ),
        (
            "cpu-32_D300k_K7_F9_s8",
            ("runs.0.facts", "runs.0.frequency", "trunk.share", "runs.0.seed", "runs.0.tokens"),
        ),
    ):
        assert tuple(written_key(config, specs[name], key) for key in keys) == expected


def test_what_is_no_setting_stays_as_it_is() -> None:
    config = parse_config(StudyConfig, GRID_STUDY, source="study")
    spec = expand_grid(config)[0]
    for where in ("corpus.bin", "extends: some/run", None):
        with pytest.raises(InputError) as caught, naming_keys(config, spec.name):
            raise InputError("is wrong", where=where)
        assert caught.value.where == where


def refused(study: Path, changes: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Returns the last line of the error with which a plan of the changed study ends."""
    capsys.readouterr()
    assert main(["study", "plan", str(study), *changes]) == 2
    return capsys.readouterr().err.splitlines()[-1]
