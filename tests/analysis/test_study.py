from __future__ import annotations

import re
import shutil
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from megatron_kis.analysis import AnalysisConfig, analyse_study, find_transitions, fit_law, load_runs, report
from megatron_kis.analysis.findings.analyse import analyse
from megatron_kis.analysis.runs.load_csv import load_curves_csv, load_points_csv
from megatron_kis.common.errors import InputError
from tests.analysis.synthetic import Truth, write_run, write_study

NOW = datetime(2026, 1, 2, tzinfo=UTC)
QUICK = AnalysisConfig(resamples=99, law_resamples=99)


def by_size(points, kind, group):
    return {p.params: p for p in points if (p.kind, p.group) == (kind, group)}


def test_the_brackets_of_a_study_hold_the_true_onset_and_collapse(study):
    truth = Truth()
    points = find_transitions(load_runs(study))
    for params, point in by_size(points, "onset", "infused").items():
        # "reliably above chance" comes a little after the foot of the true curve
        assert point.status == "observed"
        assert point.low / 2 <= truth.onset(params) <= point.high
    collapses = by_size(points, "collapse", "background")
    assert [collapses[n].status for n in (100_000, 200_000)] == ["collapsed"] * 2
    # of the next one too little of the fall is in the grid to be certain without any one run
    assert collapses[400_000].status in ("collapsed", "inconclusive")
    for params in (100_000, 200_000):
        assert collapses[params].low <= truth.collapse(params) <= collapses[params].high
    # the largest model collapses at 1137, after the last level but one: too little of its fall is in the grid
    assert collapses[800_000].status == "right_censored"
    assert {p.status for p in by_size(points, "collapse", "infused").values()} == {"right_censored"}


def test_the_law_of_a_study_has_the_true_slope(tmp_path):
    truth = Truth(seed_noise=0.02, facts=400, fact_tokens=3.6)
    frequencies = (0, 128, 300, 420, 500, 600, 720, 850, 1000, 1200, 1390)
    write_study(tmp_path, truth, params=(50_000, 100_000, 200_000, 400_000), frequencies=frequencies)
    law = fit_law(find_transitions(load_runs(tmp_path)), "collapse", "background")
    assert len(law.points) == 4
    assert law.coefficients["b_log_params"].value == pytest.approx(truth.collapse_slope, abs=0.08)


def test_a_study_without_a_collapse_reports_none(tmp_path):
    write_study(
        tmp_path,
        Truth(collapse_at=None),
        params=(100_000, 200_000, 400_000),
        frequencies=(0, 16, 64, 256, 512),
        seeds=(0, 1, 2),
    )
    result = analyse(load_runs(tmp_path), predict_params=[1e7])
    assert not any(p.status == "collapsed" for p in result.points)
    assert {item["kind"] for item in result.refused} >= {"collapse"}
    text = visible(report(result, tmp_path / "report.html").read_text())
    assert text.replace("\u00a0", " ").count("not reached up to F = ") >= 3
    assert "earlier knowledge is kept up to at least" in text.lower()
    assert "▼" not in text


def test_the_study_folder_is_written_whole_and_the_same_again(study, tmp_path):
    for run in (study / "runs").iterdir():
        if not run.name.startswith("n100000"):
            shutil.copytree(run, tmp_path / "runs" / run.name)
    write_run(tmp_path / "runs" / "unfinished", Truth(), 800_000, 999, 0, done=False)
    (tmp_path / "study.yaml").write_text(
        "name: the <quick> study\nanalysis:\n  resamples: 99\n  law_resamples: 99\n", encoding="utf-8"
    )
    names = ["curves.csv", "law.json", "points.csv", "prediction.json", "report.html"]
    result = analyse_study(tmp_path, QUICK, predict_params=[3e6], now=NOW)
    first = {name: (tmp_path / name).read_bytes() for name in names}
    analyse_study(tmp_path, predict_params=[3e6])  # with the settings that study.yaml declares
    assert {name: (tmp_path / name).read_bytes() for name in names} == first
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == sorted([*names, "study.yaml"])
    assert load_points_csv(tmp_path / "points.csv") == result.points
    assert find_transitions(load_curves_csv(tmp_path / "curves.csv"), QUICK) == result.points

    page = first["report.html"].decode()
    assert "the &lt;quick&gt; study" in page
    text = visible(page)
    assert "unfinished" in text
    assert "For 3M parameters and 2M tokens" in text
    for run in load_runs(tmp_path).runs["run"]:
        assert run in text


class _Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.urls = []
        self.ids = []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.urls.append(value)
            if name == "id":
                self.ids.append(value)


