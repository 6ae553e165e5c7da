from __future__ import annotations

from typing import Any

import pytest

from megatron_kis.common.units import duration
from megatron_kis.study.forecast import forecast
from megatron_kis.study.status import RunStatus


def row(name: str, state: Any, size: str = "s", tokens: int = 1000, **values: Any) -> RunStatus:
    return RunStatus(name, size, tokens, state, cost=values.pop("cost", 10.0 * tokens), **values)


def test_nothing_is_predicted_before_anything_is_known() -> None:
    ahead = forecast([row("a", "waiting")])
    assert (ahead.seconds, ahead.work, ahead.runs) == (None, None, {})


def test_a_run_in_progress_takes_what_its_speed_says_and_waiting_ones_alike() -> None:
    ahead = forecast([row("a", "running", share=0.25, tokens_per_second=10.0), row("b", "waiting", tokens=500)])
    assert ahead.runs == {"a": pytest.approx(75.0), "b": pytest.approx(50.0)}
    assert ahead.work == ahead.seconds == pytest.approx(125.0)


def test_whole_attempts_count_what_training_alone_does_not() -> None:
    done = row("d", "done", share=1.0, whole=True, seconds=200.0, tokens_per_second=10.0)
    ahead = forecast([done, row("a", "running", share=0.5, tokens_per_second=10.0)])
    assert ahead.runs == {"a": pytest.approx(100.0)}  # half of 200 s, where the speed would say 50


def test_a_size_of_which_nothing_is_known_takes_by_its_cost() -> None:
    done = row("d", "done", share=1.0, whole=True, seconds=200.0, cost=1.0)
    ahead = forecast([done, row("a", "waiting", size="large", cost=7.0)])
    assert ahead.runs == {"a": pytest.approx(1400.0)}


def test_work_is_shared_by_what_runs_and_the_longest_run_sets_the_end() -> None:
    rows = [row(str(n), "running", tokens_per_second=10.0) for n in range(4)]
    assert forecast([*rows, row("w", "waiting", tokens=4000)]).seconds == pytest.approx(400.0)
    assert forecast([*rows, row("w", "waiting")]).seconds == pytest.approx(125.0)
    ahead = forecast([row("d", "done", share=1.0, tokens_per_second=10.0), row("w", "waiting")])
    assert (ahead.seconds, ahead.work) == (None, pytest.approx(100.0))  # nothing runs


def test_what_is_given_up_takes_no_time() -> None:
    rows = [row("d", "done", share=1.0, tokens_per_second=10.0), row("g", "given up")]
    assert forecast(rows).seconds == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (7499, "2 h 05 min"),
        (86399, "1 d 0 h"),
        (3 * 86400 + 4 * 3600, "3 d 4 h"),
    ],
)
def test_durations_are_said_as_people_say_them(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
