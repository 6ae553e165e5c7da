"""``kis train``: one run."""

from __future__ import annotations

import argparse
import gc
import os
from collections.abc import Callable
from pathlib import Path

from megatron_kis.common.errors import InputError
from megatron_kis.config.ladder import PRESETS


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "train",
        help="train one run; with several ranks under torchrun or srun",
        description="Train one run from a YAML file. A run that is complete with these settings is left unchanged; an "
        "unfinished run resumes from its newest complete checkpoint. On SIGTERM or SIGUSR1 it saves a checkpoint and "
        "exits with status 75.",
        epilog="model presets: " + ", ".join(PRESETS),
    )
    parser.add_argument("config", type=Path, metavar="RUN.yaml", help="the run's configuration")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="settings that replace the file's, e.g. training.seed=1",
    )
    parser.add_argument(
        "--branch-from",
        metavar="RUN_DIR[@STEP]",
        help="start from a checkpoint of another run (schedule wsd, with a stable learning rate at that step)",
    )
    parser.add_argument(
        "--restart", action="store_true", help="start an unfinished run again at step 0; its checkpoints are removed"
    )
    parser.set_defaults(handler=_train)


def _train(options: argparse.Namespace) -> int:
    from megatron_kis.common.configuration import load_config
    from megatron_kis.config.run import RunConfig

    _refuse_other_places(options.config)
    config = load_config(RunConfig, options.config, options.overrides)
    train = import_trainer()  # after the configuration: it imports Megatron-Core
    folder = train(config, restart=options.restart, branch_from=options.branch_from)
    if os.environ.get("RANK", "0") == "0":  # once, however many ranks there are
        print(folder)
    return 0


def _refuse_other_places(path: Path) -> None:
    """Refuses the folder of a run, and its record, in place of its configuration."""
    from megatron_kis.common.identity import RUN_FILE

    is_record = path.name == RUN_FILE and path.is_file()
    if not is_record and not path.is_dir():
        return
    own = path.with_name("config.yaml") if is_record else path / "config.yaml"
    like = f", such as {own}" if own.is_file() else ""
    problem = "is the record of a run" if is_record else "is a folder"
    raise InputError(problem, where=str(path), remedy=f"give the configuration of a run{like}")


def import_trainer() -> Callable[..., Path]:
    """Imports Megatron-Core and returns ``train``.

    The garbage collector is off meanwhile: imports make half a million objects that stay, and scanning them again and
    again takes more than a fifth of the imports' time. They are not scanned later either.
    """
    gc.disable()
    try:
        from megatron_kis.training.trainer import train
    finally:
        gc.enable()
        gc.freeze()
    return train
