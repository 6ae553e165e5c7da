"""One run, from its configuration to its logs and ``DONE``; a run that was cut off resumes where it was saved."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from megatron_kis.checkpoint import sharded as shards
from megatron_kis.checkpoint.folders import Checkpoint, newest, required
from megatron_kis.common.errors import JobError
from megatron_kis.common.files import locked, write_json
from megatron_kis.common.jsonl_log import JsonLines
from megatron_kis.config.layout import check_layers, check_layout, replicas_of
from megatron_kis.config.run import RunConfig
from megatron_kis.config.training import check_precision, resolve_precision
from megatron_kis.config.vocabulary import padded_vocabulary
from megatron_kis.data.ledger import Ledger
from megatron_kis.distributed.collectives import gather, is_loss_of_a_rank, sum_over_data, together
from megatron_kis.distributed.determinism import seed_device, set_determinism
from megatron_kis.distributed.device import open_device
from megatron_kis.distributed.groups import ParallelDims, close_groups, open_groups
from megatron_kis.distributed.megatron_imports import quiet_megatron
from megatron_kis.distributed.slurm_environment import environment_of_srun
from megatron_kis.engine.engine import Engine
from megatron_kis.engine.lr_schedule import learning_rate, peak_rate
from megatron_kis.engine.throughput import Speed
from megatron_kis.training.artifacts import keep_inputs, kept_files
from megatron_kis.training.branch import check_branch, find_source
from megatron_kis.training.callbacks.base import (
    Hook,
    LoggingHook,
    MetricsHook,
    ProbeHook,
    State,
    ValidationHook,
    check_names,
)
from megatron_kis.training.callbacks.progress_bar import ProgressHook
from megatron_kis.training.callbacks.trackers import trackers
from megatron_kis.training.checkpointer import Saver
from megatron_kis.training.inputs import Inputs, open_inputs
from megatron_kis.training.loss_guard import Guard, bad_step, differences_without, exposures_in
from megatron_kis.training.record import is_done, mark_done, run_record
from megatron_kis.training.resume import check_same_run, identity
from megatron_kis.training.run_dir import RunFolder
from megatron_kis.training.signals import StopRequest, stop_requests
from megatron_kis.training.watchdog import Watchdog

with quiet_megatron():
    from megatron.core.dist_checkpointing.mapping import ShardedTensor


HookFactory = Callable[[Engine], Hook]
"""Makes a hook of one's own for an engine, whose weights are set; a subclass of `Hook` that takes the engine is one."""


def train(
    config: RunConfig, *, restart: bool = False, branch_from: str | None = None, hooks: Sequence[HookFactory] = ()
) -> Path:
    """Trains one run and returns its folder; a folder that is DONE with these settings is left as it is.

    Under torchrun every process calls this. Everything that can be wrong with the input is found before the
    first step. An unfinished run resumes from its newest whole checkpoint.

    Args:
        config: the run.
        restart: begin an unfinished run again, and remove its checkpoints.
        branch_from: ``RUN_DIR[@STEP]``, a checkpoint of another run with which to begin.
        hooks: more of them, called after those of the configuration, on every rank.

    Raises:
        InputError: wrong settings or data, a checkpoint of other ones, or checkpoints of which none can be used.
        JobError: the loss is no longer finite, the ledger does not show what the plan promised, something cannot be
            read or written, or another rank has ended.
        Stopped: a signal asked to stop; a checkpoint is written.
    """
    os.environ.update(environment_of_srun(os.environ))
    inputs = open_inputs(config)
    parallel = config.parallel
    sizes = {"tensor": parallel.tensor, "pipeline": parallel.pipeline, "context": parallel.context}
    replicas = replicas_of(int(os.environ.get("WORLD_SIZE", "1")), **sizes)
    check_layers(config.model.transformer_impl, own_mask=config.documents.reset_attention,
                 precision=config.training.precision)  # fmt: skip
    check_layout(config.model, parallel, config.training, replicas=replicas, vocabulary=inputs.vocabulary)
    device = open_device(config.device, in_order=parallel.tensor * parallel.context > 1)
    precision = resolve_precision(config.training.precision, host=device.is_cpu)
    found = {**inputs.fingerprints, "plan": inputs.plan.fingerprint}
    if is_done(config, found, precision=precision, model_sha256=inputs.tokenizer.model_sha256):
        return config.output
    check_precision(precision, host=device.is_cpu)
    set_determinism(device, asked=config.training.deterministic)
    layout = open_groups(device, virtual=parallel.virtual, **sizes)
    try:
        seed_device(device, config.training.seed, tensor_rank=layout.tensor_rank, pipeline_rank=layout.pipeline_rank)
        rows = padded_vocabulary(inputs.vocabulary)
        engine = Engine(config, vocabulary=rows, layout=layout, device=device, begin=False)
        _Run(config, inputs, engine, hooks).execute(restart=restart, branch_from=branch_from)
    except RuntimeError as error:
        if layout.world_size > 1 and is_loss_of_a_rank(error):
            raise JobError(
                f"rank {layout.rank}: another rank of this run has ended; its own message says why"
            ) from error
        raise
    finally:
        close_groups()
    return config.output


