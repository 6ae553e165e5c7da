from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from megatron_kis.analysis.runs.curves import CURVE_COLUMNS, curve_table, write_curves_csv
from megatron_kis.analysis.runs.load import load_runs
from megatron_kis.analysis.runs.load_csv import load_curves_csv
from megatron_kis.common.errors import InputError, JobError
from megatron_kis.common.files import sha256_file
from tests.analysis.synthetic import Truth, write_run


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    for frequency in (0, 64, 256):
        write_run(tmp_path / f"f{frequency}", Truth(facts=30), 100_000, frequency, 0)
    return tmp_path


def test_complete_runs_are_read_at_their_last_step(runs_dir):
    runs = load_runs(runs_dir)
    assert sorted(runs.runs["frequency"]) == [0, 64, 256]
    assert set(runs.probes["step"]) == {500}
    assert set(runs.history["step"]) == {250, 500}
    assert len(runs.probes) == 3 * 3 * 3  # runs, groups, splits
    assert runs.runs["exposures_exact"].all()
    assert len(runs.templates) == 3 * 3 * 3 * (8 + 3 + 2)  # runs, groups, relations, templates


def test_margins_and_pairs_are_read_where_a_run_has_them(runs_dir):
    path = runs_dir / "f64" / "probes.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    finer = {"mean_margin": 2.5, "mean_margin_sd": 1.25, "pairwise": 0.75, "pairwise_sd": None}
    path.write_text("".join(json.dumps(row | finer) + "\n" for row in rows))
    probes = load_runs(runs_dir).probes
    own, old = probes[probes["run"] == "f64"], probes[probes["run"] != "f64"]
    assert set(own["mean_margin"]) == {2.5}
    assert set(own["mean_margin_sd"]) == {1.25}
    assert set(own["pairwise"]) == {0.75}
    assert own["pairwise_sd"].isna().all()  # of a single fact
    assert old[list(finer)].isna().all(axis=None)
    assert list(probes[list(finer)].dtypes) == [float] * 4
    path.write_text("".join(json.dumps(row | {"pairwise": "x"}) + "\n" for row in rows))
    (problem,) = load_runs(runs_dir).problems.to_dict("records")
    assert "'pairwise' is 'x'" in problem["reason"]


def test_a_run_without_done_is_listed_and_not_used(runs_dir):
    (runs_dir / "f64" / "DONE").unlink()
    runs = load_runs(runs_dir)
    assert "f64" not in set(runs.runs["run"]) | set(runs.probes["run"]) | set(runs.losses["run"])
    assert runs.problems.to_dict("records") == [
        {"run": "f64", "status": "incomplete", "reason": "no DONE: running, killed or failed after step 500"}
    ]


def _truncate_probes(run: Path) -> None:
    text = (run / "probes.jsonl").read_text()
    (run / "probes.jsonl").write_text(text[: len(text) // 2])


def _only_early_probes(run: Path) -> None:
    lines = (run / "probes.jsonl").read_text().splitlines(keepends=True)
    (run / "probes.jsonl").write_text("".join(line for line in lines if '"step": 250' in line))


def _more_right_than_asked(run: Path) -> None:
    lines = (run / "probes.jsonl").read_text().splitlines()
    row = json.loads(lines[3])
    lines[3] = json.dumps(row | {"correct": row["n"] + 1})
    (run / "probes.jsonl").write_text("\n".join(lines) + "\n")


def _half_a_question(run: Path) -> None:
    text = (run / "probes.jsonl").read_text()
    (run / "probes.jsonl").write_text(text.replace('"n": ', '"n": 0.5e0, "m": ', 1).replace("0.5e0", "240.5", 1))


def _no_rate(run: Path) -> None:
    text = (run / "probes.jsonl").read_text()
    (run / "probes.jsonl").write_text(text.replace('"chance": 0.25', '"chance": NaN', 1))


def _strange_fingerprints(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"fingerprints": "none", "params": True}))


def _wrong_schema(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"schema": "kis.run/99"}))


def _key_twice(name: str, old: str, new: str):
    def damage(run: Path) -> None:
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new, 1))

    return damage


