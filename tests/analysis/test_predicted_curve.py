"""The whole curve of a model that was not trained."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest

from benchmarks.whole_study import DESIGNS, LARGEST, TOKENS, in_band, log_point, simulated
from megatron_kis.analysis.criteria import find_transitions
from megatron_kis.analysis.findings.analyse import fit_laws
from megatron_kis.analysis.law.new_model import NewModel
from megatron_kis.analysis.law.predicted_curve import predicted_curve, rises
from megatron_kis.analysis.outputs import law_record
from megatron_kis.cli.main import main
from megatron_kis.common.files import write_json
from megatron_kis.config.analysis import AnalysisConfig
from tests.analysis.laws import CHANCE, law_of, with_curves
from tests.analysis.points import SIZES

NEW = 1e9


@pytest.fixture(scope="module")
def laws():
    """Infused facts are learned at F = 100 and lost at F = 2000; the background at F = 700."""
    onset = with_curves(law_of("onset", "infused", 100.0, 0.0), [math.log(100.0)] * len(SIZES), onset=True)
    infused = with_curves(law_of("collapse", "infused", 2000.0, 0.0), [math.log(2000.0)] * len(SIZES))
    background = with_curves(law_of("collapse", "background", 700.0, 0.0), [math.log(700.0)] * len(SIZES))
    return [infused, background, onset]


def test_the_band_holds_the_curve_of_the_new_model():
    """At ten times the largest size, for two forms of the fall; and the band is a part of all possible rates."""
    settings = AnalysisConfig(law="N", resamples=99, law_resamples=99)
    generator = np.random.default_rng(4)
    for design in (DESIGNS[0], DESIGNS[6]):
        table = simulated(design, generator)
        law = next(one for one in fit_laws(find_transitions(table, settings), settings, table)[0])
        model = NewModel(law, 10 * LARGEST, TOKENS)
        assert in_band(design.shape_of(model.params), model, log_point(design, model.params)) > 0.75
        curve = predicted_curve(model, confidence=0.95)
        assert (curve.low <= curve.rate).all() and (curve.rate <= curve.high).all()
        assert curve.high[0] - curve.low[0] < 0.4
        narrow = predicted_curve(model, confidence=0.5)
        assert (narrow.high - narrow.low).mean() < 0.7 * (curve.high - curve.low).mean()


def test_infused_facts_are_learned_before_they_are_lost(laws):
    infused, background, onset = laws
    assert rises(onset, infused)
    assert not rises(onset, background) and not rises(infused, infused) and not rises(infused, onset)
    model, rise = NewModel(infused, NEW, 1e6), NewModel(onset, NEW, 1e6)
    curve = predicted_curve(model, rise, confidence=0.95)
    assert curve.dose[0] == 0 and curve.rate[0] == pytest.approx(CHANCE, abs=0.02)
    top = int(curve.rate.argmax())
    assert 100 < curve.dose[top] < 2000 and curve.rate[top] > CHANCE + 0.3
    assert curve.rate[-1] < CHANCE + 0.1
    alone = predicted_curve(model, confidence=0.95)
    assert alone.rate[0] == alone.rate.max()


def test_the_command_writes_the_curve(laws, tmp_path, capsys):
    path, output = tmp_path / "law.json", tmp_path / "new" / "curve.csv"
    write_json(path, law_record(laws, []))
    asked = ["law", "predict", str(path), "--params", str(NEW), "--kind", "collapse", "--group", "infused"]
    assert main([*asked, "--curve", str(output)]) == 0
    assert f"written: {output}" in capsys.readouterr().out
    with output.open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert list(rows[0]) == ["dose", "rate", "low", "high"]
    assert rows[0]["dose"] == 0 and rows[0]["rate"] < 0.3 < max(row["rate"] for row in rows)  # it rises
    assert main([*asked, "--curve", str(path)]) == 2
    assert "--curve" in capsys.readouterr().err


def test_points_tell_no_curve(tmp_path, capsys):
    path, output, curve = (tmp_path / name for name in ("law.json", "prediction.json", "curve.csv"))
    write_json(path, law_record([law_of()], []))
    asked = ["law", "predict", str(path), "--params", str(NEW), "--output", str(output), "--curve", str(curve)]
    assert main(asked) == 2
    assert (
        "from points alone, which contain no rates; fit one from runs or curves (kis law fit SOURCE) with"
        in capsys.readouterr().err
    )
    assert not output.exists() and not curve.exists()


def test_a_law_of_the_loss_has_no_rates(tmp_path, capsys):
    path = tmp_path / "law.json"
    write_json(path, law_record([law_of("tolerance", "general", scale=4.0)], []))
    assert main(["law", "predict", str(path), "--params", str(NEW), "--curve", str(tmp_path / "c.csv")]) == 2
    assert "--curve: a law of the loss gives no rates of answers; add --kind collapse" in capsys.readouterr().err
