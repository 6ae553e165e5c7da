"""How a run takes part in a loop that has no callbacks: which functions are wrapped, for how long, in which order."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.megatron_lm.hooks import MODULE, Hooks


class Told:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *given, **named: self.said.append((name, *given, *named.values()))


LOOP = """
def train(forward_step_func, model, optimizer, scheduler, train_data_iterator, fails=None):
    training_log({"lm loss": 3.0}, {}, 0.1, 1, skipped_iter=0)
    evaluate_and_print_results("iteration 1", 1)
    post_training_step_callbacks(model, optimizer, scheduler, 1)
    save_checkpoint(1)
    maybe_finalize_async_save(blocking=False)
    if fails:
        raise fails

def training_log(loss_dict, total_loss_dict, learning_rate, iteration, skipped_iter, grad_norm=2.0): ...
def post_training_step_callbacks(model, optimizer, opt_param_scheduler, iteration): ...
def save_checkpoint(iteration): ...
def maybe_finalize_async_save(blocking): ...
def evaluate(losses): return losses, None, False
def evaluate_and_print_results(prefix, iteration):
    for losses in ({"lm loss": 4.0}, {"lm loss": 9.0}):
        evaluate(losses)
"""


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module with functions as Megatron-LM's loop has them."""
    module: Any = ModuleType(MODULE)
    exec(LOOP, module.__dict__)
    monkeypatch.setitem(sys.modules, MODULE, module)
    yield module


STEP = [
    ("before_training", "model", "adam", "data"),
    ("after_step", {"lm loss": 3.0}, 0.1, 1, 0, 2.0),
    ("after_validation", {"lm loss": 4.0}, 1),
    ("at_step_end", "model", "adam", 1),
    ("after_save", 1),
]


def test_a_run_is_told_of_its_steps_and_leaves_the_loop_as_it_was(loop: Any) -> None:
    told, own = Told(), loop.train
    Hooks(told).attach()
    assert loop.train is not own
    loop.train(None, "model", "adam", None, train_data_iterator="data")
    assert told.said == STEP
    loop.maybe_finalize_async_save(blocking=True)  # the last that pretrain() does
    assert told.said == [*STEP, ("at_end",), ("close",)]
    assert loop.train is own


def test_a_run_ends_after_the_checkpoint_and_the_evaluations_that_pretrain_makes_last(loop: Any) -> None:
    told = Told()
    Hooks(told).attach()
    loop.train(None, "model", "adam", None, "data")
    loop.save_checkpoint(1)
    loop.evaluate_and_print_results("iteration 1 on validation set", 1)
    loop.evaluate_and_print_results("iteration 1 on test set", 1)
    loop.maybe_finalize_async_save(blocking=True)
    last = [("after_save", 1), ("after_validation", {"lm loss": 4.0}, 1), ("at_end",), ("close",)]
    assert told.said == [*STEP, *last]


@pytest.mark.parametrize("how", [SystemExit(0), RuntimeError("lost")])
def test_a_run_that_is_stopped_is_closed_and_not_done(loop: Any, how: BaseException) -> None:
    told, own = Told(), loop.train
    Hooks(told).attach()
    with pytest.raises(type(how)):
        loop.train(None, "model", "adam", None, "data", how)
    assert told.said == [*STEP, ("close",)]
    assert loop.train is own


def test_a_loop_without_these_functions_is_refused_by_name(loop: Any) -> None:
    loop.training_log = lambda loss_dict: None
    with pytest.raises(InputError, match=r"training_log: has no argument learning_rate; this version of Megatron-LM"):
        Hooks(Told())
    del loop.training_log
    with pytest.raises(InputError, match=r"training_log: is not there; this version of Megatron-LM is not supported"):
        Hooks(Told())
