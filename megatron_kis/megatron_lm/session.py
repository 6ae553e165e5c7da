"""A run inside ``pretrain()``: its count of exposures, its probes, its records, and what it keeps with checkpoints."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import torch

from megatron_kis.common.errors import InputError, JobError
from megatron_kis.common.files import fingerprint, locked
from megatron_kis.common.jsonl_log import JsonLines
from megatron_kis.common.units import plural
from megatron_kis.config.run import RunConfig
from megatron_kis.data.general_text import Epochs
from megatron_kis.distributed.collectives import gather, together
from megatron_kis.megatron_lm.beyond import other_settings
from megatron_kis.megatron_lm.feed import Feed
from megatron_kis.megatron_lm.hooks import Hooks
from megatron_kis.megatron_lm.model import MegatronModel, layout_here, whole_weights
from megatron_kis.megatron_lm.resumption import read_progress, start_of, write_progress
from megatron_kis.megatron_lm.settings import precision_of
from megatron_kis.training.artifacts import keep_inputs, kept_files
from megatron_kis.training.callbacks.base import RunState
from megatron_kis.training.callbacks.metrics import MetricsCallback, Throughput
from megatron_kis.training.callbacks.probe import ProbeCallback
from megatron_kis.training.inputs import FactInputs
from megatron_kis.training.record import mark_done, run_record
from megatron_kis.training.replicated_ledger import ReplicatedLedger
from megatron_kis.training.resume import identity
from megatron_kis.training.run_dir import RunDir


class Session:
    """One run in this process, whose methods ``Hooks`` calls. Every rank has one."""

    def __init__(self, args: argparse.Namespace, config: RunConfig, inputs: FactInputs, epochs: list[Epochs]) -> None:
        """Prepares for the loop; nothing is written yet.

        Args:
            args: Megatron-LM's arguments.
            config: the run's configuration.
            inputs: its plan, exposures and questions.
            epochs: how much of each corpus it reads, where that is known.
        """
        self._args, self._config, self._inputs, self._epochs = args, config, inputs, epochs
        self._hooks = Hooks(self)
        self._layout = layout_here()
        self._reports = self._layout.is_logging_rank
        self._state = RunState(steps=config.training.steps)
        self._run_dir = RunDir(config.output)
        self._feed = Feed()
        self._skipped: list[int] = []
        self._metrics: JsonLines | None = None
        self._stack = ExitStack()
        self._other = self._other_settings()
        self._precision = precision_of(args)
        self._identity = identity(
            config,
            plan=inputs.plan.identity(),
            data=inputs.fingerprints,
            precision=self._precision,
        )
        self._identity["settings"] = {**self._identity["settings"], **self._other}
        self._checkpoint = read_progress(args, self._identity)
        args.kis_plan = inputs.plan.fingerprint  # Megatron-LM saves its arguments in its checkpoints

    def _other_settings(self) -> dict[str, Any]:
        """Returns what the record has beyond the run's configuration.

        Raises:
            InputError: a run's file says how the run begins, and Megatron-LM has loaded weights.
        """
        start = start_of(self._args)
        if self._args.kis_run is None:
            return {"megatron_lm": other_settings(self._args) | ({"start": start[1]} if start else {})}
        if start:
            flag, folder = start
            raise InputError(
                f"the run would begin with the weights of {folder}, and {self._args.kis_run} begins with random ones",
                where=flag,
                remedy="leave it out, or use --kis-exposures in place of --kis-run",
            )
        return {}

    def attach(self) -> None:
        """Installs the hooks in the loop that ``pretrain()`` is about to start."""
        self._hooks.attach()

    def before_training(self, *, model: Any, optimizer: Any, train_data_iterator: Any) -> None:
        """Opens the run's folder and logs, and probes where that is due before the first step."""
        self._started = time.perf_counter()
        self._model = MegatronModel(model, layout=self._layout)
        self._ledger = ReplicatedLedger(self._inputs, self._layout, self._model.device.torch_device)
        sizes = self._model.sizes()
        self._on_reporting_rank(lambda: self._prepare(sizes))
        checkpoint = self._checkpoint
        if checkpoint is not None:
            self._state.load(checkpoint.manifest["state"])
            self._skipped = list(checkpoint.manifest["skipped"])
            self._started -= float(checkpoint.manifest["elapsed"])
            self._ledger.load_state(torch.tensor(checkpoint.manifest["ledger"], dtype=torch.int64))
        self._callbacks = self._make_callbacks()
        lost = {kind for kinds in gather(self._run_dir.lost) for kind in kinds}
        for callback in self._callbacks:
            callback.lost = callback.kind in lost
        self._feed.put_into(train_data_iterator, chunk=-1 if self._layout.is_last_stage else 0)
        with whole_weights(self._hooks.training, self._args, model, optimizer, sync=False):
            for callback in self._callbacks:
                callback.before_training(self._state)
        self._clock = time.perf_counter()

    def _prepare(self, sizes: tuple[int, int]) -> None:
        config, inputs = self._config, self._inputs
        self._stack.enter_context(locked(config.output, "pretrain"))
        record = run_record(
            config,
            params=sizes[0],
            nonembedding_params=sizes[1],
            plan=inputs.plan.identity(),
            infused_bits=inputs.infused_bits(),
            fingerprints={**inputs.fingerprints, "plan": inputs.plan.fingerprint},
            layout=asdict(self._layout),
            device=self._model.device.name,
            precision=self._precision,
            epochs=self._epochs,
        )
        if self._other:
            record["settings"] = {**record["settings"], **self._other}
            record["config_fingerprint"] = fingerprint(record["settings"])
        self._run_dir.prepare(
            self._checkpoint,
            {**record, "trainer": "Megatron-LM", "max_position_embeddings": None},
            restart=False,
            keep=lambda: keep_inputs(config.output, config, inputs.tokenizer, inputs.fingerprints["questions"]),
        )

    def _make_callbacks(self) -> tuple[MetricsCallback, ProbeCallback]:
        config, inputs, model = self._config, self._inputs, self._model
        probes: JsonLines | None = None
        if self._reports:
            self._metrics, probes = self._run_dir.open_logs()
        training = config.training
        throughput = Throughput(
            config.model.shape().flops_per_token(self._args.padded_vocab_size, training.sequence_length),
            device=model.device,
            devices=self._layout.world_size,
            precision=self._precision,
        )
        return (
            MetricsCallback(self._metrics, every=config.logging.every, throughput=throughput),
            ProbeCallback(
                config.probes,
                model,
                inputs.questions,
                probes,
                steps=self._state.steps,
                step_tokens=training.step_tokens,
                outcomes=self._run_dir.outcomes,
            ),
        )

    def after_step(
        self, *, loss_dict: Any, learning_rate: Any, iteration: int, skipped_iter: Any, grad_norm: Any
    ) -> None:
        """Counts what the step was fed, and logs its loss."""
        state, training = self._state, self._config.training
        size = training.global_batch_size
        numbers, samples = self._feed.take(range((iteration - 1) * size, iteration * size))
        if skipped_iter:
            self._skip(iteration)
        else:
            self._ledger.observe(samples, [self._inputs.plan[number] for number in numbers])
        state.step, state.tokens = iteration, iteration * training.step_tokens
        state.learning_rate = float(learning_rate or 0.0)
        state.seconds += time.perf_counter() - self._clock
        if state.is_due(self._config.logging.every):
            state.infusion_ratio = self._ledger.infusion_ratio()
            if loss_dict:
                state.loss = float(next(iter(loss_dict.values())))
            state.gradient_norm = float(grad_norm or 0.0)
            if math.isfinite(state.loss) or not self._reports:
                self._callbacks[0].after_step(state)

    def _skip(self, iteration: int) -> None:
        self._skipped.append(iteration)
        if self._metrics:
            size = self._config.training.global_batch_size
            row = {"kind": "skipped", "step": iteration, "sequences": [(iteration - 1) * size, iteration * size - 1]}
            self._metrics.write(row)

    def at_step_end(self, *, model: Any, optimizer: Any, iteration: int) -> None:
        """Probes where that is due."""
        probe = self._callbacks[1]
        if probe.is_due_at(iteration):
            with whole_weights(self._hooks.training, self._args, model, optimizer, sync=True):
                probe.after_step(self._state)
        self._clock = time.perf_counter()

    def after_save(self, *, iteration: int) -> None:
        """Keeps plan, count and ends of the logs with a checkpoint."""
        counts = self._ledger.sums().tolist()

        def write() -> None:
            write_progress(
                self._args,
                iteration,
                {
                    "sequences": self._args.consumed_train_samples,
                    "identity": self._identity,
                    "state": self._state.record(),
                    "skipped": self._skipped,
                    "ledger": counts,
                    "elapsed": time.perf_counter() - self._started,
                    **self._run_dir.manifest(),
                },
            )

        self._on_reporting_rank(write)
        self._clock = time.perf_counter()

    def after_validation(self, losses: Any, *, iteration: int) -> None:
        """Logs the first loss of an evaluation, once per step."""
        if self._metrics is None or not losses or self._state.validated_at == iteration:
            return
        loss = float(next(iter(losses.values())))
        self._state.validated_at, self._state.results["validation_loss"] = iteration, loss
        if math.isfinite(loss):
            self._metrics.write({"kind": "validation", "step": iteration, "tokens": self._state.tokens, "loss": loss})

    def at_end(self) -> None:
        """Compares the count with the plan and closes the run.

        Raises:
            JobError: a fact did not get the planned exposures.
        """
        self._ledger.merge()  # not earlier: a checkpoint after the last step sums the replicas' own counts
        self._run_dir.close_logs()
        self._on_reporting_rank(self._write_end)

    def _write_end(self) -> None:
        output, plan, state = self._config.output, self._inputs.plan, self._state
        self._ledger.write(output / "exposures.json")
        size = self._config.training.global_batch_size
        skipped = (plan[number] for step in self._skipped for number in range((step - 1) * size, step * size))
        differences = self._ledger.differences(skipped)
        if differences:
            raise JobError(
                f"{plural(len(differences), 'fact')} did not get the planned exposures, first: {differences[0]}"
            )
        mark_done(
            output,
            {
                "steps": state.step,
                "tokens": state.tokens,
                "seconds": round(time.perf_counter() - self._started, 2),
                "training_seconds": round(state.seconds, 2),
                "loss": state.loss,
                "skipped_steps": self._skipped,
            },
            kept=kept_files(output, self._run_dir.inputs),
        )

    def close(self) -> None:
        """Closes logs and lock."""
        self._run_dir.close_logs()
        self._stack.close()

    def _on_reporting_rank(self, act: Callable[[], object]) -> None:
        """Calls a function on the rank that reports; collective: an error there is raised on every rank."""

        def act_or_wait() -> None:
            if self._reports:
                act()

        together(act_or_wait)
