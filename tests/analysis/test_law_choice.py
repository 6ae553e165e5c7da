"""``kis law predict`` on a file with several laws: an unclear choice is refused, with options that settle it."""

from __future__ import annotations

import json

import pytest

from megatron_kis.analysis import AnalysisConfig
from megatron_kis.analysis.findings.analyse import fit_laws
from megatron_kis.analysis.law.choice import words
from megatron_kis.analysis.outputs import law_record
from megatron_kis.analysis.runs.slices import USUAL, Slice
from megatron_kis.cli.main import main
from tests.analysis.points import SIZES, point

FACTS = (100.0, 400.0)


def laws_of(*slices, group="infused", kind="collapse", status="collapsed"):
    return [
        point(n, 3 * n**0.4 / (one.held or 1) ** 0.5, kind=kind, group=group, status=status, slice=one)
        for one in slices
        for n in SIZES
    ]


def written(tmp_path, points):
    laws, refused = fit_laws(points, AnalysisConfig(law="N", law_resamples=0))
    assert refused == []
    path = tmp_path / "law.json"
    path.write_text(json.dumps(law_record(laws, refused)))
    return path, laws


def predicted(capsys, path, *options):
    """The prediction, or the error in one line."""
    status = main(["law", "predict", str(path), "--params", "1e7", "--json", *options])
    printed = capsys.readouterr()
    assert status in (0, 2)
    return json.loads(printed.out) if status == 0 else printed.err


def listed(error):
    """The options that an error lists."""
    return [line.split() for line in error.strip().partition("name one of: ")[2].split("; ")]


@pytest.fixture
def several(tmp_path):
    return written(
        tmp_path,
        [
            *laws_of(*(Slice("frequency", "facts", k) for k in FACTS)),
            *laws_of(Slice("facts", "frequency", 14.0), Slice("facts", "ratio", 0.5)),
            *laws_of(USUAL, Slice("frequency", "facts", 100.0), group="background"),
            *laws_of(USUAL, kind="onset", status="observed"),
        ],
    )


def test_every_law_of_a_file_is_chosen_by_the_options_that_the_error_lists(several, capsys):
    path, laws = several
    error = predicted(capsys, path)
    assert error.startswith(f"kis: error: {path}: 8 laws to choose from; name one of: --kind")
    options = listed(error)
    assert len(options) == len(laws) == 8
    for law, chosen in zip(laws, options, strict=True):
        found = predicted(capsys, path, *chosen)
        assert found["law"]["fingerprint"] == law.fingerprint
        assert (found["kind"], found["group"]) == (law.kind, law.group)


def test_the_first_kind_and_group_is_asked_where_it_has_one_law(tmp_path, capsys):
    onset = laws_of(USUAL, kind="onset", status="observed")
    path, laws = written(tmp_path, [*onset, *laws_of(USUAL, group="background"), *laws_of(USUAL)])
    assert (laws[0].kind, laws[0].group) == ("collapse", "infused")
    assert predicted(capsys, path)["law"]["fingerprint"] == laws[0].fingerprint
    assert predicted(capsys, path, "--group", "background")["group"] == "background"
    assert predicted(capsys, path, "--kind", "onset")["kind"] == "onset"
    assert main(["law", "predict", str(path), "--params", "1e7"]) == 0
    assert "other laws of the file: --kind collapse --group background; --kind onset" in capsys.readouterr().err


def test_one_law_needs_no_choice_and_is_not_taken_for_another(tmp_path, capsys):
    path, (law,) = written(tmp_path, laws_of(Slice("frequency", "facts", 100.0)))
    assert predicted(capsys, path)["law"]["fingerprint"] == law.fingerprint
    assert predicted(capsys, path, "--held", "100", "--kind", "collapse")["held"] == 100
    for wrong in (
        ["--held", "400"],
        ["--kind", "onset"],
        ["--group", "background"],
        ["--axis", "facts"],
        ["--together"],
    ):
        error = predicted(capsys, path, *wrong)
        assert f"no law of {' '.join(wrong)}; there is: --kind collapse --group infused" in error
    assert "--group: is 'infussed'; did you mean 'infused'?" in predicted(capsys, path, "--group", "infussed")


def test_what_is_held_names_the_law_of_its_slice_or_asks_that_of_several(tmp_path, capsys):
    path, laws = written(tmp_path, laws_of(*(Slice("frequency", "facts", k) for k in FACTS)))
    own = predicted(capsys, path, "--held", "400")
    assert own["law"]["fingerprint"] == laws[1].fingerprint
    assert own["centre"] == pytest.approx(3 * 1e7**0.4 / 20, rel=1e-3)
    assert "held" not in own["extrapolation"]
    new = predicted(capsys, path, "--held", "2.5k")
    assert new["law"]["fingerprint"] == laws[2].fingerprint
    assert (new["held_by"], new["held"]) == ("facts", 2500)
    assert new["centre"] == pytest.approx(3 * 1e7**0.4 / 50, rel=1e-3)
    both = predicted(capsys, path, "--held", "400", "--together")
    assert both["law"]["fingerprint"] == laws[2].fingerprint
    assert both["extrapolation"]["held"] == 1
    assert "--held: the law depends on the facts held; name it, for example 100 or 400" in predicted(
        capsys, path, "--together"
    )
    assert "--held: is 0.5; a number of facts, at least 1" in predicted(capsys, path, "--held", "0.5")


def test_a_share_that_is_held_is_at_most_one(tmp_path, capsys):
    path, _ = written(tmp_path, laws_of(*(Slice("facts", "ratio", share) for share in (0.25, 0.5))))
    assert predicted(capsys, path, "--held", "0.75")["held"] == 0.75
    assert "--held: is 2; a share of the tokens, at most 1" in predicted(capsys, path, "--held", "2")
    with pytest.raises(SystemExit) as stop:
        main(["law", "predict", str(path), "--params", "1e7", "--held", "-1"])
    assert stop.value.code == 2


def test_the_law_that_was_asked_is_printed(tmp_path, capsys):
    path, _ = written(tmp_path, laws_of(*(Slice("frequency", "facts", k) for k in FACTS)))
    for options, formula in (([], "log F* = a + b log N"), (["--together"], "log F* = a + b log N + d log K")):
        assert main(["law", "predict", str(path), "--params", "1e7", "--held", "400", *options]) == 0
        (line,) = (line for line in capsys.readouterr().out.splitlines() if "log F*" in line)
        assert line.rstrip().endswith(formula)


def test_options_are_named_only_as_far_as_they_choose(several):
    _, laws = several
    said = [words(law, laws) for law in laws]
    assert len(set(said)) == len(said)
    assert "--kind collapse --group infused --axis frequency --held 400" in said
    assert "--kind collapse --group infused --axis frequency --together --held 100" in said
    assert "--kind collapse --group infused --axis facts --held-by ratio" in said
    assert "--kind collapse --group background --held-by nothing" in said
    assert "--kind onset --group infused" in said
