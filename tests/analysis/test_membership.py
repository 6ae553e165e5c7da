"""Which runs are pooled: every key of a configuration, every fingerprint, with the manifest of a study and without."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.analysis.runs.curves import curve_table
from megatron_kis.analysis.runs.load import load_runs
from megatron_kis.analysis.runs.membership import parse_manifest
from megatron_kis.common.asked import CHOICE, answers_of
from megatron_kis.common.configuration import parse_config
from megatron_kis.common.errors import InputError
from megatron_kis.common.identity import (
    ASKED,
    CELL,
    DATA,
    OF_THE_SIZE,
    OLDER_TOKENIZER,
    QUESTIONS,
    RESULTLESS,
    leaves,
    settings_of,
    within,
)
from megatron_kis.config.run import RunConfig
from megatron_kis.study.manifest import manifest_of, write_manifest
from tests.analysis.synthetic import Truth, config_of, write_run

TRUTH = Truth(facts=30)
FREQUENCIES = (0, 64, 128, 256)
SIZES = (100_000, 200_000)
FINGERPRINTS = {name: f"{number}{number}" * 32 for number, name in enumerate(DATA)}
CONFIG = config_of(Path("/s/runs/x"), TRUTH, SIZES[0], 64, 0)
KEYS = [key for key, _ in leaves(CONFIG)]
CHANGED = "n100000-f64-s0"


def name_of(params: int, frequency: int) -> str:
    return f"n{params}-f{frequency}-s0"


def write(study: Path, params: int, frequency: int, *, config: dict[str, Any] | None = None, **more: Any) -> Path:
    """A run of the study, or one that was made otherwise."""
    path = study / "runs" / name_of(params, frequency)
    config = config or config_of(path, TRUTH, params, frequency, 0)
    prints = FINGERPRINTS | more.pop("fingerprints", {})
    return write_run(path, TRUTH, params, frequency, 0, closed=True, config=config, fingerprints=prints, **more)


def manifest(study: Path, fingerprints: dict[str, str] = FINGERPRINTS) -> None:
    """``study.json`` of the whole grid."""
    runs = [
        parse_config(RunConfig, config_of(study / "runs" / name_of(n, f), TRUTH, n, f, 0), source="test")
        for n in SIZES
        for f in FREQUENCIES
    ]
    write_manifest(study, "synthetic", runs, fingerprints)


@pytest.fixture(params=["named", "unnamed"])
def study(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A study of two sizes, with its ``study.json`` and without."""
    for params in SIZES:
        for frequency in FREQUENCIES:
            write(tmp_path, params, frequency)
    if request.param == "named":
        manifest(tmp_path)
    return tmp_path


def changed(config: dict[str, Any], key: str) -> dict[str, Any]:
    """The configuration with another value at a key."""
    config = copy.deepcopy(config)
    *path, last = key.split(".")
    section = config
    for part in path:
        section = section[part]
    value = section[last]
    section[last] = {
        bool: lambda: not value,
        int: lambda: value + 1,
        float: lambda: value * 2 + 0.25,
        str: lambda: value + "x",
        list: lambda: [*value, 7],
        dict: lambda: {**value, "x": "y"},
        type(None): lambda: 7,
    }[type(value)]()
    return config


def foreign(study: Path, *, status: str = "foreign") -> dict[str, str]:
    runs = load_runs(study)
    assert set(runs.problems["status"]) <= {status}
    apart = dict(zip(runs.problems["run"], runs.problems["reason"], strict=True))
    for table in (runs.runs, runs.history, runs.probes, runs.losses):
        assert not set(table["run"]) & set(apart)
    return apart


def test_all_runs_of_a_study_are_pooled(study: Path) -> None:
    assert foreign(study) == {}
    assert len(curve_table(load_runs(study)).groupby(["params", "frequency"])) == 8


def test_the_table_has_every_key_of_a_run() -> None:
    assert {key for key, _ in leaves(parse_config(RunConfig, CONFIG, source="test").model_dump(mode="json"))} == set(
        KEYS
    )
    assert len(KEYS) > 60


