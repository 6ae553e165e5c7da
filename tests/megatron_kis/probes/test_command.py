from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megatron_kis.cli.main import main
from megatron_kis.config.run import RunConfig
from megatron_kis.probes.scoring import RULES
from tests.runs import trained

MakeRun = Callable[..., RunConfig]


@pytest.mark.slow
def test_a_run_is_probed_from_the_command_line(tiny_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(tiny_run())
    logged = [json.loads(line) for line in (run / "probes.jsonl").read_text().splitlines()]
    capsys.readouterr()
    assert main(["probe", str(run), "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["run"], found["step"], found["rules"]) == ("kis.probe/1", "tiny", 20, list(RULES))
    for then, now in zip(logged, found["rows"], strict=True):
        assert now.pop("bits_per_parameter") == now["bits"] / found["parameters"]
        assert now | {"seconds": 0} == {key: then[key] for key in now} | {"seconds": 0}
    assert main(["probe", str(run), "--device", "cpu", "--scoring", "sum", "--all-templates"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("tiny, step 20,")
    assert [line.split()[:2] for line in table[2:8:3]] == [["infused", "train"], ["background", "train"]]
    assert [line.split()[2] for line in table[2:5]] == ["56", "24", "16"]  # 8 facts x 4 + 8 x 3, and so on


@pytest.mark.slow
def test_a_runs_questions_are_followed_through_its_probes(
    tiny_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, output = trained(tiny_run()), tmp_path / "histories.csv"
    outcomes = run / "outcomes" / "step-20.npz"
    with np.load(outcomes) as content:
        arrays = dict(content)
    for step, right in ((3, [False, True, True, False]), (7, [False, False, True, False]), (9, [False, True, False])):
        arrays["correct"][:, :] = False
        arrays["correct"][: len(right), RULES.index("sum")] = right
        np.savez(run / "outcomes" / f"step-{step}.npz", **arrays)
    outcomes.unlink()
    assert main(["probe", str(run), "--histories", str(output), "--scoring", "sum"]) == 0
    assert "3 moments, rule sum" in capsys.readouterr().out
    with open(output, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(arrays["correct"])
    events = [tuple(row[name] for name in ("learned", "forgotten", "learned_again", "changes")) for row in rows[:4]]
    assert events == [("", "", "", "0"), ("3", "7", "9", "3"), ("3", "9", "", "2"), ("", "", "", "0")]
    (run / "outcomes" / "step-9.npz").write_bytes(outcomes_of(arrays, 5))
    assert main(["probe", str(run), "--histories", str(output)]) == 2
    assert "asks another number of questions" in capsys.readouterr().err


def outcomes_of(arrays: dict[str, np.ndarray], count: int) -> bytes:
    file = io.BytesIO()
    np.savez(file, **{name: values[:count] for name, values in arrays.items()})
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--step", "7"], "no complete checkpoint of step 7; available steps: 20"),
        (["--batch-size", "0"], "--batch-size: is 0; use 1 or more"),
        (["--pipeline", "-1"], "--pipeline: is -1; use 1 or more"),
        (["--scoring", "summ"], "sum"),
        (["--exposures", "absent"], "absent.questions.jsonl"),
    ],
)
def test_wrong_input_ends_with_status_2(
    tiny_run: MakeRun, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    run = trained(tiny_run())
    assert main(["probe", str(run), "--device", "cpu", *arguments]) == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_that_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", str(tmp_path)]) == 2
    assert f"{tmp_path}: has no run.json; give the folder of a run" in capsys.readouterr().err
