"""TensorBoard and Weights & Biases next to the JSON lines, for users who follow their runs there. Off by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_kis.config.run import RunConfig
from megatron_kis.training.callbacks.base import Callback, RunState

TRACKED = ("tensorboard", "wandb")
"""Folders of the trackers in a run's folder; a run that is restarted removes them."""


def trackers(config: RunConfig, run_dir: Path, *, beginning: str) -> list[Callback]:
    """Returns the trackers that a configuration asks for.

    Args:
        config: the run's configuration.
        run_dir: the run's folder.
        beginning: a name of this start of the run, the same when it resumes.

    Raises:
        InputError: a package is not installed.
    """
    config.logging.check_packages()
    callbacks: list[Callback] = []
    if config.logging.tensorboard:
        callbacks.append(TensorBoardCallback(run_dir / TRACKED[0], every=config.logging.every))
    if config.logging.wandb is not None:
        callbacks.append(WandbCallback(config, run_dir, identifier=beginning))
    return callbacks


def _numbers(state: RunState) -> dict[str, float]:
    """Returns what is shown of a step; results of probes and validation under ``results/``."""
    return {
        "train/loss": state.loss,
        "train/lr": state.learning_rate,
        "train/grad_norm": state.gradient_norm,
        "train/tokens_per_second": state.tokens_per_second,
        "train/infusion_ratio": state.infusion_ratio,
        **{f"results/{name}": value for name, value in state.results.items()},
    }


class TensorBoardCallback(Callback):
    """Writes event files for TensorBoard."""

    def __init__(self, folder: Path, *, every: int) -> None:
        """Writes into ``folder`` every ``every`` steps and at the end."""
        self._folder = folder
        self._every = every
        self._writer: Any = None

    def before_training(self, state: RunState) -> None:
        """Opens the file; what a killed run wrote after its checkpoint is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(self._folder, purge_step=state.step + 1 if state.resumed else None)

    def after_step(self, state: RunState) -> None:
        """Writes the numbers of this step if they are due."""
        if state.is_due(self._every):
            for name, value in _numbers(state).items():
                self._writer.add_scalar(name, value, state.step)

    def after_training(self, state: RunState) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()


class WandbCallback(Callback):
    """Logs to a run of Weights & Biases, which resumes when ours does."""

    def __init__(self, config: RunConfig, run_dir: Path, *, identifier: str) -> None:
        """Keeps the names.

        Args:
            config: the run's configuration.
            run_dir: the run's folder, where wandb writes its files.
            identifier: name of the run at Weights & Biases; the same when a run resumes, even after it was moved.
        """
        self._config = config
        self._run_dir = run_dir
        self._identifier = identifier
        self._run: Any = None

    def before_training(self, state: RunState) -> None:
        """Starts or resumes the run at Weights & Biases."""
        import wandb

        config = self._config
        assert config.logging.wandb is not None
        self._run = wandb.init(
            project=config.study or "megatron_kis",
            name=config.name,
            id=self._identifier,
            dir=str(self._run_dir),
            mode=config.logging.wandb,
            resume="allow" if config.logging.wandb == "online" else None,
            config=config.model_dump(mode="json"),
        )

    def after_step(self, state: RunState) -> None:
        """Logs the numbers of this step if they are due."""
        if state.is_due(self._config.logging.every):
            self._run.log(_numbers(state), step=state.step)

    def after_training(self, state: RunState) -> None:
        """Finishes the run at Weights & Biases."""
        if self._run is not None:
            self._run.finish(exit_code=int(state.step < state.steps))
