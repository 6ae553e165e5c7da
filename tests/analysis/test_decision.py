"""How much to infuse: the largest dose at which nothing is lost, and the dose of the largest expected utility."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from benchmarks import best_doses
from benchmarks.decisions import simulate
from megatron_kis.analysis import fit_law, predict
from megatron_kis.analysis.criteria.decline import retention, shapes_of
from megatron_kis.analysis.findings.analyse import analyse_points, fit_laws
from megatron_kis.analysis.law.decision import CONFIDENCE, decide, decision_record
from megatron_kis.analysis.law.loss_rise import loss_rise
from megatron_kis.analysis.law.new_model import NewModel
from megatron_kis.analysis.law.predict import LARGEST
from megatron_kis.analysis.law.prediction import prediction_record
from megatron_kis.analysis.law.utility import STEP, Weights
from megatron_kis.analysis.outputs import law_record
from megatron_kis.analysis.report import render
from megatron_kis.analysis.report.decision_figure import advice, sentence
from megatron_kis.analysis.report.export import export
from megatron_kis.analysis.runs.curves import write_curves_csv
from megatron_kis.analysis.runs.slices import USUAL, Slice
from megatron_kis.analysis.simulate import Truth, simulate_curves, simulate_table
from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import fingerprint, write_json
from megatron_kis.config.analysis import AnalysisConfig
from tests.analysis.laws import N, law_of, points_of, with_curves
from tests.analysis.points import SIZES


@pytest.fixture(scope="module")
def collapse():
    return law_of()


@pytest.fixture(scope="module")
def tolerance():
    return law_of("tolerance", "general", scale=4.0)


@pytest.fixture(scope="module")
def whole():
    """Laws of whole curves: infused facts are learned at F = 100, background facts are lost at F = 2000."""
    onset = with_curves(law_of("onset", "infused", 100.0, 0.0), [math.log(100.0)] * len(SIZES), onset=True)
    return [onset, with_curves(law_of(scale=2000.0, power=0.0), [math.log(2000.0)] * len(SIZES))]


def test_a_law_alone_is_as_safe_as_the_lower_end_of_its_own_interval(collapse):
    """Of a two-sided 95% interval the lower end is passed over with 97.5%."""
    decision = decide([collapse], N, confidence=0.975)
    low = predict(collapse, N).prediction_interval[0]
    (limit,) = decision.limits
    assert limit.alone == pytest.approx(low, rel=3e-3)
    assert decision.dose == math.floor(limit.alone)
    assert decision.limited_by == "collapse of background facts"
    assert limit.probability == pytest.approx(0.975, abs=0.002) == decision.probability


def test_facts_of_one_strength_are_not_counted_beside_their_whole_group(collapse):
    weak = law_of(group="background@30", scale=2.0)
    both = decide([collapse, weak], N)
    assert [limit.group for limit in both.limits] == ["background"]
    assert both == decide([collapse], N)
    assert [limit.group for limit in decide([weak], N).limits] == ["background@30"]


def test_a_likelihood_of_curves_says_the_same_as_its_prediction(whole):
    model = NewModel(whole[1], N, 1e6)
    low, high = model.prediction.prediction_interval
    assert model.beyond(np.log([low, model.prediction.centre, high])) == pytest.approx([0.975, 0.5, 0.025], abs=1e-4)
    draws = model.draws(40_000, np.random.default_rng(0))
    assert np.quantile(draws, [0.025, 0.975]) == pytest.approx(np.log([low, high]), abs=0.1)


def test_of_several_laws_all_have_to_hold(collapse, tolerance):
    decision = decide([collapse, tolerance], N)
    product = decision.limits[0].probability * decision.limits[1].probability
    assert decision.probability == pytest.approx(product)
    assert CONFIDENCE <= decision.probability < CONFIDENCE + 0.01
    assert decision.dose < min(limit.alone for limit in decision.limits)
    assert decision.limited_by == "collapse of background facts"
    assert decision.limits[0].probability < decision.limits[1].probability
    generator = np.random.default_rng(0)
    models = np.exp([model.draws(20_000, generator) for model in decision.models])
    assert (models > decision.dose).all(axis=0).mean() == pytest.approx(decision.probability, abs=0.006)
    surer = decide([collapse, tolerance], N, confidence=0.5)
    assert surer.dose > decision.dose


@pytest.mark.slow
def test_nothing_is_lost_as_often_as_is_said():
    found = simulate(60, 0.3, 0.0)
    assert found.kept > 0.9, "of 60, with a probability of 95%"
    assert found.cost < 2.5


def test_the_onset_says_whether_facts_are_learned_at_that_dose(collapse):
    early, late = (law_of("onset", "infused", scale, 0.0, noise=0.3) for scale in (20.0, 4000.0))
    found = [decide([collapse, onset], N).learned for onset in (early, late)]
    assert found[0].probability > 0.99 and found[1].probability < 0.05
    assert found[0].dose == pytest.approx(predict(replace(early, confidence=0.9), N).prediction_interval[1], rel=0.01)
    assert decide([collapse], N).learned is None


def test_no_dose_takes_more_than_all_tokens_of_the_budget():
    """A copy of all facts takes 1000 tokens: 1000 copies are the budget of 1M."""
    law = fit_law(
        [replace(p, exposure_tokens=1000.0 * p.value, infusion_ratio=p.value / 1000) for p in points_of(scale=1e4)],
        "collapse",
        "background",
        law="N",
    )
    decision = decide([law], N)
    assert decision.most == pytest.approx(1000.0)
    assert (decision.dose, decision.limited_by) == (1000.0, "all tokens of the budget")
    assert decision.amounts.infusion_ratio == pytest.approx(1.0)
    assert decision.amounts.tokens == pytest.approx(1e6)
    assert decision.probability > CONFIDENCE
    assert not any("not known" in warning for warning in decision.warnings)


def test_where_one_copy_is_too_much_there_is_no_dose():
    decision = decide([law_of(scale=0.05, power=0.1)], N)
    assert decision.dose is None and decision.probability is None and decision.amounts is None
    assert any("what a dose costs is not known" in warning for warning in decision.warnings)


def test_what_a_law_warns_of_is_told_with_its_name(collapse):
    few = fit_law(points_of()[:4], "collapse", "background", law="N")
    (warning,) = [w for w in decide([few], N).warnings if "recommends nothing" in w]
    assert warning == "collapse of background facts: kis law predict recommends nothing from this law"
    assert not any("recommends" in w for w in decide([collapse], N).warnings)


def test_laws_of_one_slice_decide_together():
    k, f = Slice("facts", "frequency", 14.0), Slice("frequency", "facts", 400.0)
    other = Slice("facts", "frequency", 60.0)
    laws = [law_of(slice=one, scale=scale) for one, scale in ((k, 3.0), (f, 30.0), (other, 5.0))]
    with pytest.raises(InputError) as caught:
        decide(laws, N, where="law.json")
    assert str(caught.value) == (
        "law.json: laws of 3 slices to choose from; name one of: --axis facts --held-by frequency --held 14; "
        "--axis facts --held-by frequency --held 60; --axis frequency --held-by facts --held 400"
    )
    assert decide(laws, N, axis="frequency").slice == f
    assert decide(laws, N, held=60.0).slice == other
    assert decide(laws, N, axis="facts", held=14.0).dose < decide(laws, N, held=60.0).dose
    with pytest.raises(InputError, match="no law of this slice; name one of"):
        decide(laws, N, held=61.0)
    with pytest.raises(InputError, match="no law of a collapse or of the loss"):
        decide([law_of("onset", "infused")], N)


def test_a_law_of_all_slices_is_asked_about_one():
    slices = [Slice("frequency", "facts", held) for held in (100.0, 400.0)]
    points = [replace(p, slice=one, value=p.value * 10 / one.held**0.5) for one in slices for p in points_of()]
    laws, _ = fit_laws(points, AnalysisConfig(law="N", law_resamples=0))
    asked = decide(laws, N, held=200.0)
    assert asked.slice == Slice("frequency", "facts", 200.0)
    together = [law for law in laws if law.range_held is not None]
    with pytest.raises(InputError, match=r"^law.json: the laws depend on the facts held; name one of: .* --held 100$"):
        decide(together, N, where="law.json")
    both = [decide(laws, N, held=held).dose for held in (100.0, 400.0)]
    assert both[1] < asked.dose < both[0]


def truth(dose, weights):
    """Utility of what the curves of ``whole`` were made from."""
    x = np.log(np.maximum(dose, 1e-9))
    half = (np.array(3.0), *shapes_of(0.5)[0], 0.5)
    recall = 0.6 * retention(-x, np.array(-math.log(100.0)), *half)
    return weights.recall * recall + weights.retention * retention(x, np.array(math.log(2000.0)), *half)


@pytest.mark.parametrize("weights", [Weights(1.0, 1.0), Weights(1.0, 10.0)])
def test_the_dose_of_the_largest_utility_is_that_of_the_curves(whole, weights):
    best = decide(whole, N, weights=weights).best
    dose = np.geomspace(1, 20_000, 4000)
    optimum = dose[truth(dose, weights).argmax()]
    assert optimum / STEP < best.dose < optimum * STEP
    assert best.interval[0] < optimum < best.interval[1]
    assert best.utility == pytest.approx(truth(best.dose, weights), rel=0.05)
    assert best.without == pytest.approx(weights.retention, rel=0.01)
    assert best.lower > 0 and best.higher > 0
    assert 0 < best.regret < 0.1 * best.utility


def test_what_is_worth_more_moves_the_dose(whole):
    doses = [decide(whole, N, weights=Weights(1.0, worth)).best.dose for worth in (0.1, 1.0, 30.0)]
    assert doses == sorted(doses, reverse=True) and doses[0] > 2 * doses[2]
    nothing = decide(whole, N, weights=Weights(retention=1.0)).best
    assert (nothing.dose, nothing.recall, nothing.lower) == (0.0, None, None)
    everything = decide(whole, N, weights=Weights(recall=1.0)).best
    assert any("still rises at the largest dose tried" in warning for warning in everything.warnings)


def test_one_seed_gives_one_answer(whole):
    weights = Weights(1.0, 1.0)
    assert decide(whole, N, weights=weights).best == decide(whole, N, weights=weights).best


def test_the_price_of_the_loss_needs_to_know_how_it_rises(tolerance):
    truth = Truth(facts=60)
    cells = [(int(n), 1_000_000) for n in SIZES]
    curves, star = simulate_curves(truth, cells, [0, 50, 100, 200, 400, 800], 1, np.random.default_rng(0))
    values = [replace(p, value=star[p.params, p.tokens]) for p in points_of("tolerance", "general")]
    law = fit_law(values, "tolerance", "general", law="N")
    rise = loss_rise(curves, law, where="curves.csv")
    assert (rise.power, rise.excess, rise.cells) == (pytest.approx(1.5), pytest.approx(0.05), 6)
    decision = decide([law], N, weights=Weights(loss_price=1.0), curves=curves)
    assert (decision.best.dose, decision.best.loss_percent) == (0.0, pytest.approx(0, abs=1e-9))
    with pytest.raises(InputError, match=r"^--loss-price: how the loss rises .* add --curves"):
        decide([law], N, weights=Weights(loss_price=1.0))
    with pytest.raises(InputError, match=r"^curves.csv: 2 models show how the loss rises"):
        loss_rise(curves[:2], law, where="curves.csv")


def test_the_loss_of_one_slice_is_compared_with_its_own_transition():
    """Of a law of several slices one (N, D) has several transitions."""
    truth, generator = Truth(facts=60), np.random.default_rng(0)
    cells = [(int(n), 1_000_000) for n in SIZES]
    found, points = [], []
    for held in (100.0, 400.0):
        one = Slice("frequency", "facts", held)
        mine, star = simulate_curves(truth, cells, [0, 50, 100, 200, 400, 800], 1, generator, one=one)
        scale = math.sqrt(held / 100)
        found += [replace(curve, dose=curve.dose * scale) for curve in mine]
        points += [
            replace(p, value=star[p.params, p.tokens] * scale) for p in points_of("tolerance", "general", slice=one)
        ]
    laws, _ = fit_laws(points, AnalysisConfig(law="N", law_resamples=0))
    (law,) = [law for law in laws if law.range_held is not None]
    rise = loss_rise(found, law, where="curves.csv")
    assert (rise.power, rise.excess, rise.cells) == (pytest.approx(1.5), pytest.approx(0.05), 12)


def test_a_weight_of_what_the_laws_do_not_tell_is_refused_with_what_to_do(collapse, whole):
    for weights, option, problem in (
        (Weights(recall=1.0), "--recall", "law.json has no law of the onset of infused facts"),
        (Weights(retention=1.0), "--retention", "in law.json is from points alone"),
        (Weights(loss_price=1.0), "--loss-price", "law.json has no law of the loss tolerance"),
    ):
        with pytest.raises(InputError, match=f"^{option}: .*{problem}.*; "):
            decide([collapse], N, weights=weights, where="law.json")
    infused = law_of("collapse", "infused", scale=1e4)
    with pytest.raises(InputError, match=r"^--recall: the law of the collapse of infused facts .* points alone"):
        decide([*whole, infused], N, weights=Weights(recall=1.0))
    with pytest.raises(InputError, match="every weight is 0"):
        Weights()
    with pytest.raises(InputError, match="--retention: is -1"):
        Weights(retention=-1)


def test_the_record_is_dated_and_hashed(whole):
    decision = decide(whole, N, weights=Weights(1.0, 1.0))
    record = decision_record(decision, datetime(2026, 1, 2, tzinfo=UTC))
    again = json.loads(json.dumps(record))
    assert again == record | {"best": again["best"]}
    assert again.pop("hash") == fingerprint(again)
    assert (record["schema"], record["created"]) == ("kis.decision/1", "2026-01-02T00:00:00+00:00")
    assert record["limits"][0]["law"] == whole[1].fingerprint
    assert record["learned"]["law"] == whole[0].fingerprint


def asked(capsys, *options):
    """Status, what was printed, and the error's last line."""
    try:
        status = main(["law", "decide", *map(str, options)])
    except SystemExit as ended:
        status = ended.code
    printed = capsys.readouterr()
    return status, printed.out, (printed.err.splitlines() or [""])[-1]


