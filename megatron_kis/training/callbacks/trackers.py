"""TensorBoard and Weights & Biases beside the JSON lines, for those who watch their runs there. Off by default."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.config.run import RunConfig
from megatron_kis.training.callbacks.base import Hook, State

TRACKED = ("tensorboard", "wandb")
"""Folders of trackers in a run's folder; a run that begins again leaves nothing of its first beginning there."""


def trackers(config: RunConfig, folder: Path, *, beginning: str) -> list[Hook]:
    """The trackers that a configuration asks for.

    Args:
        config: of the run.
        folder: of the run.
        beginning: a name of this beginning of the run, the same when it resumes.

    Raises:
        InputError: a package is not installed.
    """
    hooks: list[Hook] = []
    if config.logging.tensorboard:
        _need("tensorboard", "logging.tensorboard")
        hooks.append(TensorBoardHook(folder / TRACKED[0], every=config.logging.every))
    if config.logging.wandb is not None:
        _need("wandb", "logging.wandb")
        hooks.append(WandbHook(config, folder, identifier=beginning))
    return hooks


def _need(package: str, where: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise InputError(f"the package {package} is not installed", where=where, remedy=f"pip install {package}")


def _numbers(state: State) -> dict[str, float]:
    """What is shown of a step; results of probes and validation under ``results/``."""
    return {
        "train/loss": state.loss,
        "train/lr": state.learning_rate,
        "train/grad_norm": state.gradient_norm,
        "train/tokens_per_second": state.tokens_per_second,
        "train/infusion_ratio": state.infusion_ratio,
        **{f"results/{name}": value for name, value in state.results.items()},
    }


class TensorBoardHook(Hook):
    """Event files for TensorBoard."""

    def __init__(self, folder: Path, *, every: int) -> None:
        """Writes into ``folder`` each ``every`` steps and at the end."""
        self._folder, self._every = folder, every
        self._writer: Any = None

    def before_training(self, state: State) -> None:
        """Opens the file; what a killed run wrote behind its checkpoint is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(self._folder, purge_step=state.step + 1 if state.resumed else None)

    def after_step(self, state: State) -> None:
        """Writes, if it is time."""
        if state.step % self._every == 0 or state.step == state.steps:
            for name, value in _numbers(state).items():
                self._writer.add_scalar(name, value, state.step)

    def after_training(self, state: State) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()


class WandbHook(Hook):
    """A run of Weights & Biases, which is resumed under its name when ours is."""

    def __init__(self, config: RunConfig, folder: Path, *, identifier: str) -> None:
        """Keeps what to call it.

        Args:
            config: of the run.
            folder: takes what is written.
            identifier: of the run over there; the same for a run that resumes, wherever its folder is by then.
        """
        self._config, self._folder, self._every = config, folder, config.logging.every
        self._identifier = identifier
        self._run: Any = None

    def before_training(self, state: State) -> None:
        """Begins, or resumes."""
        import wandb

        config = self._config
        assert config.logging.wandb is not None
        self._run = wandb.init(
            project=config.study or "megatron_kis",
            name=config.name,
            id=self._identifier,
            dir=str(self._folder),
            mode=config.logging.wandb,
            resume="allow" if config.logging.wandb == "online" else None,
            config=config.model_dump(mode="json"),
        )

    def after_step(self, state: State) -> None:
        """Logs, if it is time."""
        if state.step % self._every == 0 or state.step == state.steps:
            self._run.log(_numbers(state), step=state.step)

    def after_training(self, state: State) -> None:
        """Ends."""
        if self._run is not None:
            self._run.finish(exit_code=int(state.step < state.steps))
