"""Evaluations of lm-evaluation-harness become curves.csv: counts, not rates."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.analysis.runs.load_csv import load_curves_csv
from megatron_kis.cli import law
from megatron_kis.common.errors import InputError
from tests.evaluations import DATE, evaluate, sample

RUNS = "results,params,tokens,frequency,seed\n"


def kis(*arguments: Any) -> int:
    parser = argparse.ArgumentParser()
    law.add_parser(parser.add_subparsers(required=True))
    options = parser.parse_args(["law", "import", "lm-eval", *map(str, arguments)])
    status: int = options.handler(options)
    return status


def table(folder: Path, *rows: str) -> Path:
    path = folder / "runs.csv"
    path.write_text(RUNS + "".join(f"{row}\n" for row in rows))
    return path


def test_tasks_of_ours_are_counted_by_group_split_and_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = {"kis_infused_held_out_statement": [1, 0, 1, 1], "kis_background_train_answer": [0, 1], "piqa": [1, 1]}
    for frequency in (0, 50):
        evaluate(tmp_path / f"f{frequency}", tasks)
    runs = table(tmp_path, "f0,1.6e8,1B,0,3", "f50,160M,1e9,50,3")
    assert kis(runs, "--output", tmp_path / "curves.csv") == 0
    told = capsys.readouterr().out
    assert "written: 4 rows of 2 runs" in told
    assert "background train sum: acc of kis_background_train_answer" in told
    curves = load_curves_csv(tmp_path / "curves.csv")
    columns = ["params", "frequency", "seed", "n", "correct", "facts", "chance", "group", "split", "scoring"]
    assert curves[columns].values.tolist() == [
        [160_000_000, frequency, 3, *cells]
        for cells in (
            [2, 1, 1, 0.25, "background", "train", "sum"],
            [4, 3, 2, 0.25, "infused", "held_out", "statement"],
        )
        for frequency in (0, 50)
    ]


def test_tasks_and_groups_of_tasks_of_others_are_summed(tmp_path: Path) -> None:
    tasks = {"capitals": [1, 0, 1], "rivers": [0, 0], "mmlu_a": [1], "mmlu_b": [1, 0]}
    groups = {**{name: [name] for name in tasks}, "mmlu": ["mmlu_a", "mmlu_b"]}
    results = evaluate(tmp_path / "out", tasks, group_subtasks=groups)
    content = json.loads(results.read_text())
    content["results"]["mmlu"] = {"alias": "mmlu", "acc,none": 2 / 3}
    results.write_text(json.dumps(content))
    options = ("--group", "infused/train", "capitals", "rivers", "--group", "background", "mmlu")
    assert kis(table(tmp_path, f"{results},1e6,1e6,0,0"), *options, "--output", tmp_path / "c.csv") == 0
    curves = load_curves_csv(tmp_path / "c.csv")
    assert curves[["group", "split", "scoring", "n", "correct", "facts"]].values.tolist() == [
        ["background", "held_out", "statement", 3, 2, 1],
        ["infused", "train", "statement", 5, 2, 2],
    ]


def test_the_latest_evaluation_of_each_task_counts(tmp_path: Path) -> None:
    evaluate(tmp_path, {"t": [1, 1], "u": [1]}, date="2026-01-01T00-00-00.5")
    evaluate(tmp_path, {"t": [0, 0, 1]}, date="2026-01-02T00-00-00.5")
    kis(table(tmp_path, "m,1e6,1e6,0,0"), "--group", "infused", "t", "u", "--output", tmp_path / "c.csv")
    assert load_curves_csv(tmp_path / "c.csv")[["n", "correct"]].values.tolist() == [[4, 2]]


def test_a_rate_without_samples_is_a_count_where_it_is_whole(tmp_path: Path) -> None:
    evaluate(tmp_path / "out", {"t": [1, 0, 0]}, samples=False)
    runs, output = table(tmp_path, "out,1e6,1e6,0,0"), tmp_path / "c.csv"
    assert kis(runs, "--group", "infused", "t", "--chance", 0.5, "--output", output) == 0
    assert load_curves_csv(output)[["n", "correct", "facts", "chance"]].values.tolist() == [[3, 1, 3, 0.5]]
    evaluate(tmp_path / "out", {"t": [0.7, 0.4, 0.4]}, samples=False)
    with pytest.raises(
        InputError, match=r"results_.*json: acc,none of task 't': 0\.5 of 3 is 1\.5, not a whole number"
    ):
        kis(runs, "--group", "infused", "t", "--output", output)


def spoilt(folder: Path, how: str) -> None:
    """Writes an evaluation with one fault."""
    results = evaluate(folder / "out", {"t": [1, 0, 1]})
    samples = results.with_name(f"samples_t_{DATE}.jsonl")
    if how == "torn":
        samples.write_text(samples.read_text()[:-40] + "\n")
    if how == "short":
        samples.write_text("\n".join(samples.read_text().splitlines()[:2]) + "\n")
    if how == "graded":
        samples.write_text("".join(json.dumps(sample(right)) + "\n" for right in (1, 0.5, 0.5)))
    if how == "models":
        evaluate(folder / "out", {"t": [1]}, model="other")
    if how in ("again", "limit"):
        evaluate(folder / "x", {"t": [1, 0, 1] if how == "again" else [1, 0]})
    if how == "link":
        (folder / "x").symlink_to(folder / "out")
    if how == "steps":
        evaluate(folder / "out" / "step2", {"t": [1, 1, 1]}, date="2026-02-02T00-00-00.5")
    if how == "no results":
        results.unlink()
    if how == "no JSON":
        results.write_text("{")
    content = json.loads(results.read_text()) if results.exists() and how != "no JSON" else {}
    if how == "no rate":
        content["results"] = {name: {"acc,none": "N/A"} for name in ("t", "kis_infused_held_out_statement")}
    if how == "metrics":
        content["configs"]["t"]["metric_list"] = 5
    if how in ("no rate", "metrics"):
        results.write_text(json.dumps(content))
    if how in ("resps", "metrics"):
        samples.write_text(json.dumps(sample(1) | {"resps": 3}) + "\n")


ROW = "out,1e6,1e6,0,0"
Wrong = tuple[str, str, list[str], str]


def wrong(said: str, *more: str, how: str = "", row: str = ROW, group: str = "infused t") -> Wrong:
    """What is spoilt, the table's rows, the options, and what is said; ``group`` are the words of ``--group``."""
    return how, row, [*(["--group", *group.split()] if group else []), *more], said


