"""What each fact was promised and what it received, as a run's folder tells it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError
from megatron_kis.common.progress import Progress
from megatron_kis.config.run import RunConfig
from megatron_kis.training.audit import audit_run, differences_of
from tests.runs import trained

pytestmark = pytest.mark.slow

MakeRun = Callable[..., RunConfig]


def spoil(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "exposures.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def folder(tiny_run: MakeRun) -> Path:
    return trained(tiny_run(infusion={"frequency": None, "ratio": 0.3, "background": {"policy": "protected"}}))


def test_a_run_that_kept_its_promises_has_no_differences(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = audit_run(folder, recount=Progress())
    infused = result["infused"]
    assert infused["expected"] == infused["received"] > 0
    assert infused["most"] == infused["fewest"] + 1  # a ratio is met to within one exposure: F or F + 1
    assert result["background"]["fewest"] == result["background"]["most"] == 6
    assert differences_of(result) == 0
    assert main(["data", "inspect", str(folder), "--recount"]) == 0
    assert "counted again from the data" in capsys.readouterr().out


def test_a_fact_that_received_something_else_is_named_and_fails(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = json.loads((folder / "exposures.json").read_text())["received"]["background"]
    fact = sorted(facts)[3]

    def one_less(content: dict[str, Any]) -> None:
        content["received"]["background"][fact] -= 1

    spoil(folder, one_less)
    assert main(["data", "inspect", str(folder)]) == 1
    shown = capsys.readouterr()
    assert f"{fact}: 6 expected, 5 received" in shown.out
    assert "1 fact did not get the planned exposures" in shown.err
    assert audit_run(folder, recount=Progress())["background"]["differences"] == {
        fact: {"expected": 6, "received": 5, "recounted": 6}
    }
    assert main(["data", "inspect", str(folder), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["background"]["received"] == 16 * 6 - 1


def test_other_data_at_the_same_place_are_refused_with_both_fingerprints(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text())
    record["fingerprints"]["corpus"] = "0" * 64
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"another corpus \(000000000000, now [0-9a-f]{12}\)"):
        audit_run(folder, recount=Progress())


def test_a_run_without_a_ledger_is_told_from_a_finished_one(folder: Path) -> None:
    (folder / "exposures.json").unlink()
    with pytest.raises(InputError, match=r"exposures.json: is not there yet; a run writes it at its end"):
        audit_run(folder)


def test_a_ledger_of_other_facts_is_refused(folder: Path) -> None:
    spoil(folder, lambda content: content["received"]["infused"].popitem())
    with pytest.raises(InputError, match="names other infused facts than it counts"):
        audit_run(folder)
