"""The optimizer: AdamW with gradient clipping over all parallel ranks, one interface on the host and on CUDA.

On CUDA it is Megatron-Core's (main weights in fp32, the distributed optimizer, NVIDIA apex's fused Adam if importable);
that one asserts CUDA tensor types, so the host has PyTorch's fused AdamW and a norm over the model-parallel ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from megatron_kis.config import OptimizerConfig
from megatron_kis.device import Device, quiet_megatron
from megatron_kis.training.pieces import held_by, pieces
from megatron_kis.training.replica import HostReplica

with quiet_megatron():
    from megatron.core import parallel_state
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor
    from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
    from megatron.core.optimizer import get_megatron_optimizer
    from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
    from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
    from megatron.core.transformer.module import param_is_not_shared

_MOMENTS = ("exp_avg", "exp_avg_sq")  # PyTorch's names of AdamW's moments
_MAIN = "main"  # weights in fp32, where the model's are in half precision


class Optimizer(Protocol):
    """What the loop asks of an optimizer."""

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        ...

    def gradient_norm(self) -> float:
        """The norm of the gradients over the whole model, the same on every rank; once a step, before ``step``."""
        ...

    def step(self, learning_rate: float, norm: float) -> None:
        """Clips gradients of norm ``norm`` and applies them."""
        ...

    def sharded_state(self, model: dict[str, Any]) -> dict[str, Any]:
        """The state, to be saved or to be read into, with the split of ``model``, the model's own sharded state.

        It has the same names and whole shapes in every optimizer and under every layout.
        """
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes over a state of the form that ``sharded_state`` gave, its tensors plain."""
        ...


def wrap_model(model: GPTModel, device: Device) -> Any:
    """The model as a data-parallel replica: Megatron-Core's on CUDA, ``HostReplica`` on the host."""
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    if device.is_host:
        return HostReplica(model.config, model, group)
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, use_distributed_optimizer=group.size() > 1, overlap_grad_reduce=group.size() > 1
    )
    return DistributedDataParallel(config=model.config, ddp_config=settings, module=model)


def build_optimizer(chunks: Sequence[Any], settings: OptimizerConfig, device: Device, *, half: bool) -> Optimizer:
    """The optimizer of a rank's wrapped chunks."""
    if device.is_host:
        return HostOptimizer(chunks, settings)
    return MegatronOptimizer(chunks, settings, half=half)


class HostOptimizer:
    """PyTorch's fused AdamW; the norm is taken once over every weight of the whole model."""

    def __init__(self, chunks: Sequence[HostReplica], settings: OptimizerConfig) -> None:
        """Prepares the moments; norms and biases are not decayed."""
        self._chunks = chunks
        self._clip = settings.gradient_clip
        self._parameters = [weight for chunk in chunks for weight in chunk.parameters() if weight.requires_grad]
        self._counted = [
            weight
            for weight in self._parameters
            if param_is_not_shared(weight) and param_is_not_tensor_parallel_duplicate(weight)
        ]
        decayed = [parameter for parameter in self._parameters if parameter.dim() > 1]
        plain = [parameter for parameter in self._parameters if parameter.dim() <= 1]
        self.adam = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            fused=True,
        )

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for chunk in self._chunks:
            chunk.zero_grad_buffer()

    def step(self, learning_rate: float, norm: float) -> None:
        """Clips gradients of norm ``norm`` and applies them."""
        if norm > self._clip:
            clip_grads_with_norm_(self._parameters, self._clip, torch.tensor(norm))
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        self.adam.step()

    def sharded_state(self, model: dict[str, Any]) -> dict[str, Any]:
        """The moments, split as their weights are, and the number of steps done."""
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
        """Takes over moments and number of steps."""
        for number, parameter in enumerate(self._parameters):
            mine = self._state(parameter)
            mine["step"].fill_(state["steps"])
            for moment in _MOMENTS:
                mine[moment].copy_(state[moment][number])

    def _state(self, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
        """PyTorch's state of a parameter, which it makes itself only in its first step."""
        state: dict[str, torch.Tensor] = self.adam.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            for moment in _MOMENTS:
                state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state

    def gradient_norm(self) -> float:
        """The norm over the whole model: weights that several ranks hold are counted on one of them."""
        gradients = [weight.grad for weight in self._counted if weight.grad is not None]
        squares = get_total_norm(gradients).double().square()
        group = parallel_state.get_model_parallel_group()
        if group.size() > 1:
            dist.all_reduce(squares, group=group)
        return float(squares.sqrt())


class MegatronOptimizer:
    """Megatron-Core's optimizer on CUDA."""

    def __init__(self, chunks: Sequence[Any], settings: OptimizerConfig, *, half: bool) -> None:
        """Prepares main weights and moments."""
        self._chunks = chunks
        config = MegatronOptimizerConfig(
            optimizer="adam",
            lr=settings.learning_rate,
            min_lr=0.0,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.beta1,
            adam_beta2=settings.beta2,
            adam_eps=settings.epsilon,
            clip_grad=settings.gradient_clip,
            bf16=half,
            params_dtype=torch.bfloat16 if half else torch.float32,
            use_distributed_optimizer=chunks[0].ddp_config.use_distributed_optimizer,
        )
        self._optimizer = get_megatron_optimizer(config, list(chunks))
        self._parts = getattr(self._optimizer, "chained_optimizers", [self._optimizer])
        self._steps = 0
        self._pieces: dict[str, list[ShardedTensor]] = {}
        no_sync = [chunk.no_sync for chunk in chunks]
        chunks[0].config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]

    def zero_grad(self) -> None:
        """Forgets the gradients, in the model's buffers too."""
        for chunk in self._chunks:
            chunk.zero_grad_buffer()
        self._optimizer.zero_grad()

    def gradient_norm(self) -> float:
        """Brings the gradients to the main weights, and returns their norm."""
        self._optimizer.prepare_grads()
        return float(self._optimizer.get_grad_norm())

    def step(self, learning_rate: float, norm: float) -> None:
        """Clips gradients of norm ``norm`` and applies them; ``ChainedOptimizer.step`` without its preparation."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_mult", 1.0)
        for part in self._parts:
            parameters = part.get_parameters()
            if parameters:
                clip_grad_by_total_norm_fp32(parameters, max_norm=part.config.clip_grad, total_norm=norm)
        self._optimizer.step_with_ready_grads()
        self._steps += 1

    def sharded_state(self, model: dict[str, Any]) -> dict[str, Any]:
        """Main weights and moments that this rank holds, as parts of the whole ones, and the number of steps done."""
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
        """Takes over main weights, moments and number of steps."""
        for name, found in self._pieces.items():
            for piece, values in zip(found, state[name], strict=True):
                piece.data.copy_(values)
        self._steps = int(state["steps"])
        for part in self._parts:
            if isinstance(part.optimizer, torch.optim.Adam | torch.optim.AdamW):
                for mine in part.optimizer.state.values():
                    mine["step"].fill_(self._steps)
            else:  # the fused ones of Transformer Engine and apex
                for group in part.optimizer.param_groups:
                    group["step"] = self._steps

    @staticmethod
    def _allocate(part: Any) -> None:
        """Makes the moments, which optimizers make themselves only in their first step."""
        part.init_state_fn(part.optimizer, part.config)
        if isinstance(part.optimizer, torch.optim.Adam | torch.optim.AdamW):
            for group in part.optimizer.param_groups:
                for weight in group["params"]:
                    on_device = group["fused"] or group["capturable"]
                    zero = torch.zeros((), dtype=torch.float32, device=weight.device if on_device else "cpu")
                    part.optimizer.state[weight].setdefault("step", zero)