def visible(page: str) -> str:
    body = re.sub(r"<(style|script|svg)\b.*?</\1>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


@pytest.fixture(scope="module")
def page(study, tmp_path_factory) -> str:
    return report(study, tmp_path_factory.mktemp("page") / "report.html", predict_params=[3e6]).read_text()


def test_the_report_loads_nothing_from_outside(page):
    links = _Links()
    links.feed(page)
    assert all(url.startswith("#") or url == "data:," for url in links.urls)
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []
    within = set(re.findall(r"(?:fetch|XMLHttpRequest|import)\(", page))
    assert within == set()


def test_ids_are_unique_and_every_reference_has_its_target(page):
    links = _Links()
    links.feed(page)
    targets = {url[1:] for url in links.urls if url.startswith("#")} | set(re.findall(r"url\(#([^)]+)\)", page))
    assert targets <= set(links.ids)
    assert len(links.ids) == len(set(links.ids))


def test_figures_are_static_svg_whose_points_tell_their_values(page):
    figures = re.findall(r"<figure><svg.*?</svg>", page, flags=re.S)
    section = page.split('id="checks"')[1].split("</section>")[0]
    checks = len(re.findall(r"<figure>.*?</figure>", section, flags=re.S))
    assert checks >= 4  # residuals, candidates, predicted and measured, errors of at least one law
    # one to read by, the decision, rates and losses also over the ratio, laws, checks; curves and spread of each model
    assert len(figures) == 1 + 2 + 4 + 3 + 4 + checks + 4 * 4
    assert all('aria-label="' in figure for figure in figures)
    assert not any(">N = 100k<" in figure for figure in figures)  # legends stand outside
    assert "N = 100k · F = 512 · \u03c1 = 0.37" in page
    assert "held-out templates 3" in page


def test_no_colour_escapes_the_light_and_dark_variables(page):
    for figure in re.findall(r"<figure><svg.*?</svg>", page, flags=re.S):
        assert set(re.findall(r"#[0-9a-f]{6}\b", figure)) <= {"#000000", "#ffffff"}


@pytest.mark.parametrize("frequencies", [(0,), (64,), (0, 64)], ids=["only F = 0", "one run", "two runs"])
def test_sparse_studies_have_a_report_that_claims_nothing(tmp_path, frequencies):
    write_study(tmp_path, Truth(facts=40), params=(100_000,), frequencies=frequencies)
    text = visible(report(tmp_path, tmp_path / "report.html").read_text())
    assert "No law was fitted" in text
    assert "▼" not in text


def test_a_study_without_a_complete_run_has_no_report(tmp_path):
    write_run(tmp_path / "runs" / "a", Truth(facts=40), 100_000, 64, 0, done=False)
    with pytest.raises(InputError, match="no complete run"):
        report(tmp_path, tmp_path / "report.html")
    assert not Path(tmp_path / "report.html").exists()


def test_seeds_are_drawn_one_by_one(tmp_path):
    write_study(tmp_path, Truth(facts=40), params=(100_000,), frequencies=(0, 64, 512), seeds=(0, 1, 2))
    page = report(tmp_path, tmp_path / "report.html").read_text()
    assert "seed 2" in page
    assert "3 seeds per cell" in visible(page)


def test_figures_and_tables_are_also_files_for_papers(tmp_path):
    from megatron_kis.analysis.report.export import export

    write_study(tmp_path / "s", Truth(facts=40), params=(100_000, 200_000, 400_000), frequencies=(0, 64, 256, 512, 900))
    result = analyse(load_runs(tmp_path / "s"), AnalysisConfig(resamples=99, law_resamples=0))
    written = {path.name for path in export(result, tmp_path / "out", dpi=40)}
    assert {"overview-background.svg", "overview-background.png", "transitions.csv"} <= written
    assert {"annotated.svg", "overview-background-ratio.svg"} <= written
    assert (tmp_path / "out" / "overview-background.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "out" / "overview-background.svg").read_text()
    assert "url(http" not in drawn
    for size in ("100k", "200k", "400k"):  # a file has a legend of its own; the page's stand outside its figures
        assert f">N = {size}<" in drawn
    assert ">held-out templates<" in (tmp_path / "out" / "model-100000-2000000-background.svg").read_text()
    lines = (tmp_path / "out" / "transitions.csv").read_text().splitlines()
    assert len(lines) == 1 + len(result.points)


def test_budgets_are_told_apart_in_the_law_and_have_no_common_ratio_axis(tmp_path):
    import numpy as np

    from megatron_kis.analysis import simulate

    cells = [(n, d) for n in (10**7, 10**8, 10**9) for d in (2 * 10**9, 8 * 10**9)]
    truth = simulate.Truth(budget_exponent=0.3, scatter=0.02)
    levels = [0, 60, 150, 300, 500, 800, 1300]
    table, _ = simulate.simulate_table(truth, cells, levels, 1, np.random.default_rng(2), groups=("background",))
    page = report(table, tmp_path / "r.html", AnalysisConfig(resamples=99, law_resamples=0)).read_text()
    assert "Lines, from below: D = 2B and 8B; bands: D = 2B." in visible(page).replace("\u00a0", " ")
    curves, models = page.split('id="curves"')[1].split('id="law"')[0], page.split('id="models"')[1]
    assert "infusion ratio ρ (share" in curves
    assert "infusion ratio ρ<" not in curves and "F (exposures per fact)<" not in curves  # F is another ratio at each D
    assert "infusion ratio" in models
