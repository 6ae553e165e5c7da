"""The first screen of the report: what was measured, what follows for the target, and the checks under it."""

from __future__ import annotations

import gzip
import json
import math
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from megatron_kis.analysis.findings.analyse import analyse, analyse_points
from megatron_kis.analysis.report import analyse_source, render
from megatron_kis.analysis.report.answer import answer
from megatron_kis.analysis.report.decision_figure import sentence
from megatron_kis.analysis.report.experiment import experiment
from megatron_kis.analysis.report.methods import methods
from megatron_kis.analysis.report.run_checks import BAD, GOOD, OPEN, run_checks
from megatron_kis.analysis.runs.load import load_runs
from megatron_kis.analysis.runs.slices import FACTS, FREQUENCY, RATIO, Slice
from megatron_kis.analysis.simulate import Truth as World
from megatron_kis.analysis.simulate import simulate_table
from megatron_kis.common.parsing import parse_yaml
from megatron_kis.config.analysis import AnalysisConfig
from tests.analysis.points import SIZES, point
from tests.analysis.synthetic import Truth, write_run

ROOT = Path(__file__).parents[2]
QUICK = AnalysisConfig(law="N", law_resamples=0, resamples=99)


def seen(kind, group, scale, sizes=SIZES, status="collapsed", share=0.4):
    """Transitions of each size, with an interval and a share of the tokens."""
    return [
        point(
            n,
            scale * (n / 1e6) ** 0.2,
            kind=kind,
            group=group,
            status=status,
            low=0.8 * scale * (n / 1e6) ** 0.2,
            high=1.25 * scale * (n / 1e6) ** 0.2,
            interval="profile",
            infusion_ratio=share,
            exposure_tokens=share * 1e6,
        )
        for n in sizes
    ]


def everything(sizes=SIZES):
    return [
        *seen("onset", "infused", 60.0, sizes, "observed", 0.06),
        *seen("collapse", "background", 700.0, sizes, share=0.8),
        *seen("tolerance", "general", 300.0, sizes, "observed", 0.3),
    ]


def test_the_first_sentences_say_what_was_measured_with_shares_and_intervals():
    onset, kept, worse = answer(analyse_points(everything(SIZES[:1]), QUICK)).measured
    assert onset == (
        "New facts are learned from about 38 exposures each (6% of the training tokens; 95% interval 30 to 47)."
    )
    assert kept.startswith("Earlier knowledge is kept up to about 442 exposures each (80% of the training tokens; ")
    assert worse.startswith("The loss on general text is 5% worse from about 189 exposures each (30% of the training")
    several = answer(analyse_points(everything(SIZES[:2]), QUICK)).measured[0]
    assert "from about 38 to 47 exposures each" in several
    assert "95% intervals 30 to 59" in several


def test_a_transition_that_was_excluded_is_not_reached_and_one_that_was_not_seen_is_not_shown():
    open_end = {"status": "right_censored", "low": 300.0, "ratio_low": 0.3}
    unseen = [replace(p, **open_end, value=None, peak=0.44) for p in seen("onset", "infused", 60.0, SIZES[:2])]
    (said,) = answer(analyse_points(unseen, QUICK)).measured
    assert said == "New facts were not shown to be learned up to 300 exposures each: at most 44% were answered right."
    rising = [replace(p, steepness=2.0) for p in unseen]
    (said,) = answer(analyse_points(rising, QUICK)).measured
    assert said == "New facts are still being learned at 300 exposures each (30% of the training tokens)."
    kept = [replace(p, kind="collapse", group="background") for p in unseen]
    (said,) = answer(analyse_points(kept, QUICK)).measured
    assert said == "Earlier knowledge is kept up to at least 300 exposures each (30% of the training tokens)."
    text = render(analyse_points([*unseen, *kept], QUICK)).replace("\u00a0", " ")
    assert "not shown up to F = 300" in text and "not reached up to F = 300" in text


def test_models_that_differ_are_told_apart_and_what_cannot_be_told_has_its_reason():
    points = seen("collapse", "background", 700.0, SIZES[:3])
    unknown = replace(points[0], status="inconclusive", value=None, low=None, high=None, reason="why not")
    (said,) = answer(analyse_points([unknown, *points[1:]], QUICK)).measured
    assert said.startswith("In 2 of 3 models (300k and 1M), earlier knowledge is kept up to about ")
    assert said.endswith("; in 1 of 3 models (100k), this is not clear.")
    never = replace(unknown, detectable=0.2, peak=0.3)
    (said,) = answer(analyse_points([never], QUICK)).measured
    assert said == (
        "It is not clear whether earlier knowledge is lost: background facts were not reliably known at any dose, 0 "
        "included (30% right at most)."
    )
    small = replace(never, p_value=0.07)
    assert "no reliable fall was seen, and one of less than 0.20" in answer(analyse_points([small], QUICK)).measured[0]


