"""A run that shows K of its infused facts: exactly these, as often as planned, and asked for alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError
from megatron_kis.config.run import RunConfig
from megatron_kis.data import ExposurePlan, InfusedFacts
from megatron_kis.data.exposure_plan import BackgroundFacts, TokenBudget
from megatron_kis.data.extension import extend
from megatron_kis.training.inputs import open_inputs
from megatron_kis.training.trainer import train
from tests.run_files import rows
from tests.runs import OFTEN, cut_off

MakeRun = Callable[..., RunConfig]
SHOWN = np.arange(40) % 4 == 1


def plan(**infused: Any) -> ExposurePlan:
    return ExposurePlan(
        InfusedFacts(np.full((40, 3), 9), shown=SHOWN, **infused),
        BackgroundFacts(np.full((10, 2), 8), frequency=12, policy="protected"),
        budget=TokenBudget(64 * 400, 64),
        seed=3,
    )


def counted(of: ExposurePlan) -> np.ndarray:
    counts = np.zeros(40, dtype=int)
    for layout in of:
        for exposure in layout.exposures:
            if exposure.group == "infused":
                counts[exposure.fact] += 1
    return counts


@pytest.mark.parametrize("frequency", [7, 6.5])
def test_the_facts_shown_get_f_and_the_others_nothing(frequency: float) -> None:
    made = plan(frequency=frequency)
    counts = counted(made)
    assert not counts[~SHOWN].any()
    assert set(counts[SHOWN]) <= {int(frequency), -int(-frequency // 1)}
    assert made.infusion_frequency == counts[SHOWN].mean() == frequency
    assert (counts == made.expected("infused")).all()
    assert made.identity()["shown_facts"] == 10


def test_a_ratio_is_met_with_the_facts_shown() -> None:
    made = plan(ratio=0.25)
    assert abs(made.infused_tokens - 0.25 * made.token_budget) <= 9
    counts = counted(made)
    assert not counts[~SHOWN].any()
    assert counts[SHOWN].max() - counts[SHOWN].min() <= 1
    assert made.infusion_frequency == counts[SHOWN].mean()


def test_popularity_is_that_of_the_facts_shown() -> None:
    popularity = np.linspace(1, 5, 40)
    counts = counted(plan(frequency=20, popularity=popularity))
    assert not counts[~SHOWN].any()
    assert counts[SHOWN].mean() == 20
    assert np.corrcoef(counts[SHOWN], popularity[SHOWN])[0, 1] > 0.99


def test_general_text_is_the_same_whatever_is_shown() -> None:
    every = ExposurePlan(InfusedFacts(np.full((40, 3), 9), frequency=0), budget=TokenBudget(64 * 400, 64), seed=3)
    assert len(every) == len(plan(frequency=7))  # sequence s reads window s in each plan


def test_an_extension_shows_the_same_facts() -> None:
    extended = extend(plan(frequency=7), 64 * 800)
    counts = extended.expected("infused")
    assert set(counts[SHOWN]) == {14}
    assert not counts[~SHOWN].any()
    assert extended.identity()["shown_facts"] == 10


def test_a_list_and_a_number_of_facts_contradict_each_other() -> None:
    with pytest.raises(InputError, match="use zeros"):
        plan(frequency=np.full(40, 3))
    with pytest.raises(InputError, match="show some"):
        InfusedFacts(np.full((40, 3), 9), frequency=1, shown=np.zeros(40, dtype=bool))


@pytest.mark.slow
def test_a_run_of_k_facts_has_an_exact_ledger_and_is_asked_for_them_alone(
    tiny_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    received: dict[int, dict[str, int]] = {}
    for count in (4, 8):
        run = train(tiny_run(name=f"k{count}", infusion={"facts": count}))
        record = json.loads((run / "run.json").read_text())
        assert (record["infused_facts"], record["infusion_frequency"]) == (count, 8)
        assert (
            record["infused_bits"] == open_inputs(tiny_run(name=f"k{count}", infusion={"facts": count})).infused_bits()
        )
        ledger = json.loads((run / "exposures.json").read_text())
        assert ledger["exact"] is True
        received[count] = {fact: n for fact, n in ledger["received"]["infused"].items() if n}
        assert list(received[count].values()) == [8] * count
        asked = {(row["group"], row["split"]): row["facts"] for row in rows(run, "probes.jsonl")}
        assert asked["infused", "train"] == count
        assert asked["control", "train"] == 16
        capsys.readouterr()
        assert main(["probe", str(run), "--device", "cpu", "--json"]) == 0
        again = json.loads(capsys.readouterr().out)["rows"]
        for then, now in zip(rows(run, "probes.jsonl"), again, strict=True):
            assert [then[key] for key in ("group", "split", "scoring", "n", "correct")] == [
                now[key] for key in ("group", "split", "scoring", "n", "correct")
            ]
    assert set(received[4]) < set(received[8])


@pytest.mark.slow
def test_a_run_of_k_facts_resumes_and_no_other_number_does(tiny_run: MakeRun) -> None:
    config = tiny_run(**{**OFTEN, "infusion": {"facts": 8}})
    cut_off(config, 12)
    with pytest.raises(InputError, match=r"infusion\.facts 8 -> 4"):
        train(tiny_run(**{**OFTEN, "infusion": {"facts": 4}}))
    assert (train(config) / "DONE").exists()


@pytest.mark.slow
def test_more_facts_than_there_are_is_refused(tiny_run: MakeRun, tmp_path: Path) -> None:
    config = tiny_run(infusion={"facts": 17})
    with pytest.raises(InputError, match=r"infusion\.facts: is 17, the data have 16"):
        train(config)
    assert not config.output.exists()


def test_the_facts_shown_do_not_depend_on_what_is_asked(tiny_run: MakeRun, tmp_path: Path) -> None:
    """Where one relation has no held-out template, a run that asks with these alone shows the same facts as others."""
    config = tiny_run(infusion={"facts": 8})
    prefix = tmp_path / "data" / "exposures"
    prefix.parent.mkdir()
    for path in config.data.exposures.parent.glob(config.data.exposures.name + ".*"):
        shutil.copy(path, prefix.parent / path.name.replace(config.data.exposures.name, prefix.name, 1))
    header, *lines = config.data.questions.read_text(encoding="utf-8").splitlines(keepends=True)
    relations = sorted({json.loads(line)["relation"] for line in lines})
    kept = [
        line for line in lines if (row := json.loads(line))["split"] != "held_out" or row["relation"] != relations[0]
    ]
    assert len(kept) < len(lines)
    data = config.data.replace(exposures=prefix, fingerprints={})
    data.questions.write_text(header + "".join(kept), encoding="utf-8")
    expected = []
    for templates in ({"train": 1}, {"held_out": 1}, {}):
        inputs = open_inputs(config.replace(data=data, probes=config.probes.replace(templates=templates)))
        shown = inputs.plan.expected("infused") > 0
        expected.append(shown.tolist())
        asked = {question.fact for question in inputs.questions.questions if question.group == "infused"}
        assert asked <= {fact for fact, is_shown in zip(inputs.store.ids("infused"), shown, strict=True) if is_shown}
    assert expected[0] == expected[1] == expected[2]
    assert sum(expected[0]) == 8