def test_the_command_decides_and_writes(tmp_path, whole, tolerance, capsys):
    path, written = tmp_path / "law.json", tmp_path / "decision.json"
    path.write_text(json.dumps(law_record([whole[1], tolerance, whole[0]], [])))
    status, told, _ = asked(capsys, path, "--params", "100M", "--recall", "1", "--retention", "1", "--output", written)
    assert status == 0
    dose = decide([whole[1], tolerance, whole[0]], N).dose
    for words in (
        "largest dose, nothing lost with 95%",
        f"not yet at F = {dose:,.0f} ",
        "treated as independent",
        "regret",
        "all curves",
        "learned",
    ):
        assert words in told
    status, printed, _ = asked(capsys, path, "--params", "100M", "--recall", "1", "--retention", "1", "--json")
    first, second = json.loads(written.read_text()), json.loads(printed)
    assert {k: v for k, v in first.items() if k not in ("created", "hash")} == {
        k: v for k, v in second.items() if k not in ("created", "hash")
    }
    assert first["dose"] == decide([whole[1], tolerance, whole[0]], N).dose
    table, _ = simulate_table(
        Truth(facts=60), [(int(n), 1_000_000) for n in SIZES], [0, 50, 200, 800], 1, np.random.default_rng(0)
    )
    write_curves_csv(table, tmp_path / "curves.csv")
    more = ("--loss-price", "0.1", "--curves", tmp_path / "curves.csv", "--json")
    status, printed, _ = asked(capsys, path, "--params", "100M", "--recall", "1", *more)
    assert (status, json.loads(printed)["best"]["weights"]["loss_price"]) == (0, 0.1)


