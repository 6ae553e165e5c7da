"""Runs that save often, runs that are cut off, and trunks to branch from."""

from __future__ import annotations

import atexit
import functools
import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.config.run import RunConfig
from megatron_kis.training.callbacks.base import Callback, RunState
from megatron_kis.training.trainer import Trainer, train

MakeRun = Callable[..., RunConfig]
EVERY_5 = {"moments": {"every": 5}, "asynchronous": False}
OFTEN: dict[str, Any] = {"checkpoints": EVERY_5, "logging": {"every": 1}, "probes": {"moments": {"every": 6}}}


class CutOff(Exception):
    """Ends a run as a crash would."""


def cut_off(config: RunConfig, step: int, begin: Callable[[], Any] | None = None) -> None:
    """Trains (as ``begin`` does) until before step ``step`` (from 0), and crashes.

    What a run leaves that begins there (without ``begin``) is made once, and copied from then on.
    """
    if begin is not None:
        _crash(step, begin)
    elif config.output.exists():
        _crash(step, lambda: train(config))
    else:
        _make_once(config, f"cut off at {step}", lambda: _crash(step, lambda: train(config)))


def _crash(step: int, begin: Callable[[], Any]) -> None:
    whole = Trainer._train_step

    def crash(self: Trainer) -> None:
        if self.state.step == step:
            raise CutOff
        whole(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_train_step", crash)
        with pytest.raises(CutOff):
            begin()


def trained(config: RunConfig) -> Path:
    """Returns the folder of a complete run, which is trained once for all tests, and copied from then on.

    The run must be as good as any other of its settings: nothing that a test patches may have a part in it.
    """
    _make_once(config, "trained", lambda: train(config))
    return config.output


def _make_once(config: RunConfig, end: str, make: Callable[[], Any]) -> None:
    """Makes a run's folder, or copies one of the same settings and data; a folder of a run does not name itself."""
    assert not config.output.exists()
    settings = config.model_copy(update={"output": Path()}).model_dump_json()
    kept = _store() / hashlib.sha256(f"{end} {settings}".encode()).hexdigest()
    if kept.exists():
        shutil.copytree(kept, config.output)
    else:
        make()
        shutil.copytree(config.output, kept)


@functools.cache
def _store() -> Path:
    folder = tempfile.mkdtemp(prefix="runs-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


TOKENS_PER_STEP = 8 * 64
NO_FACTS = {"frequency": 0, "background": {"frequency": 0}}
WSD: dict[str, Any] = {"schedule": "wsd", "warmup_share": 0.1, "decay_share": 0.25, "minimum_share": 0.0}


def trunk_of(make: MakeRun, name: str, steps: int, **changes: Any) -> RunConfig:
    """Returns a run of ``steps`` with WSD, every step logged, saved every 5."""
    optimizer = {**WSD, **changes.pop("optimizer", {})}
    settings: dict[str, Any] = {
        "infusion": NO_FACTS,
        "logging": {"every": 1},
        "checkpoints": {"moments": {"every": 5}, "keep_last": 9, "asynchronous": False},
        **changes,
    }
    return make(name=name, training={"token_budget": steps * TOKENS_PER_STEP, "optimizer": optimizer}, **settings)


class CutCallback(Callback):
    """Cuts a run off after step 13."""

    def __init__(self, engine: Any) -> None:
        pass

    def after_step(self, state: RunState) -> None:
        if state.step == 13:
            raise CutOff


def hashes(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file but locks, by its path in the folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