@pytest.mark.parametrize(
    ("how", "row", "options", "said"),
    [
        wrong("runs.csv:2: column 'results': nowhere: no such file or folder", row="nowhere,1e6,1e6,0,0", group=""),
        wrong("runs.csv:2: column 'params': is 7; the number of param", row="out,7,1e6,0,0"),
        wrong("runs.csv:2: column 'results': out has no task of kis export lm-eval; .* it has t$", group=""),
        wrong("runs.csv:2: .* has no task 'tt'; did you mean 't'", group="infused tt"),
        wrong("--group infussed: unknown group 'infussed'; did", group="infussed t"),
        wrong("--group infused/held: unknown split 'held'", group="infused/held t"),
        wrong("--group infused: names no task", group="infused"),
        wrong("--group infused/held_out: counts task 't' twice", group="infused t t"),
        wrong("has no metric em; --metric acc,none", "--metric", "em"),
        wrong("jsonl:1: its 'doc' has no 'id'", "--fact", "id"),
        wrong("runs.csv:3: .*out is also read in line 2", row=ROW + "\nout,1e6,1e6,0,0"),
        wrong("csv:3: .*the same run as line 2", how="again", row=ROW + "\nx,1e6,1e6,0,0"),
        wrong("csv:3: .* x is also read in line 2", how="link", row=ROW + "\nx,1e6,1e6,5,0"),
        wrong("'t' has 2 questions, and 3 in ", how="limit", row=ROW + "\nx,1e6,1e6,5,0"),
        wrong("csv:2: .*out has 't' in several folders; name one", how="steps"),
        wrong("samples_t_.*jsonl:3: malformed JSON line", how="torn"),
        wrong("jsonl: has 1 right answers to 2 questions; results_", how="short"),
        wrong(r"jsonl:2: acc is 0\.5, neither right \(1\) nor wr", how="graded"),
        wrong("runs.csv:2: .* evaluations of several models", how="models"),
        wrong("runs.csv:2: .* has no results_<date>.json", how="no results"),
        wrong("runs.csv:2: .*out has no task of kis export lm-eval", how="no rate", group=""),
        wrong("has no metric acc or exact_match; name another", how="no rate"),
        wrong("jsonl:1: has no list 'resps'", how="resps"),
        wrong("jsonl:1: has no list 'resps'", how="metrics"),
        wrong(
            "runs.csv:2: column 'results': .*~nobody_of_that_name", row="~nobody_of_that_name/out,1e6,1e6,0,0", group=""
        ),
        wrong("results_.*json:1: not valid JSON", how="no JSON"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(
    tmp_path: Path, how: str, row: str, options: list[str], said: str
) -> None:
    spoilt(tmp_path, how)
    with pytest.raises(InputError, match=said):
        kis(table(tmp_path, row), *options, "--output", tmp_path / "c.csv")
    assert not (tmp_path / "c.csv").exists()


def test_a_table_of_runs_without_results_is_refused(tmp_path: Path) -> None:
    runs = tmp_path / "runs.csv"
    runs.write_text("folder,N,D,F,seed\nout,1e6,1e6,0,0\n")
    with pytest.raises(InputError, match=r"runs.csv:1: no columns 'results', .*; rename .*'N' to 'params'"):
        kis(runs, "--output", tmp_path / "c.csv")


@pytest.mark.slow
@pytest.mark.compare
def test_what_the_harness_writes_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.api.model import LM
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    class Dice(LM):  # type: ignore[misc]
        """A model that guesses."""

        def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
            return [(-dice.random(), False) for _ in requests]

        def loglikelihood_rolling(self, requests: Any) -> list[float]:
            return [-1.0 for _ in requests]

        def generate_until(self, requests: Any) -> list[str]:
            return [dice.choice("AB") for _ in requests]

    dice = random.Random(0)
    documents = [
        {"fact": i // 2, "text": f"{i}", "choices": ["a", "b", "c"], "answer": i % 3, "gold": "A"} for i in range(30)
    ]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    (tmp_path / "tasks").mkdir()
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "docs.jsonl")}},
        "test_split": "test",
        "doc_to_text": "text",
    }
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_mutual_info")]
    choice = {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": metrics,
    }
    metric = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    first = [{"function": "take_first"}]
    filters = [{"name": "strict", "filter": first}, {"name": "loose", "filter": [{"function": "lowercase"}, *first]}]
    said = {"output_type": "generate_until", "doc_to_target": "gold", "metric_list": [metric], "filter_list": filters}
    tasks = {"one": choice, "two": choice, "said": {**said, "generation_kwargs": {"until": ["\n"]}}}
    for name, task in tasks.items():
        (tmp_path / "tasks" / f"{name}.yaml").write_text(json.dumps({**shared, **task, "task": name}))
    both = {"group": "both", "task": ["one", "two"], "aggregate_metric_list": [{"metric": "acc"}]}
    (tmp_path / "tasks" / "both.yaml").write_text(json.dumps(both))
    tracker = EvaluationTracker(output_path=str(tmp_path / "out"))
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=Dice(), tasks=["both", "said"], task_manager=manager, evaluation_tracker=tracker, bootstrap_iters=0
    )
    samples = found.pop("samples")
    tracker.save_results_aggregated(results=found, samples=samples)
    for name in tasks:
        tracker.save_results_samples(task_name=name, samples=samples[name])

    groups = ("--group", "infused", "both", "--group", "control/question", "said")
    runs, output = table(tmp_path, "out,1e6,1e6,0,0"), tmp_path / "c.csv"
    assert kis(runs, *groups, "--metric", "acc", "exact_match,strict", "--output", output) == 0
    curves = load_curves_csv(output)
    assert curves[["group", "n", "facts", "chance"]].round(6).values.tolist() == [
        ["control", 30, 15, 0.0],
        ["infused", 60, 15, 0.333333],
    ]
    right = {name: found["results"][name] for name in tasks}
    assert curves["correct"].tolist() == [
        pytest.approx(30 * right["said"]["exact_match,strict"]),
        pytest.approx(30 * (right["one"]["acc,none"] + right["two"]["acc,none"])),
    ]
    with pytest.raises(InputError, match="by several filters; --metric exact_match,strict or exact_match,loose"):
        kis(runs, "--group", "infused", "said", "--output", output)
    counted = curves["correct"].tolist()
    for path in (tmp_path / "out").rglob("samples_*"):
        path.unlink()
    assert kis(runs, *groups, "--metric", "acc", "exact_match,strict", "--output", output) == 0
    assert load_curves_csv(output)["correct"].tolist() == counted