def test_curves_are_read_along_the_axis_of_the_laws(tmp_path, capsys):
    """Of three levels of F at each K, of which a study that varies K takes none by itself."""
    one = Slice("frequency", "facts", 100.0)
    law = law_of("tolerance", "general", slice=one)
    cells = [(int(n), 1_000_000_000) for n in SIZES]
    doses = {cell: [0, p["value"], 2 * p["value"]] for cell, p in zip(cells, law.points, strict=True)}
    tables = [
        simulate_table(Truth(facts=60), cells, doses, 1, np.random.default_rng(0), one=replace(one, held=held))[0]
        for held in (100.0, 200.0)
    ]
    table = pd.concat([tables[0], tables[1][tables[1]["frequency"] > 0]], ignore_index=True)
    rises = 0.05 * (table["frequency"] / table["params"].map({p["params"]: p["value"] for p in law.points})) ** 1.5
    write_curves_csv(table.assign(validation_loss=3 * (1 + rises)), tmp_path / "curves.csv")
    path = tmp_path / "law.json"
    path.write_text(json.dumps(law_record([replace(law, points=[p | {"tokens": 10**9} for p in law.points])], [])))
    options = (path, "--params", "100M", "--tokens", "1e9", "--loss-price", "1", "--curves", tmp_path / "curves.csv")
    status, told, error = asked(capsys, *options)
    assert (status, error) == (0, "")
    assert "loss on general text there" in told
    write_curves_csv(tables[0].drop(columns="infused_facts"), tmp_path / "curves.csv")
    path.write_text(
        json.dumps(law_record([law_of("tolerance", "general", slice=Slice("facts", "frequency", 9.0))], []))
    )
    status, _, error = asked(capsys, *options)
    assert status == 2
    assert f"{tmp_path / 'curves.csv'}: a run does not say how many facts" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            (
                ("--confidence", value),
                f"argument --confidence: is '{value}'; write a probability above 0 and below 1, su",
            )
            for value in ("95", "1", "0", "1.5", "nan", "-0.5")
        ),
        (("--recall", "-1"), "'-1' is not a weight"),
        (("--retention", "nan"), "'nan' is not a weight"),
        (("--curves", "c.csv"), "--curves: is used only with --loss-price; add --loss-price"),
        (("--output", "law.json"), "--output: law.json is also read"),
        (("--axis", "tokens"), "invalid choice: 'tokens'"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(options, message, capsys):
    status, _, error = asked(capsys, "law.json", "--params", "7b", *options)
    assert status == 2
    assert message in error


def test_the_report_says_how_much_to_infuse_into_every_size_that_it_predicts_for(tmp_path, whole):
    points = [*points_of(), *points_of("tolerance", "general", scale=4.0), *points_of("onset", "infused", 20.0, 0.0)]
    settings = AnalysisConfig(law="N", law_resamples=0)
    result = analyse_points(points, settings, predict_params=[N, 1e9])
    assert [(d.params, d.slice) for d in result.decisions] == [(10**8, USUAL), (10**9, USUAL)]
    assert result.decisions[0] == decide(result.laws, N)
    page = render(result)
    first = result.decisions[0]
    assert "How much to infuse" in page
    dose = f"As a first estimate, show each fact at most {first.dose:.0f} times. "  # one law does not fit its points
    kept = "there is no collapse of background facts and no loss on general text beyond its tolerance"
    assert f"{dose}With a probability of 95% {kept} at that dose." in page
    assert "Limited by: collapse of background facts" in page and page.count("Star: the chosen dose") == 2
    assert "infused facts known" not in page, "points tell no rates"
    written = {path.name for path in export(result, tmp_path)}
    assert {"decisions.csv", f"decision-{10**8}-{10**6}.svg"} <= written
    assert len((tmp_path / "decisions.csv").read_text().splitlines()) == 1 + 2 * 2
    (drawn,) = advice(replace(result, laws=whole, predictions=result.predictions[:1]))
    assert "infused facts known" in drawn.drawings[1].svg
    assert "background knowledge kept" in drawn.drawings[1].svg
    nothing = replace(result, laws=[law for law in result.laws if law.kind == "onset"])
    assert nothing.decisions == []
    assert "How much to infuse" not in render(replace(result, predictions=[]))


def test_a_decision_in_words():
    few = decide([law_of(scale=0.05, power=0.1)], N)
    assert sentence(few) == (
        "There is no dose at which collapse of background facts is avoided with 95%: by these laws not even at 1 "
        "exposure of each fact. What is lost first: collapse of background facts."
    )
    k = law_of(slice=Slice("facts", "frequency", 14.0), scale=30.0)
    assert sentence(decide([k], N)).startswith("Infuse at most ")


@pytest.mark.parametrize("confidence", [1e-12, 0.5, 1 - 1e-12])
def test_a_law_that_hardly_says_anything_is_asked_as_well(confidence, tmp_path):
    """Transitions may lie where no dose can be: with one degree of freedom, or far from the sizes of the law."""
    few = fit_law(points_of()[:3], "collapse", "background", law="N", bend=0.0)
    onset = fit_law(points_of("onset", "infused", scale=30.0), "onset", "infused", law="N")
    amounts = {"exposures_per_dose": 1e20, "bits_per_dose": 1e20}
    found = decide([replace(few, amounts=amounts), onset], 1e20, confidence=confidence)
    write_json(tmp_path / "decision.json", decision_record(found))
    least, most = math.exp(-LARGEST), math.exp(LARGEST)
    assert all(least <= dose <= most for dose in (found.limits[0].alone, found.learned.dose))
    told = predict(replace(few, amounts=amounts, confidence=1 - 1e-12), 1e20)
    write_json(tmp_path / "prediction.json", prediction_record(told))


def test_the_truly_best_dose_of_a_simulated_model_is_where_its_own_fall_begins():
    model = best_doses.World(best_doses.STEEP, fall=7.0, rise=5.0)
    x = np.linspace(0.0, 12.0, 1201)
    utility = model.utility(x)
    assert x[utility.argmax()] == pytest.approx(7.0, abs=0.02)
    assert model.utility(np.array([best_doses.NO_INFUSION])) == pytest.approx(1.0, abs=1e-3)
    assert model.recall(np.array([5.0])) == pytest.approx(best_doses.RECALLED / 2)


@pytest.mark.slow
def test_the_dose_for_a_utility_costs_a_simulated_model_about_as_much_as_stated():
    (found,) = best_doses.simulate(best_doses.DESIGNS[0], 1, seed=1)
    assert found.hit and found.width > 0
    assert 0 <= found.regret < 3 * found.told
    assert abs(found.off) < found.width
