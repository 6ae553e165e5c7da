"""One rank of a run on the fake device, through the project's own code; prints what it counted as JSON.

python -m tests.dry_device.rank 7b --tensor 4 --pipeline 2 --rank 4 --layers 4 --micro-batches 4
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.dry_device import VALIDATED, cuda, kernels, transformer_engine, world
from tests.dry_device.counts import Counts, read_from_the_host

import numpy as np  # isort: skip
import torch  # isort: skip

PARTS = ("step", "validation", "probe", "save", "load")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line; the keywords of ``run_case`` have the same names."""
    parser = argparse.ArgumentParser(prog="python -m tests.dry_device.rank", description=__doc__)
    parser.add_argument("preset")
    for name, least in {
        "tensor": 1,
        "pipeline": 1,
        "virtual": 1,
        "context": 1,
        "data": 1,
        "micro_batch": 1,
        "micro_batches": 1,
        "rank": 0,
        "length": 2048,
        "vocabulary": 32000,
    }.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=least)
    parser.add_argument("--every-rank", action="store_true", help="run all, print a list")
    parser.add_argument("--layers", type=int, help="fewer than the preset's")
    parser.add_argument("--sequence", action="store_true", help="sequence parallelism")
    parser.add_argument("--transformer-engine", action="store_true", help="as if it were installed")
    parser.add_argument("--recompute", default="none")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--implementation", default="auto")
    parser.add_argument("--answers", action="store_true", help="the engine of kis probe: validation and probe only")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=JSON", help="of the configuration")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--messages", action="store_true", help="print each message of the measured step and the rest")
    return parser.parse_args(words)


def configuration(asked: argparse.Namespace) -> Any:
    """The run's configuration, as a file of the same content would give it."""
    from megatron_kis.common.configuration import parse_config
    from megatron_kis.config.ladder import preset
    from megatron_kis.config.run import RunConfig

    shape = preset(asked.preset)
    sequences = asked.micro_batch * asked.micro_batches * asked.data
    fields = {name: getattr(shape, name) for name in type(shape).__dataclass_fields__}
    content: dict[str, Any] = {
        "name": "dry",
        "output": "unused",
        "device": "cuda",
        "data": dict.fromkeys(("corpus", "validation", "exposures", "tokenizer"), "unused"),
        "model": {**fields, "layers": asked.layers or shape.layers, "transformer_impl": asked.implementation},
        "infusion": {"frequency": 0},
        "parallel": {
            name: getattr(asked, name) for name in ("tensor", "pipeline", "virtual", "context", "sequence", "recompute")
        },
        "training": {
            "token_budget": sequences * asked.length,
            "sequence_length": asked.length,
            "global_batch_size": sequences,
            "micro_batch_size": asked.micro_batch,
            "precision": asked.precision,
        },
    }
    for words in asked.set:
        key, _, value = words.partition("=")
        *sections, last = key.split(".")
        place = content
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = json.loads(value)
    return parse_config(RunConfig, content, source="the dry device")