@pytest.mark.parametrize("key", KEYS)
def test_a_run_that_differs_in_a_key_is_apart_and_the_key_is_named_or_the_key_changes_no_result(
    study: Path, key: str
) -> None:
    named = (study / "study.json").exists()
    before = config_of(study / "runs" / CHANGED, TRUTH, SIZES[0], 64, 0)
    config = changed(before, key)
    write(study, SIZES[0], 64, config=config)
    apart = foreign(study, status="unasked" if within(key, ASKED) else "foreign")
    if within(key, ASKED) and not within(key, CHOICE):  # when it was asked, and how many questions at a time
        assert apart == {}
    elif key == "extends":  # a path; but that there is one decides how the tokens are fed
        assert apart == {CHANGED: "unlike 3 runs here: extends a finished run -> none"}
    elif within(key, RESULTLESS) or (within(key, CELL) and not named) or key == "documents.eod_belongs_to":
        # the last of these counts only with reset_attention: tests/megatron_kis/test_documents.py
        assert apart == {}
    else:
        assert list(apart) == [CHANGED]
        assert f"{key} " in apart[CHANGED]


@pytest.mark.parametrize("key", [key for key in KEYS if within(key, OF_THE_SIZE) and not within(key, RESULTLESS)])
def test_a_size_may_have_values_of_its_own(tmp_path: Path, key: str) -> None:
    for params in SIZES:
        for frequency in FREQUENCIES:
            config = config_of(tmp_path / "runs" / name_of(params, frequency), TRUTH, SIZES[0], frequency, 0)
            write(tmp_path, params, frequency, config=changed(config, key) if params == SIZES[1] else config)
    assert foreign(tmp_path) == {}


@pytest.mark.parametrize("name", DATA)
def test_a_run_on_other_data_is_apart(study: Path, name: str) -> None:
    write(study, SIZES[0], 64, fingerprints={name: "f" * 64})
    apart = foreign(study, status="unasked" if name == QUESTIONS else "foreign")
    assert list(apart) == [CHANGED]
    assert f"{name} ffffffffffff -> {FINGERPRINTS[name][:12]}" in apart[CHANGED]


def test_runs_that_take_the_facts_in_another_order_are_not_pooled(study: Path) -> None:
    for frequency in FREQUENCIES[1:]:
        write(study, SIZES[0], frequency, fingerprints={"order": ("a" if frequency == 64 else "b") * 64})
    assert foreign(study) == {CHANGED: "unlike 7 runs here: order aaaaaaaaaaaa -> bbbbbbbbbbbb"}


NEW = "9" * 64