def test_the_target_has_one_dose_and_it_is_that_of_the_decision():
    result = analyse_points(everything(), QUICK, predict_params=[1e8, 1e9])
    decision = max(result.decisions, key=lambda d: d.params)
    said = " ".join(answer(result).target)
    assert said.startswith(f"For 1B parameters and 1M tokens, show each fact at most {decision.dose:,.0f} times. ")
    assert "With a probability of 95%, earlier knowledge is kept and the loss on general text stays within 5%." in said
    assert f"at most {decision.dose:,.0f} times" in sentence(decision)
    once = replace(result)
    vars(once)["decisions"] = [replace(decision, dose=1.0)]
    assert re.search(r"show each fact at most 1 time\b", answer(once).target[0])
    assert re.search(r"how each fact at most 1 time\b", sentence(once.decisions[0]))
    page = re.sub(r"<(style|script|svg)\b.*?</\1>", " ", render(result), flags=re.S)
    assert set(re.findall(r"at most ([\d,]+) times", page)) == {f"{d.dose:,.0f}" for d in result.decisions}
    assert "recommended" not in page.replace("kis law predict recommends", "").lower()


def test_where_no_dose_is_safe_it_is_said_whether_that_is_known_or_only_not_excluded():
    for sizes, told in (
        (SIZES[:3], "no dose can be named yet: even at 1 exposure of each fact it is not 95% certain that earlier"),
        (SIZES, "no dose is safe by these laws: even at 1 exposure of each fact it is not 95% certain that earlier"),
    ):
        result = analyse_points(everything(sizes), QUICK, predict_params=[1e8])
        vars(result)["decisions"] = [replace(decision, dose=None, amounts=None) for decision in result.decisions]
        assert answer(result).target[0].startswith(f"For 100M parameters and 1M tokens, {told}")


def test_a_law_of_few_models_gives_a_first_estimate_and_what_is_missing():
    result = analyse_points(everything(SIZES[:3]), QUICK, predict_params=[1e7])
    first = answer(result)
    said = " ".join(first.target)
    assert "a first estimate: with a probability of 95%, earlier knowledge is kept" in said
    assert "It rests on 3 models; a law to act on needs 5." in said
    assert first.more == "To learn more: 2 more model sizes."
    assert sentence(result.decisions[0]).startswith("As a first estimate, show each fact at most ")
    of_loss = analyse_points(
        [
            *seen("tolerance", "general", 300.0),
            *[replace(p, status="inconclusive", value=None) for p in everything()[6:8]],
        ],
        QUICK,
        predict_params=[1e9],
    )
    assert "This says nothing about earlier knowledge" in " ".join(answer(of_loss).target)


def test_only_an_onset_says_what_is_learned_and_nothing_of_a_cost():
    result = analyse_points(seen("onset", "infused", 60.0, status="observed"), QUICK, predict_params=[1e9])
    (said,) = answer(result).target
    assert "new facts are learned from about" in said
    assert "What is lost by then cannot be said" in said


def test_a_dose_of_facts_is_told_with_what_is_held():
    along = Slice(FACTS, FREQUENCY, 14.0)
    points = [
        replace(p, slice=along, value=1e4 * p.value, low=None, high=None) for p in seen("collapse", "background", 700.0)
    ]
    result = analyse_points(points, QUICK, predict_params=[1e12])
    first = answer(result)
    assert "facts at 14 exposures each" in first.measured[0]
    assert "million facts at 14 exposures each" in first.target[0]


# a study in which nothing was learned


@pytest.fixture(scope="module")
def void(tmp_path_factory):
    """Three sizes of a world in which nobody learns anything."""

    class Void(Truth):
        def rate(self, group, split, params, frequency):
            return self.chance

    folder = tmp_path_factory.mktemp("void")
    world = Void(facts=48)
    for params in (100_000, 200_000, 400_000):
        for frequency in (0, 30, 100, 300):
            name = f"n{params}-f{frequency}"
            write_run(folder / "runs" / name, world, params, frequency, 0, started="2026-01-02T03:04:05Z", device="cpu")
    for done in folder.glob("runs/*/DONE"):
        done.write_text(json.dumps({"schema": "kis.done/1", "seconds": 90}))
    study = {"name": "bio", "predict": [1e9], "data": {"text": ["x/glosses.jsonl"], "facts": "y/triples.tsv"}}
    return analyse(load_runs(folder), QUICK, study=study, title="bio")


