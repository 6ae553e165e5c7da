"""The optimizer: AdamW with gradient clipping over all parallel ranks, one interface on a CPU and on CUDA.

On CUDA it is Megatron-Core's: main weights in fp32, the distributed optimizer, the fused Adam of Transformer Engine or
of NVIDIA apex, or PyTorch's where neither is installed. Megatron-Core's optimizer asserts CUDA tensor types, so a
CPU has PyTorch's AdamW alone. The norm of the gradients and their clipping are the same code on both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.nn.utils import get_total_norm
from torch.optim.adamw import adamw

from megatron_kis.checkpoint.pieces import held_by, pieces
from megatron_kis.config.run import OptimizerConfig
from megatron_kis.distributed.device import Device
from megatron_kis.distributed.megatron_imports import quiet_megatron
from megatron_kis.engine.replica import CpuReplica

with quiet_megatron():
    from megatron.core import parallel_state
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor
    from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor
    from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
    from megatron.core.optimizer import get_megatron_optimizer, get_standard_config_overrides
    from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
    from megatron.core.transformer.module import param_is_not_shared

_MOMENTS = ("exp_avg", "exp_avg_sq")  # PyTorch's names of AdamW's moments
_MAIN = "main"  # weights in fp32, where the model's are in half precision


class Optimizer(Protocol):
    """Interface of both optimizers."""

    def zero_grad(self) -> None:
        """Sets the gradients to zero."""
        ...

    def gradient_norm(self) -> float:
        """Returns the gradients' norm over the whole model, the same on every rank; once per step, before ``step``."""
        ...

    def step(self, learning_rate: float, norm: float) -> None:
        """Clips gradients of norm ``norm`` and applies them."""
        ...

    def take_weights(self) -> None:
        """Copies the model's weights, where the optimizer has weights of its own; to be called when they were set."""
        ...

    def sharded_state(self, model: dict[str, Any]) -> dict[str, Any]:
        """Returns the state, to be saved or to be loaded into, split like ``model``, the model's own sharded state.

        It has the same names and whole shapes in every optimizer and under every layout.
        """
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores a state of the form of ``sharded_state``, with plain tensors."""
        ...


def build_optimizer(chunks: Sequence[Any], config: OptimizerConfig, device: Device, *, half: bool) -> Optimizer:
    """Makes the optimizer of a rank's wrapped chunks."""
    if device.is_cpu:
        return CpuOptimizer(chunks, config)
    return MegatronOptimizer(chunks, config, half=half)


