"""Where a run takes part in Megatron-LM's loop, which has no callbacks: wrappers around its functions.

``train()`` looks these functions up in its module at each call. They have had their names and the names of their
arguments for years; arguments are found by name, as their order has changed.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol

from megatron_kis.common.errors import InputError

MODULE = "megatron.training.training"

_NEEDED: dict[str, tuple[str, ...]] = {
    "train": ("model", "optimizer", "train_data_iterator"),
    "training_log": ("loss_dict", "learning_rate", "iteration", "skipped_iter", "grad_norm"),
    "post_training_step_callbacks": ("model", "optimizer", "iteration"),
    "save_checkpoint": ("iteration",),
    "evaluate": (),
    "evaluate_and_print_results": ("prefix", "iteration"),
    "maybe_finalize_async_save": (),
}
"""Functions that are wrapped, and the arguments of theirs that are used."""


class Observer(Protocol):
    """What takes part in the loop; on every rank."""

    def before_training(self, *, model: Any, optimizer: Any, train_data_iterator: Any) -> None:
        """Runs when the model is loaded and the loop is about to begin."""

    def after_step(
        self, *, loss_dict: Any, learning_rate: Any, iteration: int, skipped_iter: Any, grad_norm: Any
    ) -> None:
        """Runs after each training step, before its evaluation."""

    def at_step_end(self, *, model: Any, optimizer: Any, iteration: int) -> None:
        """Runs after the evaluation of a step, before its checkpoint."""

    def after_save(self, *, iteration: int) -> None:
        """Runs after a checkpoint was saved, or its saving has begun."""

    def after_validation(self, losses: Any, *, iteration: int) -> None:
        """Runs after an evaluation on the validation set, with its losses by name; empty but on the last stage."""

    def at_end(self) -> None:
        """Runs after the last evaluation and the last checkpoint."""

    def close(self) -> None:
        """Runs however the loop ends, before the process ends."""


class Hooks:
    """The wrappers of one run."""

    def __init__(self, observer: Observer) -> None:
        """Finds the functions.

        Raises:
            InputError: this version of Megatron-LM does not have them.
        """
        self._observer = observer
        self._training = sys.modules[MODULE]
        self._own: dict[str, Callable[..., Any]] = {}
        self._validating: int | None = None
        self._trained = False
        for name, needed in _NEEDED.items():
            function = getattr(self._training, name, None)
            names = inspect.signature(function).parameters if callable(function) else {}
            missing = [one for one in needed if one not in names]
            if function is None or missing:
                what = f"has no argument {missing[0]}" if missing and function is not None else "is not there"
                raise InputError(
                    f"{what}; this version of Megatron-LM is not supported",
                    where=f"{MODULE}.{name}",
                    remedy="use 0.16 or 0.19",
                )
            self._own[name] = function

    @property
    def training(self) -> ModuleType:
        """Megatron-LM's module ``megatron.training.training``."""
        return self._training

    def attach(self) -> None:
        """Puts the wrappers in place."""
        for name in _NEEDED:
            setattr(self._training, name, getattr(self, f"_{name}"))

    def detach(self) -> None:
        """Restores Megatron-LM's functions."""
        for name, function in self._own.items():
            setattr(self._training, name, function)

    def _arguments(self, name: str, args: Any, named: Any) -> dict[str, Any]:
        bound = inspect.signature(self._own[name]).bind(*args, **named)
        bound.apply_defaults()
        return {needed: bound.arguments[needed] for needed in _NEEDED[name]}

    def _train(self, *args: Any, **named: Any) -> Any:
        observer = self._observer
        try:
            observer.before_training(**self._arguments("train", args, named))
            result = self._own["train"](*args, **named)  # leaves by sys.exit where it was asked to stop earlier
        except BaseException:
            self.detach()
            observer.close()
            raise
        self._trained = True
        return result

    def _maybe_finalize_async_save(self, *args: Any, **named: Any) -> Any:
        result = self._own["maybe_finalize_async_save"](*args, **named)
        if self._trained:  # pretrain()'s own call, after its last checkpoint and evaluations
            self.detach()
            try:
                self._observer.at_end()
            finally:
                self._observer.close()
        return result

    def _training_log(self, *args: Any, **named: Any) -> Any:
        self._observer.after_step(**self._arguments("training_log", args, named))
        return self._own["training_log"](*args, **named)

    def _post_training_step_callbacks(self, *args: Any, **named: Any) -> Any:
        self._observer.at_step_end(**self._arguments("post_training_step_callbacks", args, named))
        return self._own["post_training_step_callbacks"](*args, **named)

    def _save_checkpoint(self, *args: Any, **named: Any) -> Any:
        result = self._own["save_checkpoint"](*args, **named)
        self._observer.after_save(**self._arguments("save_checkpoint", args, named))
        return result

    def _evaluate(self, *args: Any, **named: Any) -> Any:
        result = self._own["evaluate"](*args, **named)
        iteration, self._validating = self._validating, None  # of several validation sets the first counts
        if iteration is not None:
            losses, _, stopped = result
            if not stopped:
                self._observer.after_validation(losses, iteration=iteration)
        return result

    def _evaluate_and_print_results(self, *args: Any, **named: Any) -> Any:
        given = self._arguments("evaluate_and_print_results", args, named)
        self._validating = None if "test set" in str(given["prefix"]) else given["iteration"]
        try:
            return self._own["evaluate_and_print_results"](*args, **named)
        finally:
            self._validating = None