def answer(run: Path, questions: str, probes: dict[str, Any], *, asked: str, factor: int = 1) -> None:
    """Answers of a run beside its own: those of the last step, of which as many are right as ``factor`` says."""
    place = run / "asked" / f"{questions[:6]}{asked[-1]}"
    place.mkdir(parents=True)
    rows = [json.loads(line) for line in (run / "probes.jsonl").read_text().splitlines()]
    last = [row | {"correct": row["correct"] // 2 * factor} for row in rows if row["step"] == rows[-1]["step"]]
    content = "".join(json.dumps(row) + "\n" for row in last)
    (place / "probes.jsonl").write_text(content)
    files = {"probes.jsonl": hashlib.sha256(content.encode()).hexdigest()}
    record = {"schema": "kis.asked/1", "questions": questions, "probes": probes, "asked": asked, "files": files}
    (place / "asked.json").write_text(json.dumps(record))


def test_of_a_runs_answers_those_to_the_studys_questions_are_used_and_the_others_named(study: Path) -> None:
    folders = [study / "runs" / name_of(n, f) for n in SIZES for f in FREQUENCIES]
    before = load_runs(study)
    for folder in folders[1:]:
        answer(folder, NEW, CONFIG["probes"], asked="2026-01-01T00:00:01Z", factor=0)
    named = (study / "study.json").exists()
    if named:
        assert load_runs(study).probes.equals(before.probes)  # of the study's own questions
        manifest(study, FINGERPRINTS | {QUESTIONS: NEW})
    else:
        answer(folders[0], "8" * 64, CONFIG["probes"], asked="2026-01-01T00:00:02Z")
        assert load_runs(study).probes.equals(before.probes)  # what all were asked
        record = json.loads((folders[1] / "run.json").read_text())
        for folder in folders[1:]:
            record = json.loads((folder / "run.json").read_text())
            record["fingerprints"][QUESTIONS] = folder.name  # each begun with others
            (folder / "run.json").write_text(json.dumps(record))
            done = json.loads((folder / "DONE").read_text())
            done["files"]["run.json"] = hashlib.sha256((folder / "run.json").read_bytes()).hexdigest()
            (folder / "DONE").write_text(json.dumps(done))
    runs = load_runs(study)
    assert list(runs.unasked["run"]) == [folders[0].name]
    assert "kis study probe" in runs.unasked["reason"].iloc[0]
    assert sorted(runs.runs["run"]) == sorted(folder.name for folder in folders[1:])
    assert set(runs.probes["correct"]) == {0}
    assert set(runs.losses["run"]) == set(runs.runs["run"])
    assert len(runs.templates)
    assert {record["fingerprints"][QUESTIONS] for record in runs.records.values()} == {NEW}


def test_answers_that_were_changed_or_of_no_record_are_damage(study: Path) -> None:
    folder = study / "runs" / CHANGED
    answer(folder, NEW, CONFIG["probes"], asked="2026-01-01T00:00:01Z")
    (place,) = answers_of(folder).values()
    manifest(study, FINGERPRINTS | {QUESTIONS: NEW})
    (place / "probes.jsonl").write_text("{}\n")
    runs = load_runs(study)
    assert dict(zip(runs.problems["run"], runs.problems["status"], strict=True))[CHANGED] == "damaged"
    (place / "asked.json").write_text("{}")
    assert foreign_status(study)[CHANGED] == "damaged"


def foreign_status(study: Path) -> dict[str, str]:
    runs = load_runs(study)
    return dict(zip(runs.problems["run"], runs.problems["status"], strict=True))


def test_a_study_whose_runs_were_all_asked_otherwise_says_how_to_ask_them(study: Path) -> None:
    manifest(study, FINGERPRINTS | {QUESTIONS: NEW})
    with pytest.raises(InputError, match=r"no complete run was asked the study's questions.*kis study probe"):
        curve_table(load_runs(study))


def test_an_older_fingerprint_of_the_same_tokenizer_is_no_difference(tmp_path: Path) -> None:
    for params in SIZES:
        for frequency in FREQUENCIES:
            write(tmp_path, params, frequency, fingerprints={"tokenizer": "e" * 64} if frequency == 64 else {})
    manifest(tmp_path, FINGERPRINTS | {OLDER_TOKENIZER: "e" * 64})
    assert foreign(tmp_path) == {}
    write(tmp_path, SIZES[0], 64, fingerprints={"tokenizer": "d" * 64})
    assert list(foreign(tmp_path)) == [CHANGED]


def test_a_run_of_another_precision_or_from_another_start_is_apart(study: Path) -> None:
    for params in SIZES:
        for frequency in FREQUENCIES:
            start = {"start": f"{params}"}  # each size has its own
            write(study, params, frequency, precision="fp32", fingerprints=start)
    assert foreign(study) == {}
    write(study, SIZES[0], 64, precision="bf16", fingerprints={"start": f"{SIZES[0]}"})
    assert foreign(study) == {CHANGED: "unlike 7 runs here: precision bf16 -> fp32"}
    write(study, SIZES[0], 64, precision="fp32")
    assert foreign(study) == {CHANGED: "unlike 3 runs here: start none -> 100000"}


def test_frequencies_from_a_file_and_one_for_all_are_not_pooled(study: Path) -> None:
    config = config_of(study / "runs" / CHANGED, TRUTH, SIZES[0], 64, 0)
    config["infusion"] |= {"frequency": None, "frequencies": "counts.tsv"}
    write(study, SIZES[0], 64, config=config)
    assert list(foreign(study)) == [CHANGED]
    assert "infusion.freq" in foreign(study)[CHANGED]


def test_a_run_that_the_study_does_not_name_is_apart_with_what_differs(tmp_path: Path) -> None:
    for frequency in (*FREQUENCIES, 8):
        config = config_of(tmp_path / "runs" / name_of(SIZES[0], frequency), TRUTH, SIZES[0], frequency, 0)
        if frequency == 8:
            config["training"]["optimizer"]["learning_rate"] = 0.01
            write(tmp_path, SIZES[0], 8, config=config, fingerprints={"validation": "f" * 64})
        else:
            write(tmp_path, SIZES[0], frequency, config=config)
    manifest(tmp_path)
    assert foreign(tmp_path) == {
        "n100000-f8-s0": "the study does not name it; training.optimizer.learning_rate 0.01 -> 0.003; "
        f"validation ffffffffffff -> {FINGERPRINTS['validation'][:12]}"
    }


def test_the_most_runs_stay_and_of_equally_many_the_first(tmp_path: Path) -> None:
    for frequency in FREQUENCIES:
        config = config_of(tmp_path / "runs" / name_of(SIZES[0], frequency), TRUTH, SIZES[0], frequency, 0)
        if frequency in (64, 256):
            config["training"]["global_batch_size"] = 16
            config["training"]["optimizer"]["learning_rate"] = 0.01
        write(tmp_path, SIZES[0], frequency, config=config)
    expected = "unlike 2 runs here: training.global_batch_size 16 -> 8; training.optimizer.learning_rate 0.01 -> 0.003"
    assert foreign(tmp_path) == {name_of(SIZES[0], frequency): expected for frequency in (64, 256)}


def test_what_a_record_does_not_say_is_not_compared_among_the_runs(tmp_path: Path) -> None:
    """Records of other trainers; those that do say it must agree all the same."""
    for frequency in FREQUENCIES:
        prints = {256: {"validation": "aa"}, 128: {"validation": "bb"}}.get(frequency, {})
        write_run(tmp_path / "runs" / f"f{frequency}", TRUTH, SIZES[0], frequency, 0, fingerprints=prints)
    assert foreign(tmp_path) == {"f256": "unlike 3 runs here: validation aa -> bb"}


def test_of_a_run_that_does_not_say_its_settings_the_rest_is_compared(study: Path) -> None:
    path = study / "runs" / CHANGED
    write_run(path, TRUTH, SIZES[0], 64, 0, fingerprints=FINGERPRINTS)
    assert foreign(study) == {}
    write_run(path, TRUTH, SIZES[0], 64, 0, fingerprints=FINGERPRINTS | {"validation": "f" * 64})
    assert list(foreign(study)) == [CHANGED]
    if (study / "study.json").exists():
        write_run(path, TRUTH, SIZES[0], 65, 0, fingerprints=FINGERPRINTS)
        assert foreign(study) == {CHANGED: "infusion.frequency 65 -> 64.0"}


def test_the_recorded_settings_count_where_there_are_some(study: Path) -> None:
    config = config_of(study / "runs" / CHANGED, TRUTH, SIZES[0], 64, 0)
    write(study, SIZES[0], 64, config=changed(config, "training.global_batch_size"), settings=settings_of(config))
    assert foreign(study) == {}
    write(study, SIZES[0], 64, config=config, settings=settings_of(changed(config, "training.global_batch_size")))
    assert list(foreign(study)) == [CHANGED]


def test_the_manifest_is_found_from_the_runs_and_what_is_given_comes_first(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest(study)
    write(study, SIZES[0], 8)
    for place in (study, study / "runs", study / "runs" / ".." / "runs"):
        assert load_runs(place).foreign["run"].tolist() == ["n100000-f8-s0"]
    monkeypatch.chdir(study / "runs")
    assert load_runs(".").foreign["run"].tolist() == ["n100000-f8-s0"]
    one = parse_config(RunConfig, config_of(study / "runs" / "n100000-f8-s0", TRUTH, SIZES[0], 8, 0), source="test")
    only = load_runs(study, belongs=manifest_of("synthetic", [one], {}))
    assert only.runs["run"].tolist() == ["n100000-f8-s0"]
    assert len(only.foreign) == 8


def test_a_study_whose_runs_are_all_foreign_has_no_curves_and_says_why(study: Path) -> None:
    runs = load_runs(study, belongs=manifest_of("synthetic", [], {}))
    with pytest.raises(InputError, match=r"no complete run of this study.*the study does not name it"):
        curve_table(runs)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"data": []}, "data: not a mapping"),
        ({"settings": {}}, "settings: not a list"),
        ({"runs": [["a", 0, 1, 2]]}, "runs.0: is not"),
        ({"runs": [["a", 0, 1, 2, 3, 4]]}, "runs.0: is not"),
        ({"runs": [["a", 1, 1, 2, 3]]}, "runs.0: there are no settings with the number 1"),
        ({"runs": [["a", 0, 1, 2, 3], ["a", 0, 1, 2, 4]]}, "runs.1: names 'a' again"),
    ],
)
def test_a_damaged_manifest_is_an_error_with_its_place(content: dict[str, Any], said: str) -> None:
    whole = {"data": {}, "settings": [{}], "runs": [["a", 0, 1, 2, 3]]}
    parse_manifest(whole)
    with pytest.raises(InputError, match=f"study.json: {said}"):
        parse_manifest(whole | content)