def _closed_with_other_bytes(run: Path) -> None:
    digest = sha256_file(run / "metrics.jsonl")
    (run / "DONE").write_text(json.dumps({"schema": "kis.done/1", "files": {"metrics.jsonl": digest}}))
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "validation", "step": 501, "tokens": 1, "loss": 0.1}\n')


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_truncate_probes, "malformed JSON line"),
        (_only_early_probes, "not the end of the run"),
        (_more_right_than_asked, "probes.jsonl:4"),
        (_wrong_schema, "kis.run/1"),
        (_half_a_question, "a whole number"),
        (_no_rate, "malformed JSON line"),
        (_strange_fingerprints, "'params' is True"),
        (lambda run: (run / "DONE").write_text("{"), "not valid JSON"),
        (lambda run: (run / "DONE").write_text('{"files": {}, "files": {}}'), "'files' is given twice"),
        (_key_twice("run.json", '"params": ', '"params": 7, "params": '), "'params' is given twice"),
        (_key_twice("exposures.json", '"f3": ', '"f3": 1, "f3": '), "'f3' is given twice"),
        (_key_twice("probes.jsonl", '"correct": ', '"correct": 1, "correct": '), "probes.jsonl:1: the key 'correct'"),
        (_key_twice("probes.jsonl", '"correct": ', '"correct" : 1, "correct": '), "probes.jsonl:1: the key 'correct'"),
        (_key_twice("metrics.jsonl", '"loss": ', '"loss": 1, "loss": '), "metrics.jsonl:1: the key 'loss'"),
        (_key_twice("probes.jsonl", '"statement"', '"\\u001b[31m"'), "'scoring' is '\\x1b[31m'"),
        (lambda run: (run / "probes.jsonl").write_text("[1]\n"), "probes.jsonl:1: not a JSON object"),
        (lambda run: (run / "probes.jsonl").write_bytes(b"\xff\xfe{}\n"), "malformed JSON line"),
        (lambda run: (run / "probes.jsonl").write_text(""), "holds no probe row"),
        (_closed_with_other_bytes, "changed after the run was closed"),
        (lambda run: (run / "metrics.jsonl").unlink(), "no such file"),
        (lambda run: (run / "run.json").write_text("{}"), "schema"),
    ],
)
def test_a_damaged_run_is_listed_with_its_reason_and_not_used(runs_dir, damage, said):
    damage(runs_dir / "f64")
    runs = load_runs(runs_dir)
    assert sorted(runs.runs["run"]) == ["f0", "f256"]
    (problem,) = runs.problems.to_dict("records")
    assert (problem["run"], problem["status"]) == ("f64", "damaged")
    assert said in problem["reason"]


def test_runs_that_were_asked_other_questions_are_listed_and_not_used(runs_dir):
    record = json.loads((runs_dir / "f64" / "run.json").read_text())
    record["fingerprints"]["questions"] = "b7" * 32
    (runs_dir / "f64" / "run.json").write_text(json.dumps(record))
    runs = load_runs(runs_dir)
    assert sorted(runs.runs["run"]) == sorted(runs.records) == ["f0", "f256"]
    assert "f64" not in set(runs.history["run"]) | set(runs.losses["run"]) | set(runs.templates["run"])
    (problem,) = runs.problems.to_dict("records")
    assert (problem["run"], problem["status"]) == ("f64", "unasked")
    assert "was asked other questions (questions b7b7b7b7b7b7 -> a2a2a2a2a2a2)" in problem["reason"]


def test_what_is_no_run_is_listed_by_name(runs_dir):
    (runs_dir / "notes").mkdir()
    (runs_dir / "closed").mkdir()
    (runs_dir / "closed" / "DONE").write_text("")
    listed = load_runs(runs_dir).problems.set_index("run")["reason"].to_dict()
    assert listed["notes"] == "no run.json and no DONE: never started, or not a run folder"
    assert "run.json: no such file" in listed["closed"]


def test_probe_rows_repeated_after_a_resume_count_once(runs_dir):
    before = curve_table(load_runs(runs_dir))
    lines = (runs_dir / "f64" / "probes.jsonl").read_text()
    (runs_dir / "f64" / "probes.jsonl").write_text(lines + lines)
    assert curve_table(load_runs(runs_dir)).equals(before)