class Rank:
    """A rank with its engine, and what it counted."""

    def __init__(self, asked: argparse.Namespace, counts: Counts) -> None:
        """Builds the engine as ``kis train`` does."""
        from megatron_kis.config.vocabulary import padded_vocabulary
        from megatron_kis.distributed.determinism import seed_device, set_determinism
        from megatron_kis.distributed.device import open_device
        from megatron_kis.distributed.groups import open_groups
        from megatron_kis.engine.engine import Engine

        self.asked, self.counts, self.config = asked, counts, configuration(asked)
        device = open_device(self.config.device)
        set_determinism(device, asked=self.config.training.deterministic)
        parallel = self.config.parallel
        self.layout = open_groups(
            device,
            tensor=parallel.tensor,
            pipeline=parallel.pipeline,
            virtual=parallel.virtual,
            context=parallel.context,
        )
        seed_device(device, 0, tensor_rank=self.layout.tensor_rank, pipeline_rank=self.layout.pipeline_rank)
        self.vocabulary = padded_vocabulary(asked.vocabulary)
        trains = not asked.answers
        self.engine = Engine(
            self.config, vocabulary=self.vocabulary, layout=self.layout, device=device, begin=trains, trains=trains
        )
        self.nodes: int | None = None
        """Those of this replica's part of the probe after which a token is asked."""

        self._divide_the_step()

    def _divide_the_step(self) -> None:
        """Names the parts of a step: ``passes`` (forward and backward), then ``update``."""
        passes = self.engine._forward_backward

        def named(**arguments: Any) -> Any:
            self.counts.begin("passes")
            try:
                return passes(**arguments)
            finally:
                self.counts.begin("update")

        self.engine._forward_backward = named

    def step(self) -> None:
        """Two steps; the second, with the optimizer's state in place, is what stays counted.

        The first has as few micro-batches as the stages need.
        """
        from megatron_kis.training.faults import StopRequest

        asked = self.asked
        tokens = torch.arange(asked.length + 1)
        sample = {
            "tokens": tokens[:-1],
            "labels": tokens[1:],
            "loss_mask": torch.ones(asked.length),
            "position_ids": torch.arange(asked.length),
        }
        checkpointer = self._checkpointer()
        if self.config.documents.reset_attention:
            sample["attention_mask"] = torch.ones(1, asked.length, asked.length, dtype=torch.bool).triu(1)
        for count in (min(asked.pipeline, asked.micro_batches), asked.micro_batches):
            self._label()
            self.counts.restart()
            self.counts.begin("begin")
            checkpointer.before_step(StopRequest())
            self.engine.train_step(
                [sample] * (asked.micro_batch * count),
                learning_rate=1e-4,
                micro_batch_size=asked.micro_batch,
                accept=lambda *_: True,
            )
            if checkpointer._answer is not None:
                checkpointer._answer()  # as `after_step` does; what it would do then depends on numbers

    def _checkpointer(self) -> Any:
        """That of a run, which asks the other ranks at each step."""
        from megatron_kis.config.run import CheckpointConfig
        from megatron_kis.training.checkpointer import Checkpointer

        device = self.engine.device.torch_device
        return Checkpointer(CheckpointConfig(), Path("unused"), steps=9, step_tokens=1, device=device, logs={})

    def validation(self) -> None:
        """The validation of the training loop, on ``VALIDATED`` sequences."""
        from megatron_kis.config.run import ValidationConfig
        from megatron_kis.training.callbacks.base import RunState
        from megatron_kis.training.callbacks.validation import ValidationCallback

        text = [np.zeros(self.asked.length + 1, dtype=np.int64)] * VALIDATED
        callback = ValidationCallback(
            ValidationConfig(), self.engine, text, None, steps=1, step_tokens=1, rows_per_pass=self.asked.micro_batch
        )
        callback.on_schedule(RunState(1))

    def probe(self) -> None:
        """Options of a common beginning, as many rows a pass as a run has by default."""
        from megatron_kis.probes.forward import Scorer
        from megatron_kis.probes.prefix_tree import build_prefix_trees
        from megatron_kis.probes.probe import ROW_WIDTH
        from megatron_kis.probes.ragged import Ragged

        scorer, random = Scorer(self.engine), np.random.default_rng(0)
        options = [[5, 6, 7, *random.integers(10, 1000, length % 12 + 3).tolist()] for length in range(256)]
        trees = build_prefix_trees(Ragged.of(options), bos_id=1, width=ROW_WIDTH, branching=scorer.branching)
        of_rows = [trees.places[start:end] for start, end in pairwise(trees.edge_starts)]
        mine = np.argsort(trees.counts, kind="stable")[self.layout.data_rank :: self.layout.data_size]
        self.nodes = sum(len(np.unique(of_rows[row])) for row in mine)
        scorer.score(trees, 27)

    def save(self) -> None:
        """What a checkpoint copies; nothing is written."""
        from torch.distributed.checkpoint.utils import _DistWrapper

        from megatron_kis.checkpoint import shards

        if self.layout.world_size > 1:  # nobody can join the plans of all ranks: this one writes what it plans to
            _DistWrapper.reduce_scatter = lambda _, name, plan, join: plan()
            prepare: Any = shards.save_preprocess
            vars(shards)["save_preprocess"] = lambda sharded, _: prepare(sharded, False)
        with tempfile.TemporaryDirectory() as folder:
            self.common = shards.stage(self.engine.sharded_state(), Path(folder))._common

    def load(self) -> None:
        """What ``shards.load`` does but for the disk: this rank's parts are its own tensors. After ``save``."""
        from megatron.core.dist_checkpointing.dict_utils import dict_list_map_inplace, merge
        from megatron.core.dist_checkpointing.mapping import apply_factory_merges
        from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess
        from megatron.core.dist_checkpointing.utils import extract_sharded_base

        wanted, plain, factories = load_preprocess(self.engine.sharded_state())
        parts, _ = extract_sharded_base(wanted)
        dict_list_map_inplace(lambda part: part.data, parts)
        state = merge(merge(self.common, plain), parts)
        self.engine.load_state(apply_factory_merges(state, factories))

    def _label(self) -> None:
        """Says which of the tensors alive are weights, gradients and the optimizer's."""
        counts = self.counts
        counts.label("weights", (weight for chunk in self.engine.chunks for weight in chunk.parameters()))
        buffers = [buffer for chunk in self.engine.chunks for buffer in chunk.buffers + chunk.expert_parallel_buffers]
        own = {weight.untyped_storage()._cdata for chunk in self.engine.chunks for weight in chunk.parameters()}
        own |= {buffer.grad_data.untyped_storage()._cdata for buffer in buffers}
        counts.label("optimizer", (one for one in self._of_the_optimizer() if one.untyped_storage()._cdata not in own))
        counts.label("weights", (buffer.param_data for buffer in buffers if buffer.param_data is not None))
        counts.label("gradients", (buffer.grad_data for buffer in buffers))

    def _of_the_optimizer(self) -> Iterator[torch.Tensor]:
        whole = self.engine._optimizer._optimizer
        for part in getattr(whole, "chained_optimizers", [whole]):
            for group in part.optimizer.param_groups:
                yield from group["params"]
                yield from (weight.grad for weight in group["params"] if weight.grad is not None)
            for state in part.optimizer.state.values():
                yield from (value for value in state.values() if isinstance(value, torch.Tensor))

    def _steps_of_adam(self) -> dict[str, Any]:
        """Where PyTorch's AdamW keeps its numbers of steps, and in how many tensors for how many weights."""
        whole = self.engine._optimizer._optimizer
        parts = getattr(whole, "chained_optimizers", [whole])
        states = [state for part in parts for state in part.optimizer.state.values() if "step" in state]
        return {
            "weights": len(states),
            "tensors": len({id(state["step"]) for state in states}),
            "devices": sorted({state["step"].device.type for state in states}),
        }

    def run(self) -> dict[str, Any]:
        """Runs the parts that were asked for.

        Returns:
            ``static``: bytes alive by kind between steps; ``peaks``: by part, the most bytes alive above these;
            ``parts``: by part, what else was counted; ``problems``: the parts that failed, with their tracebacks.
        """
        counts, asked = self.counts, self.asked.parts.split(",")
        found: dict[str, Any] = {"peaks": {}, "parts": {}, "problems": {}}
        static = counts.alive
        for part in asked:
            counts.restart()
            counts.begin(part)
            kernels.CHOSEN.clear()
            try:
                getattr(self, part)()
            except Exception:
                found["problems"][part] = traceback.format_exc()
                continue
            if not self.asked.answers:
                self._label()
            if part == "step":
                static = counts.alive
                found["static"] = {kind: size for kind, size in counts.by_kind.items() if size}
            found["peaks"] |= {name: peak - static for name, (peak, _) in counts.peaks.items()}
            found["parts"][part] = self._counted()
        shape, asked_of = self.config.model.shape(), self.asked
        tokens = asked_of.micro_batch * asked_of.micro_batches * asked_of.length
        return found | {
            "layout": {name: getattr(self.layout, name) for name in type(self.layout).__dataclass_fields__},
            "parameters": sum(weight.numel() for chunk in self.engine.chunks for weight in chunk.parameters()),
            "flops_of_the_model": shape.flops_per_token(self.vocabulary, asked_of.length) * tokens,
            "groups": dict(world.MADE),
            "steps_of_adam": None if self.asked.answers else self._steps_of_adam(),
            "bytes_at_the_end": counts.alive,
            "probe_nodes": self.nodes,
        }

    def _counted(self) -> dict[str, Any]:
        counts = self.counts
        sent: dict[str, dict[str, list[int]]] = {}
        for message in counts.messages:
            number = sent.setdefault(message["group"], {}).setdefault(message["operator"], [0, 0])
            number[0] += 1
            number[1] += message["bytes"]
        counted = {
            "flops": dict(counts.flops),
            "launches": dict(counts.launches),
            "syncs": dict(counts.syncs),
            "copies": dict(counts.copies),
            "copied_to_host": counts.copied_to_host,
            "attention": dict(kernels.CHOSEN),
            "sent": sent,
            "at_peak": {part: kinds for part, (_, kinds) in counts.peaks.items()},
        }
        return counted | ({"messages": list(counts.messages)} if self.asked.messages else {})