@pytest.mark.parametrize(
    ("infusion", "row"),
    [
        ({"frequency": 64}, [64.0, 0]),
        ({"frequency": 64, "facts": 12}, [64.0, 0, 12, None]),
        ({"frequency": None, "ratio": 0.5}, [None, 0, None, 0.5]),
        ({"frequency": None, "ratio": 0.5, "facts": 12}, [None, 0, 12, 0.5]),
    ],
)
def test_the_manifest_names_the_dose_and_a_run_of_another_is_apart(
    tmp_path: Path, infusion: dict[str, Any], row: list[Any]
) -> None:
    config = config_of(tmp_path / "runs" / CHANGED, TRUTH, SIZES[0], 64, 0)
    config["infusion"] |= infusion
    run = parse_config(RunConfig, config, source="test")
    write(tmp_path, SIZES[0], 64, config=config)
    write_manifest(tmp_path, "synthetic", [run], FINGERPRINTS)
    content = json.loads((tmp_path / "study.json").read_text())
    assert content["runs"] == [[run.name, 0, run.training.token_budget, *row]]
    assert "facts" not in content["settings"][0]["infusion"]
    assert foreign(tmp_path) == {}
    write(tmp_path, SIZES[0], 64, config={**config, "infusion": {**config["infusion"], "facts": 11}})
    assert "infusion.facts 11 -> " in foreign(tmp_path)[CHANGED]


