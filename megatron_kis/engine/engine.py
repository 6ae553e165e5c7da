"""The engine: Megatron-Core's model and schedules behind two calls, one training step and one scoring pass.

How tokens reach Megatron's forward-backward functions under tensor, pipeline, context and data parallelism is decided
here alone; the trainer, the probes and the validation pass in sequences and get numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_kis.checkpoint.initial_weights import load_start
from megatron_kis.checkpoint.shards import share_out
from megatron_kis.checkpoint.start import open_start
from megatron_kis.config.run import RunConfig
from megatron_kis.config.training import resolve_precision
from megatron_kis.data.dataset import Sample
from megatron_kis.distributed.collectives import sum_over_all, sum_over_data
from megatron_kis.distributed.determinism import random_states, restore_random_states
from megatron_kis.distributed.device import Device
from megatron_kis.distributed.groups import ParallelDims
from megatron_kis.distributed.megatron_imports import quiet_megatron
from megatron_kis.engine.forward_pass import ForwardPass
from megatron_kis.engine.optimizer import build_optimizer
from megatron_kis.engine.replica import finish_gradients, wrap_model
from megatron_kis.engine.scaling import DelayedScaling
from megatron_kis.model.build import ModelSpec, build_model, initialise, resolve_implementation
from megatron_kis.model.head import head_losses, headless

with quiet_megatron():
    from megatron.core import parallel_state
    from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
    from megatron.core.pipeline_parallel import get_forward_backward_func

Batch = dict[str, torch.Tensor]


class Engine(ForwardPass):
    """A model under a parallel layout, its optimizer, and how to step and to score."""

    def __init__(
        self,
        config: RunConfig,
        *,
        vocabulary: int,
        layout: ParallelDims,
        device: Device,
        begin: bool = True,
        trains: bool = True,
    ) -> None:
        """Builds this rank's part.

        Args:
            config: the run's configuration.
            vocabulary: number of rows of the embedding, padded.
            layout: this rank's place in the layout.
            device: this rank's device.
            begin: whether to initialise the weights. False where others will be loaded: to draw those of a large model
                takes minutes.
            trains: whether to make an optimizer, and room for gradients. An engine that only evaluates holds its
                weights alone.
        """
        self._model = config.model
        self._seed = config.training.seed
        self._vocabulary = vocabulary
        precision = resolve_precision(config.training.precision, cpu=device.is_cpu)
        self.precision = precision
        self._sequence_length = config.training.sequence_length
        implementation = resolve_implementation(
            config.model.transformer_impl,
            device,
            own_mask=config.documents.reset_attention,
            precision=precision,
        )
        spec = ModelSpec(
            config.model.shape(),
            vocabulary=vocabulary,
            sequence_length=self._sequence_length,
            layout=layout,
            device=device,
            precision=precision,
            implementation=implementation,
            sequence_parallel=config.parallel.sequence,
            recompute=config.parallel.recompute,
            deterministic=config.training.deterministic,
            init_std=config.model.init_std,
        )
        chunks = [
            wrap_model(build_model(spec, chunk=chunk, seed=None), device, trains=trains)
            for chunk in range(layout.virtual_size)
        ]
        super().__init__(chunks, layout=layout, device=device)
        self._scaling = DelayedScaling(self.chunks, layout) if precision == "fp8" else None
        self._config.finalize_model_grads_func = finish_gradients
        if trains:
            self._optimizer = build_optimizer(self.chunks, config.training.optimizer, device, half=precision != "fp32")
        self._forward_backward = get_forward_backward_func()
        if begin:
            self.begin()

    def begin(self) -> None:
        """Initialises the weights: random draws, or those of ``model.init_from``.

        Raises:
            InputError: a start that does not fit the model, or is damaged.
        """
        model = self._model
        if model.init_from is not None:
            start = open_start(model.init_from, model.shape(), vocabulary=self._vocabulary)
            self.load_weights(load_start(start, self.weights()))
        else:
            for chunk in self.chunks:
                initialise(
                    chunk.module,
                    layers=model.shape().layers,
                    layout=self.layout,
                    init_std=model.init_std,
                    seed=self._seed,
                )
        self._optimizer.take_weights()

    def train_step(
        self,
        samples: Sequence[Sample],
        *,
        micro_batch_size: int,
        learning_rate: float,
        accept: Callable[[float, float], bool],
    ) -> tuple[float, float]:
        """Trains one optimizer step on this rank's samples.

        Args:
            samples: this data-parallel rank's share of the global batch.
            micro_batch_size: sequences per forward pass.
            learning_rate: learning rate of this step.
            accept: decides from the loss and the norm, the same on every rank, whether to apply the gradients.

        Returns:
            The loss, nats per token over the global batch, and the gradient's norm, on every rank.
        """
        self._optimizer.zero_grad()
        starts = range(0, len(samples), micro_batch_size)
        batches = [self._stack(samples[start : start + micro_batch_size]) for start in starts]
        reduced = self._forward_backward(
            forward_step_func=self._forward_loss,
            data_iterator=[iter(batches) for _ in self.chunks],
            model=self.chunks,
            num_microbatches=len(starts),
            seq_length=self._sequence_length,
            micro_batch_size=micro_batch_size,
            forward_only=False,
        )
        totals = torch.zeros(2, dtype=torch.float64, device=self.device.torch_device)
        if self.layout.tensor_rank == 0:  # tensor ranks have the same losses; earlier stages have none
            for loss_and_tokens in reduced or []:
                totals += loss_and_tokens.double()
        total, tokens = sum_over_all(totals).tolist()
        loss, norm = total / tokens, self._optimizer.gradient_norm()
        if accept(loss, norm):
            self._optimizer.step(learning_rate, norm)
        return loss, norm

    def token_losses(
        self, rows: NDArray[np.int64], labels: NDArray[np.int64], *, rows_per_pass: int
    ) -> NDArray[np.float32] | None:
        """Returns the negative log-likelihoods of labels; collective. Data-parallel replicas share the rows.

        All passes have one shape, and all replicas the same number of passes: the last row is repeated as padding.

        Args:
            rows: int64 [rows, T] tokens, the same on every rank.
            labels: int64 [rows, T] the token after each.
            rows_per_pass: rows per forward pass.

        Returns:
            float32 [rows, T] nats, on the last pipeline stage; None on the others.
        """
        device = self.device.torch_device
        count, size = len(rows), self.layout.data_size
        mine = self.positions(rows.shape[1])  # places of a row that this context-parallel rank holds
        where = mine.to(device)
        passes = -(-count // (rows_per_pass * size))
        share = np.arange(passes * rows_per_pass) * size + self.layout.data_rank
        scores = torch.zeros(rows.shape, dtype=torch.float32, device=device)
        for numbers in share.reshape(passes, rows_per_pass):
            padded = np.minimum(numbers, count - 1)
            both = np.stack([array[padded][:, mine.numpy()] for array in (rows, labels)])
            tokens, following = torch.from_numpy(both).to(device)
            body = functools.partial(_body, tokens, where.expand_as(tokens))
            hidden = self.forward(body, rows=rows_per_pass, length=len(mine))
            if hidden is not None:
                losses = head_losses(self.chunks[-1].module, hidden, following)
                real = int((numbers < count).sum())
                scores[numbers[0] : count : size][:real, where] = losses[:real]
            del hidden  # or it would be alive in the next pass
        if not self.layout.is_last_stage:
            return None
        return sum_over_data(scores, context=True).cpu().numpy()

    def sharded_state(self) -> dict[str, Any]:
        """Returns weights, optimizer and random streams, in the form that ``shards`` saves and loads."""
        model = self.weights()
        replicas = parallel_state.get_data_parallel_group(with_context_parallel=True)
        share_out(model, replicas.rank(), replicas.size())
        # the optimizer first: to save the weights is to leave their names, and it finds them by identity
        state = {"optimizer": self._optimizer.sharded_state(model), "model": model}
        if self._scaling is not None:
            state["scaling"] = self._scaling.sharded_state()
        rank, world = self.layout.rank, self.layout.world_size
        state["random"] = {
            name: ShardedTensor.from_rank_offsets(f"random.{name}", states[None].contiguous(), (0, rank, world))
            for name, states in random_states(self.device).items()
        }
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores what ``sharded_state`` described; random streams only if the state has them."""
        self.load_weights(state["model"])
        self._optimizer.load_state(state["optimizer"])
        if self._scaling is not None:
            self._scaling.load_state(state["scaling"])
        if "random" in state:
            restore_random_states(self.device, {name: states[0].cpu() for name, states in state["random"].items()})

    def weights(self) -> dict[str, Any]:
        """Returns every weight with its place in the whole model, by chunk; collective."""
        self.gather()
        metadata = {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
        return {
            str(number): {
                name: entry
                for name, entry in chunk.module.sharded_state_dict(metadata=metadata).items()
                if not isinstance(entry, ShardedObject)
            }
            for number, chunk in enumerate(self.chunks)
        }

    def load_weights(self, weights: dict[str, Any]) -> None:
        """Restores what ``weights`` described, from plain tensors.

        Transformer Engine's layers have states of their own among those of a model; ``weights`` leaves them out.

        Raises:
            ValueError: a weight of the model is missing, or there is one that the model does not have.
        """
        for number, chunk in enumerate(self.chunks):
            missing, unexpected = chunk.module.load_state_dict(weights[str(number)], strict=False)
            missing = [name for name in missing if not name.endswith("_extra_state")]
            if missing or unexpected:
                msg = f"chunk {number}: weights that are missing: {missing}; that the model has not: {unexpected}"
                raise ValueError(msg)

    def _stack(self, samples: Sequence[Sample]) -> Batch:
        """Stacks a micro-batch: the places of each sequence that this rank holds; a mask keeps all keys."""
        columns = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
        if self.layout.context_size > 1:
            mine = self.positions(self._sequence_length)
            columns = {
                name: column[..., mine, :] if name == "attention_mask" else column[:, mine]
                for name, column in columns.items()
            }
        return {name: column.to(self.device.torch_device) for name, column in columns.items()}

    def _forward_loss(self, batches: Iterator[Batch], model: Any) -> tuple[torch.Tensor, Callable[..., Any]]:
        """Implements Megatron's forward step: returns the output, and a function to (sum of losses, tokens, report)."""
        batch = next(batches)
        output = model(batch["tokens"], batch["position_ids"], batch.get("attention_mask"), labels=batch["labels"])

        def reduce(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            mask = batch["loss_mask"]
            total, count = (losses * mask).sum(), mask.sum()
            return total, count.to(torch.int), torch.stack([total.detach().float(), count.float()])

        return output, reduce


def _body(tokens: torch.Tensor, positions: torch.Tensor, chunk: Any) -> torch.Tensor:
    """Returns a chunk's output; the last chunk's is the input of its output layer."""
    with headless(chunk.module):
        output: torch.Tensor = chunk(tokens, positions, None)
    return output
