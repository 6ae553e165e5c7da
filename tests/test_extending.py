"""The page on extensions: its template file passes the check, its criterion, law and callback work as they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from megatron_kis.analysis.law.candidates import CANDIDATES
from megatron_kis.analysis.law.law import Law
from megatron_kis.analysis.simulate import Truth, simulate_table, write_runs
from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError
from megatron_kis.config.run import RunConfig
from megatron_kis.training.callbacks.base import Callback, RunState
from tests.pages import ROOT, Block, blocks, commands
from tests.run_files import losses

PAGE = ROOT / "docs" / "how-to" / "extend.md"


def code(language: str) -> list[Block]:
    return [block for block in blocks(PAGE) if block.language == language]


def test_the_relation_of_the_page_passes_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (file,) = code("yaml")
    Path(str(file.title)).write_text(file.text, encoding="utf-8")
    (words,) = [words for block in code("sh") for words in commands(block)]
    assert main(words) == 0
    assert "drug_target" in capsys.readouterr().out
    Path(str(file.title)).write_text(file.text.replace("[X] acts on [Y].", "[X] acts."), encoding="utf-8")
    assert main(words) == 2


def test_the_criterion_and_the_law_of_the_page_find_a_known_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(CANDIDATES, "D/sqrt(N)", CANDIDATES["N"])  # so that it is gone again afterwards
    cells = [(n, d) for n in (30_000_000, 100_000_000, 300_000_000, 1_000_000_000) for d in (1e9, 4e9)]
    levels = [0, 40, 100, 200, 300, 400, 600, 900, 1400]
    table, _ = simulate_table(Truth(), cells, levels, 2, np.random.default_rng(5))
    write_runs(table, tmp_path / "studies" / "my_study" / "runs")
    criterion, law, _ = code("python")
    notebook: dict[str, object] = {}
    exec(criterion.text, notebook)
    found = [point for point in notebook["points"] if point.group == "background"]  # type: ignore[attr-defined]
    assert len(found) == len(cells)
    assert any(point.status == "collapsed" for point in found)
    exec(law.text, notebook)
    fitted = notebook["law"]
    assert isinstance(fitted, Law)
    assert fitted.law == "D/sqrt(N)"
    assert fitted.law in {row["law"] for row in fitted.candidates}


@pytest.mark.slow
def test_the_callback_of_the_page_follows_a_run_and_changes_nothing(
    tiny_run: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    watched, plain = tiny_run(name="watched"), tiny_run(name="plain")
    Path("run.yaml").write_text(yaml.safe_dump(json.loads(watched.model_dump_json())), encoding="utf-8")
    exec(code("python")[2].text, {})
    norms = json.loads((watched.output / "weight_norms.json").read_text(encoding="utf-8"))
    assert list(norms) == ["5", "10", "15", "20"]
    assert len(set(norms.values())) == 4
    from megatron_kis.training.trainer import train

    train(plain)
    assert losses(watched.output) == losses(plain.output)


@pytest.mark.slow
def test_two_callbacks_keep_their_states_apart_or_are_refused(tiny_run: Callable[..., RunConfig]) -> None:
    from megatron_kis.engine.engine import Engine
    from megatron_kis.training.trainer import train

    began: dict[str, int] = {}

    class Counts(Callback):
        called = ""

        def __init__(self, engine: Engine) -> None:
            self.steps = 0

        @property
        def name(self) -> str:
            return self.called or super().name

        def after_step(self, state: RunState) -> None:
            self.steps += 1

        def state(self) -> dict[str, int]:
            return {"steps": self.steps}

        def load(self, state: dict[str, int]) -> None:
            began[self.name] = state["steps"]

    class Later(Counts):
        called = "later"

        def after_step(self, state: RunState) -> None:
            self.steps += state.step > 15

    config = tiny_run()
    train(config, callbacks=[Counts, Later])
    (config.output / "DONE").unlink()
    before = {path: path.read_bytes() for path in config.output.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="two callbacks with a state are called 'Counts'"):
        train(config, restart=True, callbacks=[Counts, Counts])
    assert {path: path.read_bytes() for path in config.output.rglob("*") if path.is_file()} == before
    train(config, callbacks=[Counts, Later])  # from its last checkpoint
    assert began == {"Counts": 20, "later": 5}


@pytest.mark.slow
def test_a_callback_is_made_when_the_weights_are_set(tiny_run: Callable[..., RunConfig]) -> None:
    from megatron_kis.engine.engine import Engine
    from megatron_kis.training.trainer import train

    looked: list[int] = []

    class Looks(Callback):
        def __init__(self, engine: Engine) -> None:
            self.weights = list(engine.chunks[0].parameters())
            self.found = [weight.detach().clone() for weight in self.weights]

        def before_training(self, state: RunState) -> None:
            looked.append(state.step)
            assert all(weight.equal(found) for weight, found in zip(self.weights, self.found, strict=True))

    config = tiny_run()
    train(config, callbacks=[Looks])
    (config.output / "DONE").unlink()
    train(config, callbacks=[Looks])  # from its last checkpoint
    assert looked == [0, 20]