def test_an_exposure_too_few_shows_in_the_ledger_column(runs_dir):
    ledger = json.loads((runs_dir / "f64" / "exposures.json").read_text())
    ledger["received"]["infused"]["f3"] -= 1
    (runs_dir / "f64" / "exposures.json").write_text(json.dumps(ledger))
    exact = load_runs(runs_dir).runs.set_index("run")["exposures_exact"]
    assert exact.to_dict() == {"f0": True, "f256": True, "f64": False}


def test_facts_whose_planned_exposures_differ_are_compared_each_with_its_own(runs_dir):
    path = runs_dir / "f64" / "exposures.json"
    ledger = json.loads(path.read_text())
    facts = list(ledger["received"]["infused"])
    counts = {fact: 64 + number % 2 for number, fact in enumerate(facts)} | {facts[0]: 0}  # a ratio; one is not shown
    ledger |= {"received": {"infused": counts}, "expected": {"infused": {"facts": len(facts), "by_fact": counts}}}
    path.write_text(json.dumps(ledger))
    assert load_runs(runs_dir).runs.set_index("run")["exposures_exact"]["f64"]
    ledger["received"]["infused"][facts[1]] -= 1
    path.write_text(json.dumps(ledger | {"expected": {"infused": {"by_fact": counts | {facts[1]: 65}}}}))
    assert not load_runs(runs_dir).runs.set_index("run")["exposures_exact"]["f64"]


def test_no_complete_run_is_an_error_that_names_the_folders(runs_dir):
    for run in runs_dir.iterdir():
        (run / "DONE").unlink()
    with pytest.raises(InputError, match=r"no complete run.*f0: no DONE"):
        curve_table(load_runs(runs_dir))


def test_a_missing_or_empty_folder_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        load_runs(tmp_path / "absent")
    with pytest.raises(InputError, match="holds no run folder"):
        load_runs(tmp_path)


def test_two_runs_of_one_cell_and_seed_are_refused(runs_dir):
    shutil.copytree(runs_dir / "f64", runs_dir / "f64-again")
    with pytest.raises(InputError, match="f64, f64-again"):
        curve_table(load_runs(runs_dir))


def test_of_mixed_background_policies_the_fewer_are_listed_and_not_used(runs_dir):
    record = json.loads((runs_dir / "f64" / "run.json").read_text())
    (runs_dir / "f64" / "run.json").write_text(json.dumps(record | {"background_policy": "protected"}))
    runs = load_runs(runs_dir)
    assert set(curve_table(runs)["frequency"]) == {0, 256}
    assert runs.foreign["reason"].tolist() == ["unlike 2 runs here: background policy protected -> displaced"]


def test_hidden_and_nested_run_folders_are_listed(runs_dir):
    shutil.copytree(runs_dir / "f64", runs_dir / ".f128")
    shutil.copytree(runs_dir / "f64", runs_dir / "big" / "size_F64_s0")
    (runs_dir / ".ipynb_checkpoints").mkdir()
    runs = load_runs(runs_dir)
    assert sorted(runs.runs["run"]) == ["f0", "f256", "f64"]
    assert runs.problems[["run", "status"]].to_numpy().tolist() == [
        [".f128", "misplaced"],
        ["big/size_F64_s0", "misplaced"],
    ]


@pytest.mark.parametrize("name", ["probes.jsonl", "DONE"])
def test_an_error_of_the_disk_ends_the_work_and_is_no_damage(runs_dir, monkeypatch, name):
    read = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.name == name and path.parent.name == "f64":
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    monkeypatch.setattr("megatron_kis.common.files._WAITS", (0.0,))
    with pytest.raises(JobError, match=f"f64/{name}: cannot be read"):
        load_runs(runs_dir)


def test_curves_csv_comes_back_as_it_was_written(runs_dir, tmp_path):
    table = curve_table(load_runs(runs_dir))
    write_curves_csv(table, tmp_path / "curves.csv")
    back = load_curves_csv(tmp_path / "curves.csv")
    assert list(back.columns) == CURVE_COLUMNS
    for column in CURVE_COLUMNS:
        assert back[column].tolist() == table[column].tolist(), column