def test_a_record_without_settings_is_not_compared_by_its_frequency_where_the_study_gives_a_ratio(
    tmp_path: Path,
) -> None:
    config = config_of(tmp_path / "runs" / CHANGED, TRUTH, SIZES[0], 64, 0)
    config["infusion"] |= {"frequency": None, "ratio": 0.5}
    write_manifest(tmp_path, "synthetic", [parse_config(RunConfig, config, source="test")], FINGERPRINTS)
    write_run(tmp_path / "runs" / CHANGED, TRUTH, SIZES[0], 64, 0, fingerprints=FINGERPRINTS)
    assert foreign(tmp_path) == {}


def test_the_manifest_of_ten_thousand_runs_is_small(tmp_path: Path) -> None:
    run = parse_config(RunConfig, CONFIG, source="test")
    runs = [run.model_copy(update={"name": f"a-size-of-its-own_D1.2M_F{number}_s0"}) for number in range(10_000)]
    write_manifest(tmp_path, "many", runs, FINGERPRINTS)
    assert (tmp_path / "study.json").stat().st_size < 700_000
    content = json.loads((tmp_path / "study.json").read_text())
    assert len(content["runs"]) == 10_000
    few = manifest_of("many", runs[:100], FINGERPRINTS)
    assert content | {"runs": content["runs"][:100]} == few
    assert len(content["settings"]) == 1
    assert not {key for key, _ in leaves(content["settings"][0]) if within(key, (*CELL, *RESULTLESS))}
