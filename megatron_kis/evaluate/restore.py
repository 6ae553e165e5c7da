"""A run's model at a checkpoint, under the layout of the processes at hand, ready to be evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_kis.checkpoint import shards
from megatron_kis.checkpoint.folders import Checkpoint, required
from megatron_kis.config.run import RunConfig
from megatron_kis.config.vocabulary import padded_vocabulary
from megatron_kis.distributed.determinism import seed_device, set_determinism
from megatron_kis.distributed.device import open_device
from megatron_kis.distributed.groups import close_groups, open_groups
from megatron_kis.engine.engine import Engine


@contextmanager
def restored(
    run: Path, config: RunConfig, *, vocabulary: int, step: int | None, tensor: int = 1, pipeline: int = 1
) -> Iterator[tuple[Engine, Checkpoint]]:
    """Opens an engine with the weights of a checkpoint; under torchrun every process enters.

    Args:
        run: the run's folder.
        config: configuration of the run; its ``parallel`` section is not used, its ``device`` is.
        vocabulary: number of pieces of the tokenizer, before padding.
        step: step of the checkpoint; None for the newest.
        tensor: number of ranks that share each layer.
        pipeline: number of stages.

    Raises:
        InputError: there is no whole checkpoint, or not of this step.
    """
    if config.training.precision == "fp8":  # only training steps are; the weights are bf16
        config = config.model_copy(update={"training": config.training.model_copy(update={"precision": "bf16"})})
    device = open_device(config.device, in_order=tensor > 1)
    set_determinism(device, asked=config.training.deterministic)
    layout = open_groups(device, tensor=tensor, pipeline=pipeline)
    try:
        checkpoint = required(run, step)
        seed_device(device, config.training.seed, tensor_rank=layout.tensor_rank, pipeline_rank=layout.pipeline_rank)
        rows = padded_vocabulary(vocabulary)
        engine = Engine(config, vocabulary=rows, layout=layout, device=device, begin=False, trains=False)
        engine.load_weights(shards.load({"model": engine.weights()}, checkpoint.folder)["model"])
        yield engine, checkpoint
    finally:
        close_groups()


def open_checkpoint(run: Path, step: int | None) -> Checkpoint:
    """Returns a whole checkpoint of a run, for one process that builds no model.

    Raises:
        InputError: there is none, or not of this step.
    """
    open_groups(open_device("cpu"))
    try:
        return required(run, step)
    finally:
        close_groups()
