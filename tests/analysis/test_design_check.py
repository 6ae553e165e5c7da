"""What a study can show is judged before it is trained, from its sizes, levels, seeds and facts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from megatron_kis.analysis.criteria.dispersion import expected_dispersion, study_dispersion
from megatron_kis.analysis.design.advice import advice
from megatron_kis.analysis.design.known import APART, TOGETHER, half_known, known_share
from megatron_kis.analysis.design.outline import Outline, outline_of, sketch
from megatron_kis.analysis.design.requirements import requirements
from megatron_kis.analysis.design_check import DesignCheck, design_check
from megatron_kis.analysis.runs.slices import FACTS, RATIO, Slice
from megatron_kis.analysis.simulate import Truth, simulate_curve
from megatron_kis.common.configuration import parse_config
from megatron_kis.common.errors import InputError
from megatron_kis.config.analysis import AnalysisConfig
from megatron_kis.config.study import StudyConfig
from tests.analysis.points import point
from tests.pages import ROOT

RESULTS = ROOT / "docs" / "study" / "results"
TEXT = {"text": ["t.jsonl"], "facts": "f.tsv", "templates": "t.yaml", "vocab_size": 2048}
SIZES = [{"layers": 2, "width": width, "heads": 2} for width in (24, 32, 40, 48, 64, 80)]


def study(**changes: Any) -> StudyConfig:
    facts = changes.pop("select", {"infused": 120, "background": 120, "control": 120})
    content: dict[str, Any] = {
        "name": "s",
        "output": "out",
        "data": {**TEXT, "select": facts},
        "ladder": SIZES,
        "token_budgets": [2_000_000],
        "frequencies": [0, 40, 80, 160, 320, 480, 600, 700],
        "seeds": [0, 1],
        "training": {"sequence_length": 128, "global_batch_size": 8},
        "background": {"frequency": 300},
        "predict": [1e6],
        **changes,
    }
    return parse_config(StudyConfig, {key: of for key, of in content.items() if of is not None}, source="study")


def outline(of: StudyConfig) -> Outline:
    return outline_of(of, sketch(of))


def checked(**changes: Any) -> DesignCheck:
    of = study(**changes)
    return design_check(outline(of), of.analysis, of.predict)


def asked(**changes: Any) -> list[str]:
    of = study(**changes)
    return [str(remark) for remark in requirements(outline(of), of.analysis, of.predict)]


def test_a_study_of_enough_sizes_seeds_and_facts_is_told_nothing() -> None:
    assert asked() == []
    check = checked()
    assert check.remarks == ()
    collapse, onset = check.simulated
    assert (collapse.kind, onset.kind) == ("collapse", "onset")
    for one in check.simulated:
        assert one.validated == one.studies
        assert one.law_factors[0] is not None
        assert 1 < one.law_factors[0] < 30


def test_a_study_of_how_often_and_how_many_is_simulated_along_both() -> None:
    many = [{**size, "facts": [60, 120, 240, 480, 960], "infusion_ratios": [0.5]} for size in SIZES]
    often = [{**size, "facts": [120], "infusion_ratios": [0.05, 0.2, 0.8]} for size in SIZES]
    select = {"infused": 960, "background": 120, "control": 120, "facts_per_object": 0}
    changes = {"ladder": [*SIZES, *many, *often], "facts": [0, 30], "infusion_ratios": [0.5], "frequencies": None}
    check = checked(select=select, background={"policy": "protected", "frequency": 100}, **changes)
    assert check.slice is not None and check.slice.symbol == "K"  # it has more levels
    assert [(one.kind, one.slice.symbol) for one in check.simulated] == [
        ("collapse", "K"),
        ("collapse", "F"),
        ("onset", "F"),
    ]
    assert [one["slice"]["dose"] for one in check.record()["simulated"]] == ["K", "F", "F"]


def test_few_facts_and_one_seed_are_told_what_they_show_and_what_would_show_more() -> None:
    few = {"infused": 48, "background": 48, "control": 48}
    check = checked(select=few, seeds=[0])
    power = next(power for power in check.powers if power.group == "background")
    assert power.detectable == pytest.approx(0.3, abs=0.05)
    said = next(remark for remark in check.remarks if remark.key == "data.select.background")
    assert f"48 background facts and 1 seed show a fall of {power.detectable:.2f} or more" in said.problem
    assert "seeds: [0, 1, 2" in said.change
    seeds = [int(number) for number in said.change.split("[")[1].split("]")[0].split(",")]
    assert all(power.enough for power in checked(select=few, seeds=seeds).powers)


def test_few_facts_that_are_shown_of_many_are_told_the_key_that_says_so() -> None:
    check = checked(facts=[0, 24], seeds=[0])
    said = next(remark for remark in check.remarks if "24 infused facts and 1 seed show" in remark.problem)
    assert said.key == "facts"


def test_a_background_that_is_shown_too_seldom_is_told_how_often_and_what_it_costs() -> None:
    (seldom,) = checked(background={"frequency": 40}).remarks
    assert seldom.key == "background.frequency"
    assert "likely not known without infusion by" in seldom.problem
    wanted = int(seldom.change.split("background.frequency: ")[1].split()[0])
    assert [known.likely for known in checked(background={"frequency": wanted}).known] == [True] * len(SIZES)
    few = {"infused": 60, "background": 24, "control": 24}
    free = checked(background={"frequency": 40}, select=few).remarks
    assert "of the tokens, and no more compute)" in next(r.change for r in free if r.key == seldom.key)
    small = checked(token_budgets=[300_000], frequencies=[0, 5, 20, 60, 100], background={"frequency": 100}).remarks
    short = next(r.change for r in small if r.key == seldom.key)
    assert "with token_budgets of" in short
    assert "times the compute)" in short


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"ladder": SIZES[3:]},
            "ladder: predict asks for a law, and 3 models of 3 sizes can carry only an unvalidated",
        ),
        ({"ladder": SIZES[4:]}, "2 models of 2 sizes can carry none: it needs 5 points of at least 3 sizes"),
        ({"frequencies": [0, 100, 400]}, "frequencies: every model has fewer than the 4 levels of F, 0 included"),
        ({"analysis": {"law": "N and D"}}, "analysis.law: N and D has a term in D, and there is one budget"),
        ({"predict": [1e6, 7]}, "predict: 7 parameters are fewer than those of the smallest size, "),
        ({"analysis": {"axis": "facts"}}, "analysis.axis: is facts, and the runs have one K only"),
        (
            {"ladder": [{**size, "token_budgets": [500_000 * (k + 1)]} for k, size in enumerate(SIZES[:2])]},
            "2 models of 2 sizes can carry none",
        ),
    ],
)
def test_what_the_law_and_the_criterion_lack_is_said_with_what_to_add(changes: dict[str, Any], said: str) -> None:
    assert any(said in line for line in asked(**changes)), asked(**changes)


def test_the_sizes_that_are_proposed_are_ones_that_the_study_takes() -> None:
    import yaml

    (said,) = asked(ladder=SIZES[3:])
    assert "add 2 sizes: {" in said
    entries = [yaml.safe_load("{" + part.split("} (")[0] + "}") for part in said.split("add 2")[1].split("{")[1:]]
    assert len(entries) == 2
    assert asked(ladder=[*SIZES[3:], *entries]) == []
    assert "FLOPs" in said
    assert said.endswith("; the learning rate is that of the study, training.optimizer.learning_rate")


def test_without_a_prediction_no_law_is_asked_for() -> None:
    assert asked(ladder=SIZES[4:], predict=[]) == []


def test_a_law_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match=r"analysis.law: unknown law 'N and E'; did you mean 'N and D'\?"):
        asked(analysis={"law": "N and E"})


def test_the_expected_dispersion_is_that_of_simulated_studies() -> None:
    settings = AnalysisConfig()
    for levels, seeds in ((5, 1), (8, 2), (12, 1)):
        doses = [0, *np.geomspace(10, 100, levels - 1)]
        found = []
        for number in range(6):
            curves = [
                simulate_curve(
                    Truth(facts=100, base=0.62, plateau=0.63, collapses=False),
                    (10**6 * (k + 1), 10**8),
                    doses,
                    seeds,
                    np.random.default_rng([number, k]),
                )
                for k in range(4)
            ]
            found.append(study_dispersion(curves, settings))
        expected = expected_dispersion(100, [[seeds] * levels] * 4, settings)
        assert np.median([one.freedom for one in found]) == pytest.approx(expected.freedom, rel=0.3)
        assert np.median([one.scale for one in found]) == pytest.approx(expected.scale, rel=0.3)


def test_exposures_to_know_a_fact_are_those_of_the_committed_studies() -> None:
    """Held-out answers of studies with uniform schedules, all templates and the declared learning rate."""
    errors = []
    for name, apart in (
        ("reference", False),
        ("large", False),
        ("budget", False),
        ("amount", True),
        ("amount_real", True),
    ):
        table = pd.read_csv(RESULTS / name / "curves.csv")
        table = table[
            (table["scoring"] == "statement") & (table["split"] == "held_out") & (table["group"] == "infused")
        ]
        table = table[table["frequency"] > 0]
        for (n, d, f), rows in table.groupby(["params", "tokens", "frequency"]):
            half = half_known(n, d, exposure_tokens=13.0 if apart else 22.0, apart=apart)
            seen = (rows["correct"].sum() / rows["n"].sum() - 0.25) / 0.75
            errors.append(known_share(f, half) - seen)
    assert len(errors) > 100
    assert float(np.sqrt(np.mean(np.square(errors)))) < 0.13
    assert TOGETHER > 5 * APART


def test_the_check_is_quick_and_needs_no_torch() -> None:
    path = Path(ROOT) / "run_scripts" / "studies" / "paper.yaml"
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from megatron_kis.common.configuration import load_config\nfrom megatron_kis.config.study import StudyConfig\n"
        "from megatron_kis.analysis.design.outline import outline_of, sketch\n"
        "from megatron_kis.analysis.design_check import design_check\n"
        f"study = load_config(StudyConfig, Path({str(path)!r}), [])\nbegin = time.process_time()\n"
        "design_check(outline_of(study, sketch(study)), study.analysis, study.predict)\n"
        "print(time.process_time() - begin, 'torch' in sys.modules)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = ended.stdout.split()
    assert float(seconds) < 15  # on a busy machine
    assert heavy == "False"


@pytest.mark.parametrize("split", ["train", "question"])
def test_only_held_out_sentences_are_judged_by_the_studies_of_held_out_sentences(split: str) -> None:
    few = {"background": {"frequency": 30}}
    assert checked(**few).known and "likely not known" in str(checked(**few).remarks)
    other = checked(**few, analysis={"split": split})
    assert other.known == () and "likely not known" not in str(other.remarks)


def test_what_to_change_for_trained_sentences_does_not_follow_from_held_out_ones() -> None:
    def wanted(split: str) -> int:
        of = study(background={"frequency": 3}, analysis={"split": split})
        never = point(10**5, 0, 2_000_000, status="inconclusive", group="background", peak=0.26)
        (said,) = advice([never], outline(of), of.analysis)
        return int(said.change.split("background.frequency: ")[1].split()[0])

    assert wanted("train") == 6, "twice as often: how often is enough is not known"
    assert wanted("held_out") > 100


def test_a_fall_that_has_only_begun_needs_larger_doses() -> None:
    of = study()
    shown = {"status": "inconclusive", "group": "background", "peak": 0.9, "detectable": 0.5, "p_value": 0.001}
    (begun,) = advice([point(10**5, 0, 2_000_000, drop=0.03, **shown)], outline(of), of.analysis)
    assert "little is lost up to the largest F" in begun.problem and "more up to a ratio of 0.95" in begun.change
    (faint,) = advice([point(10**5, 0, 2_000_000, drop=0.03, **{**shown, "p_value": 0.5})], outline(of), of.analysis)
    assert faint.key == "seeds"


@pytest.mark.parametrize(("infused", "said"), [(960, "facts: up to 960 (now 240)"), (240, "more infused facts")])
def test_where_nothing_is_lost_more_facts_are_shown_and_then_more_are_chosen(infused: int, said: str) -> None:
    select = {"infused": infused, "background": 120, "control": 120, "facts_per_object": 0}
    of = study(select=select, facts=[0, 30, 60, 120, 240], infusion_ratios=[0.5], frequencies=None)
    kept = {"status": "right_censored", "group": "background", "slice": Slice(FACTS, RATIO, 0.5)}
    (remark,) = advice([point(10**5, 0, 2_000_000, **kept)], outline(of), of.analysis)
    assert said in f"{remark.key}: {remark.change}"
