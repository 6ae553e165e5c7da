"""Asking finished runs: in this process, or in as many as a run's model needs."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_kis.common.errors import JobError, KisError, printable

if TYPE_CHECKING:
    from megatron_kis.config.run import RunConfig

logger = logging.getLogger(__name__)


def unasked(runs: list[RunConfig], questions: Path) -> list[RunConfig]:
    """Returns the finished runs without answers to the questions of a file, or with a damaged record of answers.

    Args:
        runs: finished runs, with the choice among the questions that they are to be asked.
        questions: the file.
    """
    from megatron_kis.common.asked import asking_of, has_answers
    from megatron_kis.common.files import read_json, sha256_file
    from megatron_kis.common.identity import RUN_FILE, RUN_SCHEMA

    sha256, found = sha256_file(questions), []
    for run in runs:
        wanted = asking_of(sha256, {"probes": run.probes.model_dump(mode="json")})
        if not has_answers(run.output, read_json(run.output / RUN_FILE, RUN_SCHEMA), wanted):
            found.append(run)
    return found


def ask(runs: list[RunConfig], questions: Path, *, batch_size: int | None = None) -> list[str]:
    """Asks finished runs the questions of a file; returns those that could not be asked, each with the reason."""
    failed = []
    for number, run in enumerate(runs, start=1):
        logger.info(f"asking {run.name} ({number} of {len(runs)})")
        try:
            _ask_one(run, questions, batch_size=batch_size)
        except KisError as error:
            logger.warning(printable(f"{run.name} could not be asked: {error}"))
            failed.append(f"{run.name}: {error}")
    return failed


def _ask_one(run: RunConfig, questions: Path, *, batch_size: int | None) -> None:
    """Asks a run in this process, or in as many as its model needs where there are GPUs for them."""
    from megatron_kis.evaluate.ask import ask_again

    ranks = run.parallel.tensor * run.parallel.pipeline
    if ranks == 1 or not _has_gpus(run, ranks):
        ask_again(run.output, questions=questions, probes=run.probes, batch_size=batch_size, device=run.device)
        return
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    sizes = ["--tensor", str(run.parallel.tensor), "--pipeline", str(run.parallel.pipeline)]
    more = ["--probes", run.probes.model_dump_json()]
    more += [] if batch_size is None else ["--batch-size", str(batch_size)]
    prefix = str(questions).removesuffix(".questions.jsonl")
    command = [*launcher, "megatron_kis", "probe", str(run.output), "--keep", "--exposures", prefix, *sizes, *more]
    ended = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    if ended.returncode:
        raise JobError(f"kis probe under torchrun failed with exit status {ended.returncode}")


def _has_gpus(run: RunConfig, ranks: int) -> bool:
    """Returns whether a run's model can be shared among the GPUs of this machine."""
    import torch

    return run.device != "cpu" and torch.cuda.is_available() and torch.cuda.device_count() >= ranks
