"""The table of which background facts survive, from runs whose answers are written by hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError
from megatron_kis.config.run import RunConfig
from megatron_kis.data_tools.facts.fact import Fact, load_facts, write_facts
from megatron_kis.evaluate.survival import COLUMNS, write_survival
from megatron_kis.probes.scoring import RULES
from megatron_kis.training.artifacts import open_run
from tests.runs import trained

MakeRun = Callable[..., RunConfig]
RULE = RULES.index("statement")


def answered(run: Path, known: dict[str, int], *, older: bool = False) -> None:
    """Writes a run's last outcomes: of each fact, the first questions of split train are right; margins are 1.5."""
    past = open_run(run)
    questions = past.questions(past.config.probes.templates).questions
    (path,) = (run / "outcomes").glob("step-*.npz")
    with np.load(path) as content:
        arrays = dict(content)
    arrays["correct"][:] = False
    arrays["mean_margins"][:] = -1.0
    left = dict(known)
    for row, question in enumerate(questions):
        if question.split == "train":
            arrays["mean_margins"][row, RULE] = 1.5
            arrays["correct"][row, RULE] = left.get(question.fact, 0) > 0
            left[question.fact] = left.get(question.fact, 0) - 1
    if older:
        arrays = {name: values for name, values in arrays.items() if name not in ("mean_margins", "pairwise")}
    np.savez(path, **arrays)


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_each_fact_is_followed_through_the_cells(
    tiny_run: MakeRun, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = load_facts(tiny_data / "facts.jsonl")
    background = [fact for fact in facts if fact.group == "background"]
    kept, lost, shaky = (fact.id for fact in background[:3])
    for seed in (0, 1):
        run = trained(tiny_run(name=f"k4s{seed}", infusion={"facts": 4}, training={"seed": seed}))
        answered(run, {kept: 2, shaky: 2 - seed})  # one of two is not known
    answered(
        trained(tiny_run(name="none", infusion={"facts": 4, "frequency": 0})), {kept: 2, lost: 2, shaky: 2}, older=True
    )
    output = tmp_path / "survival.csv"
    capsys.readouterr()
    choices = ("--split", "train", "--output", str(output))
    assert main(["law", "survival", str(tmp_path), *choices]) == 2
    assert "give the facts.jsonl of the runs' data with --facts" in capsys.readouterr().err
    assert main(["law", "survival", str(tmp_path), *choices, "--facts", str(tiny_data / "facts.jsonl")]) == 0
    rows = table(output)
    assert f"{len(rows)} rows of 3 runs" in capsys.readouterr().out
    assert tuple(rows[0]) == COLUMNS
    assert [(row["infused_facts"], row["fact"]) for row in rows] == [
        (count, fact.id) for count in ("0", "4") for fact in background
    ]
    found = {(row["infused_facts"], row["fact"]): row for row in rows}
    shares = {key: (row["runs"], row["known"], row["right"], row["mean_margin"]) for key, row in found.items()}
    assert shares["4", kept] == ("2", "1", "1", "1.5")
    assert shares["4", shaky] == ("2", "0.5", "0.75", "1.5")
    assert shares["4", lost] == ("2", "0", "0", "1.5")
    assert shares["0", lost] == ("1", "1", "1", "")
    own = found["4", kept]
    assert (own["subject"], own["relation"], own["object"]) == (
        background[0].subject,
        background[0].relation,
        background[0].object,
    )
    assert (own["exposures"], own["infusion_frequency"]) == ("5", "8")  # one displaced
    assert (found["0", kept]["exposures"], found["0", kept]["infusion_frequency"]) == ("6", "0")
    likeness = [(row["prefix"], row["overlap"], row["same_object"]) for row in rows[: len(background)]]
    assert set(likeness) == {("0", "0", "0")}  # to no fact
    assert any(float(row["overlap"]) > 0 for row in rows[len(background) :])
    _refuses_other_facts(facts, tmp_path, choices, capsys)


def _refuses_other_facts(facts: list[Fact], folder: Path, choices: tuple[Any, ...], capsys: Any) -> None:
    """The same ids with other objects, as of facts whose objects are permuted; and a split that is not asked."""
    objects = [fact.object for fact in facts]
    rows = [{**json.loads(line)} for line in _lines(facts, folder / "own.jsonl")]
    turned = [row | {"object": name} for row, name in zip(rows, objects[1:] + objects[:1], strict=True)]
    (folder / "turned.jsonl").write_text("".join(json.dumps(row) + "\n" for row in turned), encoding="utf-8")
    for name in ("turned.jsonl", "fewer.jsonl"):
        if name == "fewer.jsonl":
            write_facts(folder / name, facts[:2])
        assert main(["law", "survival", str(folder), *choices, "--facts", str(folder / name)]) == 2
        assert "give the facts.jsonl that the data of these runs were made from" in capsys.readouterr().err
    output = Path(choices[choices.index("--output") + 1])
    before = output.read_bytes()
    with pytest.raises(InputError, match="no run asked about background facts with templates of split 'essay'"):
        write_survival([folder / "runs" / "none"], facts, output, split="essay", rule="statement")
    assert output.read_bytes() == before


def _lines(facts: list[Fact], path: Path) -> list[str]:
    write_facts(path, facts)
    return path.read_text(encoding="utf-8").splitlines()
