"""One run, from its configuration to its logs and ``DONE``; a run that was interrupted resumes from its checkpoint."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_kis.checkpoint import shards
from megatron_kis.checkpoint.folders import Checkpoint, newest, required, whole_at
from megatron_kis.common.errors import JobError
from megatron_kis.common.files import locked
from megatron_kis.common.jsonl_log import JsonLines
from megatron_kis.common.units import plural
from megatron_kis.config.layout import check_layers, check_layout, replicas_of
from megatron_kis.config.run import RunConfig
from megatron_kis.config.training import check_precision, resolve_precision
from megatron_kis.config.vocabulary import padded_vocabulary
from megatron_kis.distributed.collectives import gather, is_loss_of_a_rank, together
from megatron_kis.distributed.determinism import seed_device, set_determinism
from megatron_kis.distributed.device import Device, open_device
from megatron_kis.distributed.groups import ParallelDims, close_groups, open_groups
from megatron_kis.distributed.slurm_environment import environment_of_srun
from megatron_kis.engine.engine import Engine
from megatron_kis.engine.lr_schedule import learning_rate, peak_rate
from megatron_kis.training.artifacts import as_begun, keep_inputs, kept_files
from megatron_kis.training.branch import check_branch, check_complete, check_origin, find_source
from megatron_kis.training.callbacks.base import Callback, LoggingCallback, RunState, check_names
from megatron_kis.training.callbacks.metrics import MetricsCallback, Throughput
from megatron_kis.training.callbacks.probe import ProbeCallback
from megatron_kis.training.callbacks.progress import ProgressCallback
from megatron_kis.training.callbacks.trackers import trackers
from megatron_kis.training.callbacks.validation import ValidationCallback
from megatron_kis.training.checkpointer import Checkpointer
from megatron_kis.training.faults import LossGuard, StopRequest, Watchdog, describe_bad_step, stop_requests
from megatron_kis.training.inputs import open_inputs
from megatron_kis.training.record import is_done, mark_done, run_record
from megatron_kis.training.replicated_ledger import ReplicatedLedger
from megatron_kis.training.resume import check_same_run, identity
from megatron_kis.training.run_dir import RunDir

logger = logging.getLogger(__name__)

CallbackFactory = Callable[[Engine], Callback]
"""Makes a callback for an engine whose weights are set; a subclass of ``Callback`` that takes the engine is one."""


def train(
    config: RunConfig,
    *,
    restart: bool = False,
    branch_from: str | None = None,
    callbacks: Sequence[CallbackFactory] = (),
) -> Path:
    """Trains one run and returns its folder: ``Trainer(config, callbacks=callbacks).fit(...)``."""
    return Trainer(config, callbacks=callbacks).fit(restart=restart, branch_from=branch_from)


class Trainer:
    """Trains one run. Under torchrun every process makes one and calls ``fit``."""

    def __init__(self, config: RunConfig, *, callbacks: Sequence[CallbackFactory] = ()) -> None:
        """Opens nothing yet.

        Args:
            config: the run's configuration.
            callbacks: made and called after those of the configuration, on every rank.
        """
        self.config = config
        self.state = RunState(steps=config.training.steps)
        self._callback_factories = callbacks
        self._run_dir = RunDir(config.output)
        self._guard = LossGuard(config.training.guard)
        self._metrics: JsonLines | None = None  # on the rank that reports
        optimizer = config.training.optimizer
        peak = peak_rate(optimizer, config.model.shape().width)
        self._optimizer_config = optimizer.model_copy(update={"learning_rate": peak})

    def fit(self, *, restart: bool = False, branch_from: str | None = None) -> Path:
        """Trains the run and returns its folder; a folder that is DONE with these settings is left as it is.

        Everything that can be wrong with the input is found before the first step. An unfinished run resumes from its
        newest whole checkpoint.

        Args:
            restart: start an unfinished run again from step 0, and remove its checkpoints.
            branch_from: ``RUN_DIR[@STEP]``, a checkpoint of another run to start from.

        Raises:
            InputError: wrong settings or data, a checkpoint of other ones, or checkpoints of which none can be used; or
                a complete run is to be restarted, or a run that began elsewhere is to branch.
            JobError: the loss is no longer finite, the ledger differs from the plan, something cannot
                be read or written, or another rank has ended.
            Stopped: a signal asked to stop; a checkpoint is written.
        """
        os.environ.update(environment_of_srun(os.environ))
        own_questions = None
        if not restart:
            self.config, own_questions = as_begun(self.config)
        self._inputs = open_inputs(self.config, questions=own_questions)
        device = self._open_device()
        if self._is_done(device):
            check_complete(self.config.output, restart=restart, branch_from=branch_from)
            return self.config.output
        with self._open_engine(device), ExitStack() as stack:
            # The folder is not read before it is locked.
            self._on_reporting_rank(lambda: stack.enter_context(locked(self.config.output, "kis train")))
            callbacks = self._begin_or_resume(restart=restart, branch_from=branch_from)
            stop = stack.enter_context(stop_requests())
            self._train(callbacks, stop)
            self._finish()
        return self.config.output

    def _train(self, callbacks: list[Callback], stop: StopRequest) -> None:
        """Runs all steps that are left, with callbacks and checkpoints; logs are closed however it ends."""
        config, state = self.config, self.state
        watchdog = Watchdog(config.training.guard.hang_minutes, config.output, rank=self._layout.rank)
        try:
            checkpointer = Checkpointer(
                config.checkpoints,
                config.output,
                steps=state.steps,
                step_tokens=config.training.step_tokens,
                device=self._engine.device.torch_device,
                logs=self._run_dir.logs,
            )
            for callback in callbacks:
                watchdog.reset()
                callback.before_training(state)
            while state.step < state.steps:
                watchdog.reset()
                checkpointer.before_step(stop)
                self._train_step()
                for callback in callbacks:
                    watchdog.reset()
                    callback.after_step(state)
                watchdog.reset()
                checkpointer.after_step(state, stop, lambda: self._checkpoint_contents(callbacks))
        finally:
            watchdog.close()
            for callback in callbacks:
                callback.after_training(state)
            self._run_dir.close_logs()

    def _train_step(self) -> None:
        """Trains the next step, and counts what it was fed; the update of a bad step is left out."""
        started = time.perf_counter()
        config, state = self.config.training, self.state
        first = state.step * config.global_batch_size + self._layout.data_rank * self._replica_batch_size
        sequences = range(first, first + self._replica_batch_size)
        layouts = [self._inputs.plan[sequence] for sequence in sequences]
        samples = self._inputs.dataset.read(sequences, layouts)
        rate = learning_rate(state.step, state.steps, self._optimizer_config)
        loss, norm = self._engine.train_step(
            samples, micro_batch_size=self._micro_batch_size, learning_rate=rate, accept=self._guard.accepts
        )
        state.step += 1
        state.tokens = state.step * config.global_batch_size * config.sequence_length
        state.learning_rate = rate
        if self._guard.complaint is None:
            self._ledger.observe(samples, layouts)
            state.loss = loss
            state.gradient_norm = norm
        else:
            self._skip_step(loss, norm)
        if state.is_due(self.config.logging.every):
            state.infusion_ratio = self._ledger.infusion_ratio()
        state.seconds += time.perf_counter() - started

    def _skip_step(self, loss: float, norm: float) -> None:
        """Continues after a bad step, whose update was left out, or stops the run, as the configuration says."""
        step = self.state.step
        sequences = self._sequences(step)
        layouts = [self._inputs.plan[sequence] for sequence in sequences]
        message = describe_bad_step(str(self._guard.complaint), step, sequences, layouts, self._inputs.store)
        if not self._guard.skips(step):
            raise JobError(
                f"{message}; lower training.optimizer.learning_rate, or let training.guard.skip_in_a_row pass over it"
            )
        if self._metrics:
            logger.warning(f"kis: {message}; its update is left out")
            numbers = {"loss": loss, "grad_norm": norm}
            finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
            row = {"kind": "skipped", "step": step, "sequences": [sequences[0], sequences[-1]], **finite}
            self._metrics.write(row)

    def _sequences(self, step: int) -> range:
        """Returns the sequences of a step (from 1), over all replicas."""
        size = self.config.training.global_batch_size
        return range((step - 1) * size, step * size)

    def _open_device(self) -> Device:
        """Checks the layout against the processes at hand, and opens this rank's device."""
        config, parallel = self.config, self.config.parallel
        replicas = replicas_of(int(os.environ.get("WORLD_SIZE", "1")), **self._model_parallel_sizes())
        check_layers(
            config.model.transformer_impl,
            own_mask=config.documents.reset_attention,
            precision=config.training.precision,
        )
        check_layout(config.model, parallel, config.training, replicas=replicas, vocabulary=self._inputs.vocabulary)
        return open_device(config.device, in_order=parallel.tensor * parallel.context > 1)

    def _model_parallel_sizes(self) -> dict[str, int]:
        parallel = self.config.parallel
        return {"tensor": parallel.tensor, "pipeline": parallel.pipeline, "context": parallel.context}

    def _fingerprints(self) -> dict[str, str]:
        return {**self._inputs.fingerprints, "plan": self._inputs.plan.fingerprint}

    def _is_done(self, device: Device) -> bool:
        precision = resolve_precision(self.config.training.precision, cpu=device.is_cpu)
        tokenizer = self._inputs.tokenizer
        if is_done(self.config, self._fingerprints(), precision=precision, model_sha256=tokenizer.model_sha256):
            return True
        check_precision(precision, cpu=device.is_cpu)
        self.config.logging.check_packages()
        return False

    @contextmanager
    def _open_engine(self, device: Device) -> Iterator[None]:
        """Joins the other ranks and builds this rank's part of the model; the process groups are closed at the end."""
        config, inputs = self.config, self._inputs
        set_determinism(device, asked=config.training.deterministic)
        self._layout = layout = open_groups(device, virtual=config.parallel.virtual, **self._model_parallel_sizes())
        try:
            seed_device(
                device, config.training.seed, tensor_rank=layout.tensor_rank, pipeline_rank=layout.pipeline_rank
            )
            vocabulary = padded_vocabulary(inputs.vocabulary)
            self._engine = Engine(config, vocabulary=vocabulary, layout=layout, device=device, begin=False)
            self._started = time.perf_counter()
            self._reports = layout.is_logging_rank
            self._ledger = ReplicatedLedger(inputs, layout, device.torch_device)
            self._replica_batch_size = config.training.global_batch_size // layout.data_size
            wanted = config.training.micro_batch_size or self._replica_batch_size
            self._micro_batch_size = min(wanted, self._replica_batch_size)
            self._identity = identity(
                config, plan=inputs.plan.identity(), data=inputs.fingerprints, precision=self._engine.precision
            )
            yield
        except RuntimeError as error:
            if layout.world_size > 1 and is_loss_of_a_rank(error):
                raise JobError(
                    f"rank {layout.rank}: another rank of this run has ended; its own message says why"
                ) from error
            raise
        finally:
            close_groups()

    def _on_reporting_rank(self, act: Callable[[], object]) -> None:
        """Calls a function on the rank that reports; collective: an error there is raised on every rank."""

        def act_or_wait() -> None:
            if self._reports:
                act()

        together(act_or_wait)

    def _begin_or_resume(self, *, restart: bool, branch_from: str | None) -> list[Callback]:
        """Sets weights, state and the run's folder: those of the start, of a checkpoint or of another run's.

        Returns:
            All callbacks, with what the checkpoint saved of them.
        """
        params = self._engine.parameters()
        checkpoint = None if restart else newest(self.config.output)
        if checkpoint is not None:
            check_same_run(checkpoint, self._identity, model_sha256=self._inputs.tokenizer.model_sha256)
            origin = checkpoint.manifest.get("branched_from")
            check_origin(branch_from, self.config.output, origin, remedy="begin again with --restart")
        elif source := self._trunk(branch_from):
            checkpoint = self._import_trunk(source, restart=restart)
            restart = False
        if checkpoint is None:
            self._engine.begin()
        else:
            self._load_checkpoint(checkpoint)
        own = [make(self._engine) for make in self._callback_factories]  # they may read the weights
        check_names(own)
        # Nothing is written to the folder before it is cleared.
        self._on_reporting_rank(lambda: self._prepare_run_dir(checkpoint, params, restart=restart))
        callbacks = self._configured_callbacks() + own
        if checkpoint is not None:
            self._load_callbacks(checkpoint, callbacks)
            if self._reports:
                where = f"step {checkpoint.step} of {self.state.steps}"
                logger.info(f"{self.config.name}: resuming from {where}")
        return callbacks

    def _trunk(self, branch_from: str | None) -> Checkpoint | None:
        """Returns the checkpoint of another run from which this one begins, if any."""
        config = self.config
        if branch_from is not None:
            return find_source(branch_from)
        if config.trunk is None:
            return None
        found = whole_at(config.trunk, config.begin_step)
        if found is None and self._reports:
            logger.warning(
                f"kis: {config.trunk} has no complete checkpoint of step {config.begin_step}; {config.name} trains the "
                "steps until there itself"
            )
        return found

    def _import_trunk(self, source: Checkpoint, *, restart: bool) -> Checkpoint:
        """Takes over a checkpoint of another run as this run's own."""
        check_branch(source, self.config, self._identity, model_sha256=self._inputs.tokenizer.model_sha256)
        steps = self.state.steps
        self._on_reporting_rank(
            lambda: self._run_dir.import_trunk(source, steps=steps, identity=self._identity, restart=restart)
        )
        return required(self.config.output, source.step)

    def _prepare_run_dir(self, checkpoint: Checkpoint | None, params: int, *, restart: bool) -> None:
        """Writes what the folder holds before the first step."""
        config, inputs = self.config, self._inputs
        record = run_record(
            config,
            params=params,
            nonembedding_params=config.model.shape().nonembedding_params(),
            plan=inputs.plan.identity(),
            infused_bits=inputs.infused_bits(),
            fingerprints=self._fingerprints(),
            layout=asdict(self._layout),
            device=self._engine.device.name,
            precision=self._engine.precision,
            epochs=inputs.text.epochs(len(inputs.plan)),
        )
        self._run_dir.prepare(
            checkpoint,
            {**record, "max_position_embeddings": inputs.positions},
            restart=restart,
            keep=lambda: keep_inputs(config.output, config, inputs.tokenizer, inputs.fingerprints["questions"]),
        )

    def _configured_callbacks(self) -> list[Callback]:
        """Makes the callbacks that every run has, and opens the logs."""
        config, engine, inputs = self.config, self._engine, self._inputs
        metrics, probes = self._run_dir.open_logs() if self._reports else (None, None)
        self._metrics = metrics
        vocabulary = padded_vocabulary(inputs.vocabulary)
        throughput = Throughput(
            config.model.shape().flops_per_token(vocabulary, config.training.sequence_length),
            device=engine.device,
            devices=self._layout.world_size,
            precision=engine.precision,
        )
        length = {"steps": self.state.steps, "step_tokens": config.training.step_tokens}
        callbacks: list[Callback] = [
            MetricsCallback(metrics, every=config.logging.every, throughput=throughput),
            ValidationCallback(
                config.validation, engine, inputs.validation, metrics, rows_per_pass=self._micro_batch_size, **length
            ),
            ProbeCallback(config.probes, engine, inputs.questions, probes, outcomes=self._run_dir.outcomes, **length),
        ]
        if self._reports:
            callbacks.append(ProgressCallback(config.name, every=config.logging.every))
            callbacks += trackers(config, config.output, beginning=self._run_dir.beginning)
        return callbacks

    def _checkpoint_contents(self, callbacks: list[Callback]) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Returns what a checkpoint holds: this rank's tensors, and the manifest on the reporting rank."""
        sharded = {**self._engine.sharded_state(), "ledger": self._ledger.sharded_state()}
        if not self._reports:
            return sharded, None
        state = self.state
        return sharded, {
            "run": self.config.name,
            "step": state.step,
            "steps": state.steps,
            "sequences": state.step * self.config.training.global_batch_size,
            "tokens": state.tokens,
            "validation_loss": state.results.get("validation_loss") if state.validated_at == state.step else None,
            "identity": self._identity,
            "layout": _sizes(self._layout),
            "device": self._engine.device.kind,
            **self._run_dir.manifest(),
            "state": state.record(),
            "guard": self._guard.record(),
            "elapsed": time.perf_counter() - self._started,
            "hooks": {callback.name: callback.state() for callback in callbacks},
        }

    def _load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Loads a checkpoint into model, optimizer, ledger, random streams, state and guard."""
        manifest = checkpoint.manifest
        sharded = self._engine.sharded_state()
        same_layout = manifest["layout"] == _sizes(self._layout) and manifest["device"] == self._engine.device.kind
        if not same_layout:  # the streams belong to ranks; a fresh one is as good, and nothing draws from it by default
            del sharded["random"]
        sharded["ledger"] = self._ledger.empty_state()
        loaded = shards.load(sharded, checkpoint.folder)
        self._ledger.load_state(loaded.pop("ledger"))
        self._engine.load_state(loaded)
        self.state.load(manifest["state"])
        self._guard.load(manifest["guard"])
        self._started -= float(manifest["elapsed"])

    def _load_callbacks(self, checkpoint: Checkpoint, callbacks: list[Callback]) -> None:
        """Gives callbacks what a checkpoint saved of them, and tells them which rows the logs have lost."""
        for callback in callbacks:
            callback.load(checkpoint.manifest["hooks"].get(callback.name, {}))
        lost = {kind for kinds in gather(self._run_dir.lost) for kind in kinds}
        for callback in callbacks:
            if isinstance(callback, LoggingCallback):
                callback.lost = callback.kind in lost

    def _finish(self) -> None:
        """Merges the ledger over replicas, checks it against the plan, and writes DONE."""
        self._ledger.merge()
        self._on_reporting_rank(self._write_end)

    def _write_end(self) -> None:
        output, plan = self.config.output, self._inputs.plan
        self._ledger.write(output / "exposures.json")
        skipped = (plan[sequence] for step in self._guard.skipped for sequence in self._sequences(step))
        differences = self._ledger.differences(skipped)
        if differences:
            raise JobError(
                f"{plural(len(differences), 'fact')} did not get the planned exposures, first: {differences[0]}"
            )
        mark_done(
            output,
            {
                "steps": self.state.step,
                "tokens": self.state.tokens,
                "seconds": round(time.perf_counter() - self._started, 2),
                "training_seconds": round(self.state.seconds, 2),
                "loss": self.state.loss,
                "skipped_steps": self._guard.skipped,
            },
            kept=kept_files(output, self._run_dir.inputs),
        )


def _sizes(layout: ParallelDims) -> dict[str, int]:
    """Returns the layout's sizes, the same on every rank."""
    sizes = {"tensor": layout.tensor_size, "pipeline": layout.pipeline_size, "data": layout.data_size}
    more = {"virtual": layout.virtual_size, "context": layout.context_size}
    return sizes | {name: size for name, size in more.items() if size > 1}
