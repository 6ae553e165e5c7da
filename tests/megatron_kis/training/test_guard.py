"""Bad steps: which they are, what is said of them, and what the run's records keep of those that were passed over."""

from __future__ import annotations

import faulthandler
import math
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.common.errors import JobError
from megatron_kis.common.files import read_json
from megatron_kis.config.run import GuardConfig, RunConfig
from megatron_kis.engine.engine import Engine
from megatron_kis.training.faults import LossGuard, Watchdog
from megatron_kis.training.inputs import open_inputs
from megatron_kis.training.trainer import train
from tests.run_files import losses, rows

MakeRun = Callable[..., RunConfig]


def test_what_is_not_finite_is_bad() -> None:
    guard = LossGuard(GuardConfig())
    assert guard.accepts(5.0, 1.0)
    for loss, norm in ((math.nan, 1.0), (math.inf, 1.0), (5.0, math.nan), (5.0, math.inf)):
        assert not guard.accepts(loss, norm)
        assert "not finite" in str(guard.complaint)
    assert guard.accepts(50.0, 1.0)
    assert guard.complaint is None


def test_a_loss_far_above_its_mean_is_bad_and_does_not_move_the_mean() -> None:
    guard = LossGuard(GuardConfig(loss_rise=1.0))
    assert guard.accepts(5.0, 1.0)
    for _ in range(100):
        assert not guard.accepts(6.1, 1.0)
    assert guard.accepts(5.9, 1.0)


def test_only_so_many_in_a_row_are_passed_over() -> None:
    guard = LossGuard(GuardConfig(skip_in_a_row=2))
    assert [guard.skips(step) for step in (3, 4, 5)] == [True, True, False]
    assert guard.accepts(5.0, 1.0)
    assert guard.skips(7)
    assert guard.skipped == [3, 4, 7]


def test_a_guard_goes_on_where_it_was_saved() -> None:
    guard, other = (LossGuard(GuardConfig(skip_in_a_row=2, loss_rise=1.0)) for _ in range(2))
    guard.accepts(5.0, 1.0)
    guard.skips(2)
    other.load(guard.record())
    assert other.record() == guard.record()
    assert not other.accepts(6.5, 1.0)
    assert other.skips(3)
    assert not other.skips(4)


def test_the_watchdog_starts_its_timer_a_hundred_times_and_not_at_every_reset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, started = 1000.0, []
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, **_: started.append((now, seconds)))
    watchdog = Watchdog(10.0, tmp_path, rank=0)
    for _ in range(6000):  # ten minutes, ten resets a second
        watchdog.reset()
        now += 0.1
    watchdog.close()
    assert 90 <= len(started) <= 101
    assert {seconds for _, seconds in started} == {600.0}
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(started)]
    assert max(gaps) <= 6.2, "a hang right after a reset would be ended too early"


def spoil(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Makes the loss of some steps (from 1) NaN, as a broken sum would."""
    whole, count = Engine._forward_loss, [0]

    def spoiled(self: Engine, batches: Any, model: Any) -> Any:
        output, reduce = whole(self, batches, model)
        count[0] += 1
        factor = math.nan if count[0] in steps else 1.0

        def reduced(values: Any) -> Any:
            total, tokens, report = reduce(values)
            return total * factor, tokens, report * factor

        return output, reduced

    monkeypatch.setattr(Engine, "_forward_loss", spoiled)


@pytest.mark.slow
def test_a_bad_step_stops_the_run_and_names_its_sequences_and_facts(
    tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run()
    inputs = open_inputs(config)
    exposure = next(e for sequence in range(16, 24) for e in inputs.plan[sequence].exposures if e.group == "infused")
    spoil(monkeypatch, 3)
    with pytest.raises(JobError, match=r"at step 3 \(sequences 16 to 23: .*; lower training\.optimizer") as caught:
        train(config)
    named = str(caught.value)
    assert inputs.store.ids("infused")[exposure.fact] in named or " more" in named


@pytest.mark.slow
def test_skipped_steps_are_named_and_their_exposures_do_not_count(
    tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run(training={"guard": {"skip_in_a_row": 1}}, logging={"every": 1})
    spoil(monkeypatch, 3, 9)
    train(config)
    assert read_json(config.output / "DONE", "kis.done/1")["skipped_steps"] == [3, 9]
    ledger = read_json(config.output / "exposures.json", "kis.ledger/1")
    assert not ledger["exact"]
    assert ledger["sequences"] == 18 * 8
    skipped = [row for row in rows(config.output, "metrics.jsonl") if row["kind"] == "skipped"]
    assert [(row["step"], row["sequences"]) for row in skipped] == [(3, [16, 23]), (9, [64, 71])]
    assert "its update is left out" in capfd.readouterr().err
    found = losses(config.output)
    assert found[3] == found[2]  # the last good one
    assert found[20] < found[1]


@pytest.mark.slow
def test_two_bad_steps_in_a_row_stop_a_run_that_may_skip_one(
    tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, 3, 4)
    with pytest.raises(JobError, match="at step 4"):
        train(tiny_run(training={"guard": {"skip_in_a_row": 1}}))
