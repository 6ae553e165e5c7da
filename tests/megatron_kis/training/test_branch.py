"""Branches of a WSD trunk: what they take over, and which are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_json
from megatron_kis.config.run import RunConfig
from megatron_kis.training.branch import parse_source
from megatron_kis.training.trainer import train
from tests.run_files import losses, rows
from tests.runs import cut_off, trained, trunk_of

MakeRun = Callable[..., RunConfig]


def rates(folder: Path) -> list[float]:
    return [row["lr"] for row in rows(folder, "metrics.jsonl") if row["kind"] == "train"]


def test_a_trunk_serves_several_budgets(tiny_run: MakeRun) -> None:
    trunk = trunk_of(tiny_run, "trunk", 20)
    trained(trunk)
    for steps, at in ((12, 5), (16, 10), (24, 15)):
        branch = trunk_of(tiny_run, f"branch-{steps}", steps)
        folder = train(branch, branch_from=f"{trunk.output}@{at}")
        assert read_json(folder / "DONE", "kis.done/1")["steps"] == steps
        found, theirs = losses(folder), losses(trunk.output)
        assert sorted(found) == list(range(1, steps + 1))
        assert [found[step] for step in range(1, at + 1)] == [theirs[step] for step in range(1, at + 1)]
        rate, decay = rates(folder), round(steps * 0.25)
        assert rate[at : steps - decay] == [3e-3] * (steps - decay - at)
        assert rate[steps - decay :] == pytest.approx([3e-3 * (decay - n - 1) / decay for n in range(decay)])
        assert read_json(folder / "run.json", "kis.run/1")["branched_from"]["step"] == at


@pytest.mark.slow
def test_a_branch_with_the_trunks_own_budget_is_the_trunk(tiny_run: MakeRun) -> None:
    trunk = trunk_of(tiny_run, "trunk", 20, infusion={"frequency": 8, "background": {"frequency": 6}})
    trained(trunk)
    same = trunk_of(tiny_run, "same", 20, infusion={"frequency": 8, "background": {"frequency": 6}})
    train(same, branch_from=f"{trunk.output}@10")
    assert losses(same.output) == losses(trunk.output)
    ledgers = [(config.output / "exposures.json").read_bytes() for config in (same, trunk)]
    assert ledgers[0] == ledgers[1]


@pytest.mark.slow
def test_a_branch_that_is_cut_off_goes_on_without_being_told_where_it_came_from(tiny_run: MakeRun) -> None:
    trunk, branch, other = (trunk_of(tiny_run, name, steps) for name, steps in (("trunk", 20), ("b", 16), ("o", 16)))
    trained(trunk)
    train(other, branch_from=f"{trunk.output}@10")
    for text in (str(trunk.output), f"{trunk.output}@10"):
        train(other, branch_from=text)
    with pytest.raises(InputError, match=rf"--branch-from: is '.*@5', but {other.output} began from .*trunk@10; leave"):
        train(other, branch_from=f"{trunk.output}@5")
    whole = trunk.output / "checkpoints" / "step-00000010" / "index.json"
    before = whole.read_bytes()

    def begin() -> None:
        train(branch, branch_from=f"{trunk.output}@10")

    cut_off(branch, 12, begin)
    with pytest.raises(InputError, match=r"--branch-from: .* began from .*trunk@10; leave it out, or begin again with"):
        train(branch, branch_from=str(other.output))
    train(branch)
    assert losses(branch.output) == losses(other.output)
    assert whole.read_bytes() == before
    assert read_json(branch.output / "run.json", "kis.run/1")["branched_from"]["run"] == "trunk"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "at", "said"),
    [
        ({}, 20, "rate is not stable there"),
        ({}, 7, "has no complete checkpoint of step 7"),
        ({"optimizer": {"decay_share": 0.9}}, 10, "warming up or decaying there already"),
        ({"optimizer": {"learning_rate": 1e-3}}, 10, r"other settings: training\.optimizer\.learning_rate"),
        ({"optimizer": {"schedule": "cosine"}}, 10, r"other settings: training\.optimizer\.schedule"),
        ({"model": {"layers": 3}}, 10, r"other settings: model\.layers 2 -> 3"),
        ({"infusion": {"frequency": 2}}, 10, "another exposure plan"),
    ],
    ids=str,
)
def test_a_branch_that_its_trunk_cannot_serve_is_refused(
    changes: dict[str, Any], at: int, said: str, tiny_run: MakeRun
) -> None:
    trunk = trunk_of(tiny_run, "trunk", 20)
    trained(trunk)
    branch = trunk_of(tiny_run, "branch", 24, **changes)
    with pytest.raises(InputError, match=said):
        train(branch, branch_from=f"{trunk.output}@{at}")
    assert not (branch.output / "checkpoints").exists()


@pytest.mark.slow
def test_a_trunk_of_another_precision_is_refused(tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = trunk_of(tiny_run, "trunk", 20)
    with monkeypatch.context() as patch:
        patch.setattr("megatron_kis.engine.engine.resolve_precision", lambda *_, **__: "bf16")
        train(trunk)
    with pytest.raises(InputError, match=r"another precision \(bf16, now fp32\)"):
        train(trunk_of(tiny_run, "branch", 24), branch_from=f"{trunk.output}@10")


def test_a_source_is_a_folder_and_perhaps_a_step(tmp_path: Path) -> None:
    odd = tmp_path / "run@7"
    odd.mkdir()
    assert parse_source(str(odd)) == (odd, None)
    assert parse_source(f"{odd}@12") == (odd, 12)
    below = odd / "the folder of a run with a long name"
    below.mkdir()
    assert parse_source(str(below)) == (below, None)
    for text in (f"{tmp_path}@x", f"{tmp_path}/absent@3", f"{tmp_path}@{'7' * 5000}"):
        with pytest.raises(InputError):
            parse_source(text)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file: is a file; give the folder of a run"):
        parse_source(f"{tmp_path / 'file'}@12")