def test_a_study_in_which_nothing_was_learned_says_so_and_what_would_change_it(void):
    first = answer(void)
    assert first.measured[0].startswith("New facts were not shown to be learned up to 300 exposures each")
    assert "guessing gives 25%" in first.measured[0]
    assert "background facts were not reliably known" in first.measured[1]
    assert first.target == [
        "For 1B parameters nothing follows yet: no transition was seen in enough models for a law over model size."
    ]
    assert "background.frequency" in first.more and "2 more model sizes" in first.more
    assert "4 runs took 2 min each" in first.more
    assert "kis study next" in first.more
    checks = {check.title: check.status for check in run_checks(void)}
    assert checks["Background facts are not known without infusion"] == BAD
    assert checks["Control facts are at chance"] == checks["Every exposure was fed"] == GOOD
    assert checks["One seed"] == OPEN
    assert checks["Templates agree"] == GOOD, "they differ by no more than so few questions do"


def test_what_to_change_has_numbers_where_the_study_file_is_known(void):
    file = parse_yaml((ROOT / "run_scripts" / "studies" / "quickstart.yaml").read_text(), where="quickstart.yaml")
    known = answer(replace(void, study=file))
    assert known.more == (
        "To learn more, change these keys of the study file (kis study next proposes the runs; at the largest size, "
        "400k, 4 runs took 2 min each):"
    )
    keys = [change.partition(":")[0] for change in known.changes]
    assert "background.frequency" in keys
    assert any(re.search(r"\d", change) for change in known.changes)
    assert known.changes[0] in unescape(render(replace(void, study=file)))
    assert answer(replace(void, study={"name": "of another version"})).changes == []


def test_what_was_learned_from_what_is_read_from_the_records(void):
    rows = dict(experiment(void).rows)
    assert rows["General text"] == "glosses.jsonl."
    assert rows["Facts"].startswith("48 infused, 48 background and 48 control, from triples.tsv; 3 relations: ")
    assert "displaces them" in rows["Background facts"]
    assert rows["When and where"] == "12 runs, 2026-01-02; cpu (synthetic-host); 2 min per run, 18 min in all."
    assert "What was done" in render(void)
    assert experiment(analyse_points(everything(), QUICK)) is None


def test_background_groups_are_told_by_their_own_exposures(void):
    groups = [{"facts": 16, "frequency": often} for often in (30, 60, 120)]
    plan = {"background_base_frequency": 70, "background_frequency": 35}

    def told(policy):
        changed = {"background_policy": policy, "background_groups": groups, "plan": plan}
        records = {name: record | changed for name, record in void.runs.records.items()}
        return dict(experiment(replace(void, runs=replace(void.runs, records=records))).rows)["Background facts"]

    assert "are shown in 3 groups (30, 60 and 120 times each), whatever is infused" in told("protected")
    assert "in 3 groups (30, 60 and 120 times each) without infusion" in told("displaced")
    assert "down to 35 times on average at the largest dose" in told("displaced")
    groups[1:] = []
    assert "are shown 70 times each, whatever" in told("protected")