class _Run:
    """The state of one run on this rank."""

    def __init__(self, config: RunConfig, inputs: Inputs, engine: Engine, more_hooks: Sequence[HookFactory]) -> None:
        self._config, self._inputs, self._engine, self._more_hooks = config, inputs, engine, more_hooks
        self._layout = engine.layout
        self._reports = engine.layout.is_logging_rank
        self._ledger = Ledger(inputs.store)
        self._state = State(steps=config.training.steps)
        self._folder = RunFolder(config.output)
        self._metrics: JsonLines | None = None  # on the rank that reports
        self._started = time.perf_counter()
        optimizer = config.training.optimizer
        peak = peak_rate(optimizer, config.model.shape().width)
        self._optimizer = optimizer.model_copy(update={"learning_rate": peak})
        self._share = config.training.global_batch_size // engine.layout.data_size
        self._micro_batch_size = min(config.training.micro_batch_size or self._share, self._share)
        self._guard = Guard(config.training.guard)
        self._identity = identity(
            config, plan=inputs.plan.identity(), data=inputs.fingerprints, precision=engine.precision
        )

    def execute(self, *, restart: bool, branch_from: str | None) -> None:
        """Begins or resumes, trains with all hooks, and closes the run."""
        params, output = self._engine.parameters(), self._config.output
        with ExitStack() as stack:
            # nobody reads the folder before it is locked
            together(lambda: self._reports and stack.enter_context(locked(output, "kis train")))
            checkpoint = None if restart else newest(output)
            if checkpoint is not None:
                check_same_run(checkpoint, self._identity, model_sha256=self._inputs.tokenizer.model_sha256)
            elif branch_from is not None:
                checkpoint = self._branch(find_source(branch_from), restart=restart)
                restart = False
            if checkpoint is None:
                self._engine.begin()
            else:
                self._load(checkpoint)
            more = [make(self._engine) for make in self._more_hooks]  # which may look at the weights
            check_names(more)
            together(lambda: self._prepare(checkpoint, params, restart=restart))  # nor writes before it is cleared
            hooks = self._hooks() + more
            if checkpoint is not None:
                self._load_hooks(checkpoint, hooks)
                if self._reports:
                    where = f"step {checkpoint.step} of {self._state.steps}"
                    print(f"{self._config.name}: going on from {where}", file=sys.stderr, flush=True)
            request = stack.enter_context(stop_requests())
            self._train(hooks, request)
            self._close()

    def _train(self, hooks: list[Hook], request: StopRequest) -> None:
        """All steps with their hooks; logs and bars are closed however it ends."""
        config, state = self._config, self._state
        device = self._engine.device.torch_device
        watchdog = Watchdog(config.training.guard.hang_minutes, config.output, rank=self._layout.rank)
        try:
            saver = Saver(
                config.checkpoints, config.output, steps=state.steps, step_tokens=config.training.step_tokens,
                device=device, logs=self._folder.logs,
            )  # fmt: skip
            for hook in hooks:
                watchdog.rearm()
                hook.before_training(state)
            for step in range(state.step, state.steps):
                watchdog.rearm()
                saver.before_step(request)
                self._step(step)
                for hook in hooks:
                    watchdog.rearm()
                    hook.after_step(state)
                watchdog.rearm()
                saver.after_step(state, request, lambda: self._contents(hooks))
        finally:
            watchdog.close()
            for hook in hooks:
                hook.after_training(state)
            self._folder.close_logs()

    def _branch(self, source: Checkpoint, *, restart: bool) -> Checkpoint:
        """Begins with a checkpoint of another run."""
        check_branch(source, self._config, self._identity, model_sha256=self._inputs.tokenizer.model_sha256)

        def adopt() -> None:
            if self._reports:
                self._folder.adopt(source, steps=self._state.steps, identity=self._identity, restart=restart)

        together(adopt)
        return required(self._config.output, source.step)

    def _prepare(self, checkpoint: Checkpoint | None, params: int, *, restart: bool) -> None:
        """Writes what the folder holds before the first step; on the rank that reports."""
        if not self._reports:
            return
        config, inputs = self._config, self._inputs

        def keep() -> dict[str, str]:
            return keep_inputs(config.output, config, inputs.tokenizer, inputs.fingerprints["questions"])

        self._folder.prepare(checkpoint, self._record(params), restart=restart, keep=keep)

    def _record(self, params: int) -> dict[str, Any]:
        """The content of ``run.json``, for a model of ``params`` parameters."""
        plan = self._inputs.plan
        record = run_record(
            self._config,
            params=params,
            nonembedding_params=self._config.model.shape().nonembedding_params(),
            plan=plan.identity(),
            fingerprints={**self._inputs.fingerprints, "plan": plan.fingerprint},
            layout=asdict(self._layout),
            device=self._engine.device.name,
            precision=self._engine.precision,
            epochs=self._inputs.text.epochs(len(plan)),
        )
        return {**record, "max_position_embeddings": self._inputs.positions}

    def _hooks(self) -> list[Hook]:
        config, engine, inputs, steps = self._config, self._engine, self._inputs, self._state.steps
        metrics, probes = self._folder.open_logs() if self._reports else (None, None)
        self._metrics = metrics
        speed = Speed(
            config.model.shape().flops_per_token(padded_vocabulary(inputs.vocabulary), config.training.sequence_length),
            device=engine.device,
            devices=self._layout.world_size,
            precision=engine.precision,
        )
        hooks: list[Hook] = [
            MetricsHook(metrics, every=config.logging.every, speed=speed),
            ValidationHook(
                config.validation,
                engine,
                inputs.validation,
                metrics,
                steps=steps,
                step_tokens=config.training.step_tokens,
                rows_a_pass=self._micro_batch_size,
            ),
            ProbeHook(
                config.probes,
                engine,
                inputs.questions,
                probes,
                steps=steps,
                step_tokens=config.training.step_tokens,
                outcomes=self._folder.outcomes,
            ),
        ]
        if self._reports:
            hooks.append(ProgressHook(config.name, every=config.logging.every))
            hooks += trackers(config, config.output, beginning=self._folder.beginning)
        return hooks

    def _step(self, step: int) -> None:
        started = time.perf_counter()
        config, state, layout = self._config.training, self._state, self._layout
        share = self._share
        first = step * config.global_batch_size + layout.data_rank * share
        samples = [self._inputs.dataset[sequence] for sequence in range(first, first + share)]
        rate = learning_rate(step, state.steps, self._optimizer)
        loss, norm = self._engine.train_step(
            samples,
            micro_batch_size=self._micro_batch_size,
            learning_rate=rate,
            accept=self._guard.accepts,
        )
        state.step = step + 1
        state.tokens = state.step * config.global_batch_size * config.sequence_length
        state.learning_rate = rate
        if self._guard.complaint is None:
            for offset, sample in enumerate(samples):
                self._ledger.observe(sample["tokens"].numpy(), self._inputs.plan[first + offset])
            state.loss, state.gradient_norm = loss, norm
        else:
            self._pass_over(loss, norm)
        if state.step % self._config.logging.every == 0 or state.step == state.steps:
            state.infusion_ratio = self._infusion_ratio()
        state.seconds += time.perf_counter() - started

    def _sequences(self, step: int) -> range:
        """The sequences of a step (from 1), over all replicas."""
        size = self._config.training.global_batch_size
        return range((step - 1) * size, step * size)

    def _pass_over(self, loss: float, norm: float) -> None:
        """A bad step, whose update was left out: the run stops, or says so and goes on, as the rule has it."""
        step, sequences = self._state.step, self._sequences(self._state.step)
        exposed = exposures_in([self._inputs.plan[sequence] for sequence in sequences])
        message = bad_step(str(self._guard.complaint), step, sequences, exposed, self._inputs.store)
        if not self._guard.skips(step):
            raise JobError(
                f"{message}; lower training.optimizer.learning_rate, or let training.guard.skip_in_a_row pass over it"
            )
        if self._metrics:
            print(f"kis: {message}; its update is left out", file=sys.stderr, flush=True)
            numbers = {"loss": loss, "grad_norm": norm}
            finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
            row = {"kind": "skipped", "step": step, "sequences": [sequences[0], sequences[-1]], **finite}
            self._metrics.write(row)

    def _missing(self) -> list[str]:
        """Facts that did not get their exposures, those of skipped steps apart: they are known not to have come."""
        plan, skipped = self._inputs.plan, self._guard.skipped
        if not skipped:
            return self._ledger.differences(plan)
        layouts = [plan[sequence] for step in skipped for sequence in self._sequences(step)]
        return differences_without(layouts, self._ledger.received, plan, self._inputs.store)

    def _infusion_ratio(self) -> float:
        """Share of the tokens that all replicas have seen so far."""
        counts = torch.tensor([self._ledger.infused_tokens, self._ledger.tokens], dtype=torch.int64)
        infused, tokens = sum_over_data(counts.to(self._engine.device.torch_device)).tolist()
        return float(infused / tokens) if tokens else 0.0

    def _counts(self) -> torch.Tensor:
        """The ledger's counts over all replicas."""
        return sum_over_data(self._ledger.as_tensor().to(self._engine.device.torch_device))

    def _contents(self, hooks: list[Hook]) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """What a checkpoint holds: this rank's tensors, and the manifest on the reporting rank."""
        sharded = {**self._engine.sharded_state(), "ledger": self._replicated("ledger", self._counts())}
        if not self._reports:
            return sharded, None
        state = self._state
        return sharded, {
            "run": self._config.name,
            "step": state.step,
            "steps": state.steps,
            "sequences": state.step * self._config.training.global_batch_size,
            "tokens": state.tokens,
            "validation_loss": state.results.get("validation_loss") if state.validated_at == state.step else None,
            "identity": self._identity,
            "layout": _sizes(self._layout),
            "device": self._engine.device.kind,
            **self._folder.manifest(),
            "state": state.record(),
            "guard": self._guard.record(),
            "elapsed": time.perf_counter() - self._started,
            "hooks": {hook.name: hook.state() for hook in hooks},
        }

    def _load(self, checkpoint: Checkpoint) -> None:
        """Loads a checkpoint into model, optimizer, ledger, random streams, state and guard."""
        manifest = checkpoint.manifest
        sharded = self._engine.sharded_state()
        same_layout = manifest["layout"] == _sizes(self._layout) and manifest["device"] == self._engine.device.kind
        if not same_layout:  # the streams belong to ranks; a fresh one is as good, and nothing draws from it by default
            del sharded["random"]
        sharded["ledger"] = self._replicated("ledger", torch.zeros_like(self._ledger.as_tensor()))
        loaded = shards.load(sharded, checkpoint.folder)
        counts = loaded.pop("ledger")
        if self._layout.data_rank == 0:  # counts are summed over replicas
            self._ledger.load_tensor(counts)
        self._engine.load_state(loaded)
        self._state.load(manifest["state"])
        self._guard.load(manifest["guard"])
        self._started -= float(manifest["elapsed"])

    def _load_hooks(self, checkpoint: Checkpoint, hooks: list[Hook]) -> None:
        """Gives hooks what a checkpoint kept of them; the folder's logs have been compared with it."""
        for hook in hooks:
            hook.load(checkpoint.manifest["hooks"].get(hook.name, {}))
        lost = {kind for kinds in gather(self._folder.lost) for kind in kinds}
        for hook in hooks:
            if isinstance(hook, LoggingHook):
                hook.lost = hook.kind in lost

    def _replicated(self, name: str, values: torch.Tensor) -> ShardedTensor:
        return ShardedTensor.from_rank_offsets(name, values, replica_id=self._layout.rank)

    def _close(self) -> None:
        """Merges the ledger over replicas, checks it against the plan, and writes DONE."""
        self._ledger.load_tensor(self._counts())
        together(self._write_end)

    def _write_end(self) -> None:
        if not self._reports:
            return
        write_json(self._config.output / "exposures.json", self._ledger.as_json(self._inputs.plan))
        differences = self._missing()
        if differences:
            raise JobError(f"{len(differences)} facts did not get their exposures, first: {differences[0]}")
        mark_done(
            self._config.output,
            {
                "steps": self._state.step,
                "tokens": self._state.tokens,
                "seconds": round(time.perf_counter() - self._started, 2),
                "training_seconds": round(self._state.seconds, 2),
                "loss": self._state.loss,
                "skipped_steps": self._guard.skipped,
            },
            kept=kept_files(self._config.output, self._folder.inputs),
        )


def _sizes(layout: ParallelDims) -> dict[str, int]:
    """The layout, the same on every rank."""
    sizes = {"tensor": layout.tensor_size, "pipeline": layout.pipeline_size, "data": layout.data_size}
    more = {"virtual": layout.virtual_size, "context": layout.context_size}
    return sizes | {name: size for name, size in more.items() if size > 1}
