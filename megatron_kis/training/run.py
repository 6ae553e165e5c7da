"""One run, from its configuration to its logs and ``DONE``."""

from __future__ import annotations

import math
import shutil
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch

from megatron_kis.config import RunConfig
from megatron_kis.data.ledger import Ledger
from megatron_kis.device import open_device, seed_device
from megatron_kis.errors import InputError, JobError
from megatron_kis.files import locked, write_json
from megatron_kis.model.vocabulary import padded_vocabulary
from megatron_kis.parallel import Layout, close_groups, open_groups, sum_over_data
from megatron_kis.training.engine import Engine
from megatron_kis.training.hooks import Hook, MetricsHook, ProbeHook, State, ValidationHook
from megatron_kis.training.inputs import Inputs, open_inputs
from megatron_kis.training.logs import JsonLines
from megatron_kis.training.progress import ProgressHook
from megatron_kis.training.record import is_done, mark_done, run_record
from megatron_kis.training.schedule import learning_rate


def train(config: RunConfig) -> Path:
    """Trains one run and returns its folder; a folder that is DONE with these settings is left as it is.

    Under torchrun every process calls this. Everything that can be wrong with the input is found before the
    first step.

    Raises:
        InputError: wrong settings or data.
        JobError: the loss is no longer finite, or the ledger does not show what the plan promised.
    """
    inputs = open_inputs(config)
    if is_done(config, inputs.fingerprints):
        return config.output
    device = open_device(config.device)
    torch.use_deterministic_algorithms(device.is_host)
    layout = open_groups(device, tensor=config.parallel.tensor, pipeline=config.parallel.pipeline)
    try:
        _check_batches(config, layout)
        seed_device(device, config.training.seed, tensor_rank=layout.tensor_rank, pipeline_rank=layout.pipeline_rank)
        engine = Engine(config, vocabulary=padded_vocabulary(inputs.vocabulary), layout=layout, device=device)
        _Run(config, inputs, engine).execute()
    finally:
        close_groups()
    return config.output


def _check_batches(config: RunConfig, layout: Layout) -> None:
    training = config.training
    if training.global_batch_size % layout.data_size:
        raise InputError(
            f"{training.global_batch_size} sequences cannot be shared by {layout.data_size} replicas",
            where="training.global_batch_size",
            remedy=f"use a multiple of {layout.data_size}",
        )
    share = training.global_batch_size // layout.data_size
    if training.micro_batch_size and share % training.micro_batch_size:
        raise InputError(
            f"{training.micro_batch_size} does not divide a replica's {share} sequences",
            where="training.micro_batch_size",
            remedy=f"use a divisor of {share}",
        )


class _Run:
    """The state of one run on this rank."""

    def __init__(self, config: RunConfig, inputs: Inputs, engine: Engine) -> None:
        self._config, self._inputs, self._engine = config, inputs, engine
        self._layout = engine.layout
        self._reports = engine.layout.reports
        self._ledger = Ledger(inputs.store)
        self._state = State(steps=config.training.steps)
        self._folder = config.output
        self._logs: list[JsonLines] = []

    def execute(self) -> None:
        """Writes run.json, trains with all hooks, and closes the run."""
        started = time.perf_counter()
        params = self._engine.parameters()
        with locked(self._folder, "kis train") if self._reports else nullcontext():
            if self._reports:
                self._clear_folder()
                self._write_record(params)
            self._train(self._hooks())
            self._close(time.perf_counter() - started)

    def _train(self, hooks: list[Hook]) -> None:
        """All steps with their hooks; logs and bars are closed however it ends."""
        try:
            for hook in hooks:
                hook.before_training(self._state)
            for step in range(self._state.steps):
                self._step(step)
                for hook in hooks:
                    hook.after_step(self._state)
        finally:
            for hook in hooks:
                hook.after_training(self._state)
            for log in self._logs:
                log.close()

    def _clear_folder(self) -> None:
        """Starts the folder of an unfinished run anew."""
        for name in ("run.json", "metrics.jsonl", "probes.jsonl", "exposures.json", "outcomes"):
            path = self._folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _write_record(self, params: int) -> None:
        plan = self._inputs.plan
        shape = self._config.model.shape()
        record = run_record(
            self._config,
            params=params,
            nonembedding_params=shape.nonembedding_params(),
            plan=plan.identity(),
            fingerprints=self._inputs.fingerprints,
            layout=asdict(self._layout),
            device=self._engine.device.name,
            precision=self._engine.precision,
            epochs=self._inputs.text.epochs(len(plan)),
        )
        write_json(self._folder / "run.json", record)

    def _log(self, name: str) -> JsonLines | None:
        if not self._reports:
            return None
        log = JsonLines(self._folder / name)
        self._logs.append(log)
        return log

    def _hooks(self) -> list[Hook]:
        config, engine, inputs, steps = self._config, self._engine, self._inputs, self._state.steps
        metrics = self._log("metrics.jsonl")
        hooks: list[Hook] = [
            MetricsHook(metrics, every=config.logging.every),
            ValidationHook(config.validation, engine, inputs.validation, metrics, steps=steps),
            ProbeHook(
                config.probes,
                engine,
                inputs.questions,
                self._log("probes.jsonl"),
                first=inputs.eod_id,
                steps=steps,
                outcomes=self._folder / "outcomes",
            ),
        ]
        if self._reports:
            hooks.append(ProgressHook(config.name, every=config.logging.every))
        return hooks

    def _step(self, step: int) -> None:
        started = time.perf_counter()
        config, state, layout = self._config.training, self._state, self._layout
        share = config.global_batch_size // layout.data_size
        first = step * config.global_batch_size + layout.data_rank * share
        samples = [self._inputs.dataset[sequence] for sequence in range(first, first + share)]
        rate = learning_rate(step, state.steps, config.optimizer)
        loss, norm = self._engine.train_step(
            samples, micro_batch_size=min(config.micro_batch_size or share, share), learning_rate=rate
        )
        if self._reports and not (math.isfinite(loss) and math.isfinite(norm)):
            raise JobError(f"loss {loss} and gradient norm {norm} at step {step + 1}: not finite; lower learning_rate")
        for offset, sample in enumerate(samples):
            self._ledger.observe(sample.tokens.numpy(), self._inputs.plan[first + offset])
        state.step = step + 1
        state.tokens = state.step * config.global_batch_size * config.sequence_length
        state.loss, state.gradient_norm, state.learning_rate = loss, norm, rate
        state.infusion_ratio = self._ledger.infusion_ratio
        state.seconds += time.perf_counter() - started

    def _close(self, seconds: float) -> None:
        """Merges the ledger over replicas, checks it against the plan, and writes DONE."""
        counts = self._ledger.as_tensor().to(self._engine.device.torch_device)
        self._ledger.load_tensor(sum_over_data(counts))
        if not self._reports:
            return
        write_json(self._folder / "exposures.json", self._ledger.as_json(self._inputs.plan))
        differences = self._ledger.differences(self._inputs.plan)
        if differences:
            raise JobError(f"{len(differences)} facts did not get their exposures, first: {differences[0]}")
        mark_done(
            self._folder,
            {
                "steps": self._state.step,
                "tokens": self._state.tokens,
                "seconds": round(seconds, 2),
                "training_seconds": round(self._state.seconds, 2),
                "loss": self._state.loss,
            },
        )