def prepare(*, with_engine: bool) -> tuple[Counts, Any]:
    """Makes this process a rank: the counts and the mode to enter. What is replaced stays replaced."""
    counts = Counts()
    world.open_world(0, 1, counts.say)
    mode = cuda.install(counts.sync)
    if with_engine:
        transformer_engine.load()
    kernels.install()
    read_from_the_host(counts)
    return counts, mode


def started(*, with_engine: bool) -> tuple[Counts, Any]:
    """``prepare``, and all imports of a rank: before a fork for each."""
    prepared = prepare(with_engine=with_engine)
    for name in (
        "numpy.ma",  # which PyTorch imports late
        "megatron_kis.checkpoint.shards",
        "megatron_kis.engine.engine",
        "megatron_kis.probes.probe",
        "megatron_kis.training.callbacks.validation",
        "megatron_kis.training.checkpointer",
    ):
        importlib.import_module(name)
    return prepared


def answer(counts: Counts, mode: Any, words: list[str]) -> Any:
    """What the command prints, in a process that is prepared."""
    asked = arguments(words)
    ranks = asked.tensor * asked.pipeline * asked.context * asked.data
    if asked.every_rank:
        return [_in_a_fork(asked, counts, mode, rank, ranks) for rank in range(ranks)]
    world.become(asked.rank, ranks)
    with mode, counts:
        return Rank(asked, counts).run()


def _in_a_fork(asked: argparse.Namespace, counts: Counts, mode: Any, rank: int, ranks: int) -> dict[str, Any]:
    """Runs a rank in a process of its own."""
    with tempfile.TemporaryFile("w+") as file:
        child = os.fork()
        if child == 0:
            world.become(rank, ranks)
            with mode, counts:
                json.dump(Rank(asked, counts).run(), file)
            file.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status == 0, f"rank {rank} failed"
        file.seek(0)
        found: dict[str, Any] = json.load(file)
        return found


def main() -> None:
    """Prints what a rank counted, or a list of what each rank did."""
    words = sys.argv[1:]
    json.dump(answer(*started(with_engine=arguments(words).transformer_engine), words), sys.stdout)


if __name__ == "__main__":
    main()