class CpuOptimizer:
    """PyTorch's fused AdamW; the norm is taken once over every weight of the whole model.

    It is called as a function: ``torch.optim.AdamW`` imports PyTorch's compiler when it is made.
    """

    def __init__(self, chunks: Sequence[CpuReplica], config: OptimizerConfig) -> None:
        """Sorts the weights; norms and biases are not decayed."""
        self._chunks = chunks
        self._config = config
        self._parameters = [weight for chunk in chunks for weight in chunk.parameters() if weight.requires_grad]
        self._counted = _counted_once(self._parameters)
        self._states: dict[torch.nn.Parameter, dict[str, torch.Tensor]] = {}

    def zero_grad(self) -> None:
        """Sets the gradients to zero."""
        for chunk in self._chunks:
            chunk.zero_grad_buffer()

    @torch.no_grad()
    def step(self, learning_rate: float, norm: float) -> None:
        """Clips gradients of norm ``norm`` and applies them."""
        trained = [weight for weight in self._parameters if weight.grad is not None]
        _clip([weight.grad for weight in trained if weight.grad is not None], norm, self._config.gradient_clip)
        self._apply([weight for weight in trained if weight.dim() > 1], learning_rate, self._config.weight_decay)
        self._apply([weight for weight in trained if weight.dim() <= 1], learning_rate, 0.0)

    def _apply(self, weights: list[torch.nn.Parameter], learning_rate: float, decay: float) -> None:
        """Applies the gradients of some weights."""
        states = [self._state(weight) for weight in weights]
        adamw(
            [*weights],
            [weight.grad for weight in weights if weight.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=self._config.beta1,
            beta2=self._config.beta2,
            lr=learning_rate,
            weight_decay=decay,
            eps=self._config.epsilon,
            maximize=False,
        )

    def take_weights(self) -> None:
        """Does nothing: the weights are the model's."""

    def sharded_state(self, model: dict[str, Any]) -> dict[str, Any]:
        """Returns the moments, split as their weights are, and the number of steps done."""
        places = {id(entry.data): entry for entry in nested_values(model)}
        moments = {
            moment: [
                make_sharded_optimizer_tensor(places[id(parameter)], self._state(parameter)[moment], prefix=moment)
                for parameter in self._parameters
            ]
            for moment in _MOMENTS
        }
        return {**moments, "steps": int(self._state(self._parameters[0])["step"])}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores moments and number of steps."""
        for number, parameter in enumerate(self._parameters):
            mine = self._state(parameter)
            mine["step"].fill_(state["steps"])
            for moment in _MOMENTS:
                mine[moment].copy_(state[moment][number])

    def _state(self, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
        """Returns the moments of a parameter and its number of steps, which are made when they are first needed."""
        state = self._states.setdefault(parameter, {})
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            for moment in _MOMENTS:
                state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state

    def gradient_norm(self) -> float:
        """Returns the norm over the whole model: weights that several ranks hold are counted on one of them."""
        gradients = [weight.grad for weight in self._counted if weight.grad is not None]
        return float(_norm(gradients, parallel_state.get_model_parallel_group(), torch.device("cpu")))


class MegatronOptimizer:
    """Megatron-Core's optimizer on CUDA."""

    def __init__(self, chunks: Sequence[Any], config: OptimizerConfig, *, half: bool) -> None:
        """Prepares main weights and moments."""
        self._chunks = chunks
        megatron_config = MegatronOptimizerConfig(
            optimizer="adam",
            lr=config.learning_rate,
            min_lr=0.0,
            weight_decay=config.weight_decay,
            adam_beta1=config.beta1,
            adam_beta2=config.beta2,
            adam_eps=config.epsilon,
            clip_grad=config.gradient_clip,
            bf16=half,
            params_dtype=torch.bfloat16 if half else torch.float32,
            use_distributed_optimizer=chunks[0].ddp_config.use_distributed_optimizer,
            overlap_param_gather=chunks[0].ddp_config.overlap_param_gather,
        )
        self._limit = config.gradient_clip
        self._decay = config.weight_decay
        self._device = next(chunks[0].parameters()).device
        self._optimizer = get_megatron_optimizer(
            megatron_config,
            list(chunks),
            # norms are not decayed: Megatron-Core 0.16 does not decide that by itself
            config_overrides=get_standard_config_overrides(megatron_config),
            use_gloo_process_groups=False,
        )
        self._parts = getattr(self._optimizer, "chained_optimizers", [self._optimizer])
        self._fuse()
        self._steps = 0
        self._pieces: dict[str, list[ShardedTensor]] = {}
        no_sync = [chunk.no_sync for chunk in chunks]
        chunks[0].config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
        # the interleaved schedule starts the gathers, on all stages at once
        if chunks[0].ddp_config.align_param_gather:
            chunks[0].config.param_sync_func = [chunk.start_param_sync for chunk in chunks]

    def zero_grad(self) -> None:
        """Forgets the gradients, in the model's buffers too."""
        for chunk in self._chunks:
            chunk.zero_grad_buffer()
        self._optimizer.zero_grad()

    def gradient_norm(self) -> float:
        """Brings the gradients to the main weights, and returns their norm.

        Megatron-Core's own ``get_grad_norm`` waits for the device once for each weight where neither Transformer Engine
        nor apex is installed. This waits once.
        """
        self._optimizer.prepare_grads()
        weights = _counted_once(weight for part in self._parts for weight in part.get_parameters())
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        return float(_norm(gradients, self._optimizer.get_grad_stats_parallel_group(), self._device))

    def step(self, learning_rate: float, norm: float) -> None:
        """Clips gradients of norm ``norm`` and applies them; ``ChainedOptimizer.step`` without its preparation."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_mult", 1.0)
            group["weight_decay"] = self._decay * group.get("wd_mult", 1.0)  # left to Megatron-Core's own scheduler
        weights = [weight for part in self._parts for weight in part.get_parameters()]
        _clip([weight.grad for weight in weights if weight.grad is not None], norm, self._limit)
        self._optimizer.step_with_ready_grads()
        self._steps += 1

    def take_weights(self) -> None:
        """Copies the model's weights to the main weights."""
        self._optimizer.reload_model_params()

    def sharded_state(self, model: dict[str, Any]) -> dict[str, Any]:
        """Returns main weights and moments of this rank, as parts of the whole ones, and the number of steps done."""
        places = {id(entry.data): entry for entry in nested_values(model)}
        self._pieces = {}
        for part in self._parts:
            self._allocate(part)
            for held in held_by(part):
                values = {moment: part.optimizer.state[held.values][moment] for moment in _MOMENTS}
                if held.values.dtype != held.weight.dtype:
                    values[_MAIN] = held.values
                for name, tensor in values.items():
                    found = pieces(places[id(held.weight)], name, tensor, held.start)
                    self._pieces.setdefault(name, []).extend(found)
        return {**self._pieces, "steps": self._steps}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores main weights, moments and number of steps."""
        for name, found in self._pieces.items():
            for piece, values in zip(found, state[name], strict=True):
                piece.data.copy_(values)
        self._steps = int(state["steps"])
        for part in self._parts:
            if isinstance(part.optimizer, torch.optim.AdamW):
                for mine in part.optimizer.state.values():
                    mine["step"].fill_(self._steps)
            else:  # Transformer Engine's and apex's count by group
                for group in part.optimizer.param_groups:
                    group["step"] = self._steps

    @staticmethod
    def _allocate(part: Any) -> None:
        """Makes the state that optimizers make themselves only in their first step."""
        part.init_state_fn(part.optimizer, part.config)
        if isinstance(part.optimizer, torch.optim.AdamW):
            for weight, state in part.optimizer.state.items():
                state.setdefault("step", torch.zeros((), dtype=torch.float32, device=weight.device))

    def _fuse(self) -> None:
        """Lets PyTorch's AdamW update all weights in one kernel, without temporaries of 4 bytes per parameter.

        Megatron-Core builds it without ``fused`` and has no setting for it.
        """
        for part in self._parts:
            if isinstance(part.optimizer, torch.optim.AdamW):  # Transformer Engine's or apex's is; a stub has none
                for group in part.optimizer.param_groups:
                    group["fused"] = True


def _counted_once(weights: Iterable[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    """Leaves out the weights that this rank shares with another stage or tensor rank, which counts them."""
    return [
        weight for weight in weights if param_is_not_shared(weight) and param_is_not_tensor_parallel_duplicate(weight)
    ]


def _norm(gradients: list[torch.Tensor], group: dist.ProcessGroup, device: torch.device) -> torch.Tensor:
    """Returns the norm of gradients split over the ranks of ``group``; fp64, on the device, without waiting for it."""
    squares = torch.zeros((), dtype=torch.float64, device=device)
    if gradients:  # a rank may hold none
        squares = get_total_norm(gradients).double().square()
    if group.size() > 1:
        dist.all_reduce(squares, group=group)
    return squares.sqrt()


def _clip(gradients: list[torch.Tensor], norm: float, limit: float) -> None:
    """Scales gradients of norm ``norm`` to norm ``limit`` if it is larger, like PyTorch's ``clip_grads_with_norm_``.

    The factor is rounded to fp32 as there; as a Python number it needs no copy to the device, which would wait for it.
    """
    if norm > limit and gradients:
        torch._foreach_mul_(gradients, float(limit / (torch.tensor(norm) + 1e-6)))