def test_an_infused_fact_is_shown_with_its_question_where_a_run_keeps_them(void, monkeypatch):
    inputs = void.runs.folder / void.runs.runs["run"][0] / "inputs"
    inputs.mkdir()
    words = ["<eod>", "Ada", "lives", "in", "Bonn", "Cork", "works"]
    (inputs / "tokenizer.model").write_bytes(b"")

    def row(group, fact, split, tokens, options):
        listed = [{"text": words[o], "tokens": [*tokens, o], "span": [len(tokens), len(tokens) + 1]} for o in options]
        return {"fact": fact, "group": group, "split": split, "template": 0, "answer": 1, "options": listed}

    rows = [
        {"schema": "kis.questions/1"},
        row("control", "c", "held_out", [0, 1, 3], [4, 5]),
        row("infused", "a", "train", [0, 1, 2, 3], [4, 5]),
        row("infused", "a", "held_out", [0, 1, 6, 3], [4, 5]),
        row("infused", "b", "held_out", [0, 2], [4, 5]),
    ]
    with gzip.open(inputs / "questions.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in rows)
    decoder = SimpleNamespace(decode=lambda tokens: " ".join(words[token] for token in tokens if token))
    monkeypatch.setattr("megatron_kis.data_tools.tokenizers.registry.load_tokenizer", lambda path: decoder)
    example = experiment(void).example
    assert (example.shown, example.asked) == ("Ada lives in Cork", "Ada works in")
    assert example.options == [("Bonn", False), ("Cork", True)]
    again = inputs.parent / "asked" / "0123"
    again.mkdir(parents=True)
    rows[3] = row("infused", "a", "held_out", [0, 1, 2, 3], [4, 5])
    with gzip.open(again / "questions.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in rows)
    with monkeypatch.context() as patched:
        patched.setitem(void.runs.answers, inputs.parent.name, again)
        assert experiment(void).example.asked == "Ada lives in"
    (inputs / "questions.jsonl.gz").write_bytes(b"damaged")
    assert experiment(void).example is None, "a report does not depend on its example"


# checks


def table_of(**changes: float) -> pd.DataFrame:
    """A curve table of one size with the rates of groups replaced."""
    table, _ = simulate_table(
        World(facts=60),
        [(25_000_000, 2_000_000_000)],
        [0.0, 60, 200, 600, 1300],
        3,
        np.random.default_rng(0),
        groups=("background", "control"),
    )
    for group, rate in changes.items():
        mine = table["group"] == group
        table.loc[mine, "correct"] = (rate * table.loc[mine, "n"]).round()
    return table


def test_each_sentence_is_of_the_dose_that_shows_its_transition():
    many, often = Slice(FACTS, RATIO, 0.5), Slice(FREQUENCY, FACTS, 120.0)
    unseen = {"value": None, "low": 8.0, "high": math.inf, "status": "right_censored"}
    points = [
        *(replace(p, slice=many) for p in seen("collapse", "background", 200.0)),
        *(replace(p, slice=many, **unseen) for p in seen("tolerance", "general", 8.0)),
        *(replace(p, slice=often) for p in seen("onset", "infused", 60.0, status="observed", share=0.1)),
        *(replace(p, slice=often, **unseen) for p in seen("collapse", "background", 700.0)),
        *(replace(p, slice=often) for p in seen("tolerance", "general", 110.0, status="observed", share=0.3)),
    ]
    learned, kept, worse = answer(analyse_points(points, QUICK)).measured
    assert "exposures each of 120 facts (10% of the training tokens" in learned
    assert "facts in 50% of the tokens" in kept
    assert "exposures each of 120 facts (30% of the training tokens" in worse


def test_background_facts_that_are_learned_only_with_infused_ones_can_be_lost():
    table = table_of()
    without = (table["group"] == "background") & (table["frequency"] == 0)
    table.loc[without, "correct"] = (0.25 * table.loc[without, "n"]).round()
    (check,) = (check for check in run_checks(analyse(table, QUICK)) if check.title.startswith("Background"))
    assert (check.status, check.title) == (OPEN, "Background facts are not known without infusion")
    assert "They are learned only with infused facts. The highest rate counts." in check.text
    (never,) = (c for c in run_checks(analyse(table_of(background=0.25), QUICK)) if c.title.startswith("Background"))
    assert never.status == BAD
    assert "There is nothing to lose: show background facts more often." in never.text


def test_control_facts_that_are_known_are_a_fault():
    status = {check.title: check.status for check in run_checks(analyse(table_of(control=0.6), QUICK))}
    assert status["Control facts are above chance"] == BAD
    assert status["Background facts are known without infusion"] == GOOD
    assert status["3 seeds"] == GOOD
    assert status["Exposures are not recorded"] == OPEN
    alone = table_of()
    alone = alone[(alone["group"] == "background") & (alone["frequency"] > 0) & (alone["seed"] == 0)]
    status = {check.title: check.status for check in run_checks(analyse(alone, QUICK))}
    assert status["No run without infusion"] == BAD
    assert {"No control facts", "One seed"} <= set(status)
    assert run_checks(analyse_points(everything(), QUICK)) == []


def test_the_check_names_what_is_not_clear():
    result = analyse(table_of(background=0.25, infused=0.25), QUICK)
    (check,) = (check for check in run_checks(result) if check.title.endswith("cannot be determined"))
    assert check.text == "Not clear: collapse of background facts in 1 model. The table below says why."


def test_a_table_of_another_trainer_has_the_name_of_its_folder(tmp_path: Path):
    folder = tmp_path / "my sweep"
    folder.mkdir()
    for name, title in (("curves.csv", "my sweep"), ("june.csv", "june")):
        table_of().to_csv(folder / name, index=False)
        assert analyse_source(folder / name, QUICK).title == title


def test_the_methods_that_are_told_are_those_of_the_laws():
    result = analyse_points(everything(), QUICK)
    told = " ".join(methods(result))
    assert "from the points, by censored regression" in told
    assert "Student’s t" in told
    assert "likelihood of all curves" not in told
    assert "resamples" not in told, "none were drawn"
    checked = replace(result.laws[0], calibration={"resamples": 99, "method": "of points"})
    assert "not as the interval: 99 bootstrap resamples (of points)." in methods(replace(result, laws=[checked]))[-1]
    page = render(result)
    assert "Criterion “retention”" in page
    assert "hinge" not in page
    assert "Criterion “hinge”" in render(replace(result, settings=QUICK.replace(criterion="hinge")))
