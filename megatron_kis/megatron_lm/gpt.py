"""What ``pretrain()`` needs of a script that trains a GPT: datasets, forward step, compiled helpers.

Megatron-LM's ``pretrain_gpt.py`` has these in its repository; the package megatron-core, which contains
``megatron.training``, has not. ``forward_step`` is the part of it that plain GPT training uses.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_kis.common.errors import InputError
from megatron_kis.megatron_lm.samples import needs_data


def use_compiled_helpers() -> None:
    """Lets ``pretrain()`` use the helpers that the package megatron-core brings compiled.

    It calls ``make`` on their source, for which the package has no makefile, and ends where that fails.
    """
    from megatron.core.datasets import utils

    if not (Path(utils.__file__).parent / "Makefile").exists():
        utils.compile_helpers = lambda: None


def gpt_datasets(samples: Sequence[Any], vp_stage: int | None = None) -> Any:
    """Returns GPTDatasets of ``--data-path`` and its like: a ``train_valid_test_datasets_provider``."""
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.training import get_args, get_tokenizer
    from megatron.training.utils import get_blend_and_blend_per_split

    args = get_args()
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    if blend is None and blend_per_split is None:
        problem = "is missing, and general text comes from there unless a run names it"
        raise InputError(problem, where="--data-path", remedy="give it, or --kis-run RUN.yaml")
    config = GPTDatasetConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        blend=blend,
        blend_per_split=blend_per_split,
        split=args.split if blend_per_split is None else None,
        path_to_cache=args.data_cache_path,
        tokenizer=get_tokenizer(),
        reset_position_ids=args.reset_position_ids,
        reset_attention_mask=args.reset_attention_mask,
        eod_mask_loss=args.eod_mask_loss,
        create_attention_mask=args.create_attention_mask_in_dataloader,
    )
    return BlendedMegatronDatasetBuilder(GPTDataset, list(samples), needs_data, config).build()


gpt_datasets.is_distributed = True  # type: ignore[attr-defined]  # the builder waits for every rank


def forward_step(batches: Any, model: Any) -> tuple[torch.Tensor, Any]:
    """Implements Megatron-LM's forward step: returns the output, and a function to (loss, tokens, report)."""
    batch = _batch(batches)
    mask = batch["loss_mask"]
    output = model(batch["tokens"], batch["position_ids"], batch["attention_mask"], labels=batch["labels"])
    return output, functools.partial(_loss, mask)


Batch = dict[str, Any]
"""Tensors of a micro-batch; None where a stage does not need one."""

_KEYS = ("tokens", "labels", "loss_mask", "position_ids", "attention_mask")


def _batch(batches: Any) -> Batch:
    """Returns this rank's part of the next batch; None for what its stage does not need."""
    from megatron.core import parallel_state
    from megatron.core.utils import get_batch_on_this_cp_rank, get_batch_on_this_tp_rank
    from megatron.training import get_args

    args = get_args()
    first, last = parallel_state.is_pipeline_first_stage(), parallel_state.is_pipeline_last_stage()
    if not (first or last):
        return dict.fromkeys(_KEYS)
    tensor_rank = parallel_state.get_tensor_model_parallel_rank()
    batch: dict[str, Any] = {}
    if tensor_rank == 0:
        taken = next(batches)
        batch = {key: taken[key].cuda(non_blocking=True) if key in taken else None for key in _KEYS}
    batch = get_batch_on_this_tp_rank(
        batch,
        has_cu_seqlens=False,
        is_hybrid_cp=False,
        create_attention_mask_in_dataloader=args.create_attention_mask_in_dataloader,
        broadcast_src_rank=parallel_state.get_tensor_model_parallel_src_rank(),
        broadcast_group=parallel_state.get_tensor_model_parallel_group(),
        cp_size=args.context_parallel_size,
        tp_rank=tensor_rank,
        micro_batch_size=args.micro_batch_size,
        seq_length=args.seq_length,
        mtp_on_this_rank=False,
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        is_pipeline_first_stage=first,
        is_pipeline_last_stage=last,
    )
    group = parallel_state.get_context_parallel_group()
    whole = {key: batch.get(key) for key in _KEYS}
    return dict(get_batch_on_this_cp_rank(whole, is_hybrid_cp=False, cp_group=group))


def _loss(mask: torch.Tensor, output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    counted = mask.view(-1).float()
    loss = (output.view(-1).float() * counted).sum()
    tokens = counted.sum().detach().to(torch.int)
    return loss, tokens, {"lm loss": torch.cat([loss.detach().view(1), tokens.view(1)])}
