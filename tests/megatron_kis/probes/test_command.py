from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_kis.cli import main
from megatron_kis.config import RunConfig
from megatron_kis.probes.scoring import RULES
from megatron_kis.training.run import train

MakeRun = Callable[..., RunConfig]


def test_a_run_is_probed_from_the_command_line(tiny_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tiny_run())
    logged = [json.loads(line) for line in (run / "probes.jsonl").read_text().splitlines()]
    capsys.readouterr()
    assert main(["probe", str(run), "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["run"], found["step"], found["rules"]) == ("kis.probe/1", "tiny", 20, list(RULES))
    for then, now in zip(logged, found["rows"], strict=True):
        assert now | {"seconds": 0} == {key: then[key] for key in now} | {"seconds": 0}
    assert main(["probe", str(run), "--device", "cpu", "--scoring", "sum", "--all-templates"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("tiny, step 20,")
    assert [line.split()[:2] for line in table[2:8:3]] == [["infused", "train"], ["background", "train"]]
    assert [line.split()[2] for line in table[2:5]] == ["56", "24", "16"]  # 8 facts x 4 + 8 x 3, and so on


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--step", "7"], "no whole checkpoint of step 7; steps that lie there: 20"),
        (["--batch-size", "0"], "batch size: is 0; 1 or more"),
        (["--pipeline", "-1"], "parallel.pipeline: is -1; 1 or more"),
        (["--scoring", "summ"], "sum"),
        (["--exposures", "absent"], "absent.questions.jsonl"),
    ],
)
def test_wrong_input_ends_with_status_2(
    tiny_run: MakeRun, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    run = train(tiny_run())
    assert main(["probe", str(run), "--device", "cpu", *arguments]) == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_that_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", str(tmp_path)]) == 2
    assert f"{tmp_path}: has no run.json; give the folder of a run" in capsys.readouterr().err
