"""Tokens per second of training on the CPU, next to a plain PyTorch model of the same shape in the same run.

    OMP_NUM_THREADS=1 python -m benchmarks.training_cpu

The peer is what one would write without Megatron-Core: RMSNorm, one matrix for queries, keys and values, rotary
positions, ``scaled_dot_product_attention``, SwiGLU, ``cross_entropy``, PyTorch's fused AdamW and clipping. Both train
on the same batches from the same shape in fp32. Rounds of the two take turns, and the ratio is taken within each round,
since machines are noisy; the medians, and each one's fastest turn, are printed as JSON. Times are the process's
processor time over its threads: use one thread.

Both are in one process, so that the C library keeps freed memory for both (``distributed.cpu_backend``). With
``GLIBC_TUNABLES=glibc.malloc.check=0``, which changes nothing but says that the environment has chosen, it does for
neither.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from megatron_kis.common.configuration import parse_config
from megatron_kis.config.ladder import ModelShape, preset
from megatron_kis.config.run import ModelConfig, RunConfig
from megatron_kis.config.vocabulary import padded_vocabulary
from megatron_kis.distributed.determinism import seed_device
from megatron_kis.distributed.device import open_device
from megatron_kis.distributed.groups import close_groups, open_groups


class Block(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.heads, width, self.groups = shape.heads, shape.width, shape.query_groups
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)
        self.qkv = nn.Linear(width, width + 2 * self.groups * (width // self.heads), bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 2 * shape.ffn_width, bias=False)
        self.down = nn.Linear(shape.ffn_width, width, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """[batch, length, width] to the same."""
        b, t, w = x.shape
        rows, grouped = self.qkv(self.norm1(x)), self.groups != self.heads
        if grouped:
            heads = rows.view(b, t, -1, w // self.heads).transpose(1, 2)
            q, k, v = heads.split([self.heads, self.groups, self.groups], dim=1)
        else:  # the faster way, so that the peer is not held back
            q, k, v = rows.view(b, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, w))
        gate, up = self.up(self.norm2(x)).chunk(2, dim=-1)
        out: torch.Tensor = x + self.down(functional.silu(gate) * up)
        return out


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions, halves rotated."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Plain(nn.Module):
    """The peer."""

    def __init__(self, shape: ModelShape, vocabulary: int, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=1e-5)
        self.head = nn.Linear(shape.width, vocabulary, bias=False)
        if shape.tied_embeddings:
            self.head.weight = self.embedding.weight
        head = shape.width // shape.heads
        angles = torch.outer(torch.arange(length), shape.rope_base ** -(torch.arange(0, head, 2) / head))
        self.register_buffer("cos", torch.cat([angles, angles], -1).cos(), persistent=False)
        self.register_buffer("sin", torch.cat([angles, angles], -1).sin(), persistent=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean loss."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = self.head(self.norm(x))
        return functional.cross_entropy(logits.view(-1, logits.shape[-1]), labels.reshape(-1))


Step = Callable[[list[dict[str, torch.Tensor]]], float]


def plain_step(shape: ModelShape, vocabulary: int, length: int) -> Step:
    """A training step of the peer."""
    torch.manual_seed(0)
    model = Plain(shape, vocabulary, length)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(samples: list[dict[str, torch.Tensor]]) -> float:
        adam.zero_grad()
        tokens = torch.stack([sample["tokens"] for sample in samples])
        labels = torch.stack([sample["labels"] for sample in samples])
        loss = model(tokens, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        return float(loss.detach())

    return step


def our_step(name: str, vocabulary: int, length: int, batch: int, layout: Any, device: Any) -> Step:
    """A training step of ours."""
    from megatron_kis.engine.engine import Engine

    content = {
        "name": "speed",
        "output": "unused",
        "device": "cpu",
        "data": dict.fromkeys(("corpus", "validation", "exposures", "tokenizer"), "unused"),
        "model": {"preset": name},
        "infusion": {"frequency": 0},
        "training": {"token_budget": batch * length, "sequence_length": length, "global_batch_size": batch},
    }
    config = parse_config(RunConfig, content, source="benchmark")
    engine = Engine(config, vocabulary=vocabulary, layout=layout, device=device)

    def step(samples: list[dict[str, torch.Tensor]]) -> float:
        torch.use_deterministic_algorithms(True)  # as in a run; the peer need not
        try:
            return engine.train_step(
                samples, micro_batch_size=batch, learning_rate=1e-3, accept=lambda loss, norm: True
            )[0]
        finally:
            torch.use_deterministic_algorithms(False)

    return step


def timed(step: Step, samples: list[dict[str, torch.Tensor]], steps: int) -> float:
    """Seconds of some steps: the processor's, which other programs on the machine lengthen least."""
    started = time.process_time()
    for _ in range(steps):
        step(samples)
    return (time.process_time() - started) / torch.get_num_threads()


def compare(name: str, options: argparse.Namespace, layout: Any, device: Any) -> dict[str, Any]:
    """Both models of one preset, in turns."""
    shape, batch, length = ModelConfig(preset=name).shape(), options.batch, options.length
    assert shape == preset(name)
    vocabulary = padded_vocabulary(options.vocabulary)
    generator = torch.Generator().manual_seed(1)
    window = torch.randint(0, options.vocabulary, (batch, length + 1), generator=generator)
    position = torch.arange(length)
    samples = [
        {"tokens": row[:-1], "labels": row[1:], "loss_mask": torch.ones(length), "position_ids": position}
        for row in window
    ]
    steps = {
        "ours": our_step(name, vocabulary, length, batch, layout, device),
        "plain": plain_step(shape, vocabulary, length),
    }
    for step in steps.values():
        timed(step, samples, 2)
    once = max(timed(step, samples, 2) / 2 for step in steps.values())
    count = max(2, round(options.seconds / once))
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for turn in range(options.rounds):
        for kind in sorted(steps, reverse=bool(turn % 2)):
            seconds[kind].append(timed(steps[kind], samples, count))
    tokens = count * batch * length
    ratios = [plain / ours for ours, plain in zip(seconds["ours"], seconds["plain"], strict=True)]
    return {
        "preset": name,
        "tokens_per_second": {kind: round(tokens / statistics.median(times)) for kind, times in seconds.items()},
        "fastest": {kind: round(tokens / min(times)) for kind, times in seconds.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def main() -> int:
    """Prints a row for each preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["cpu-48", "cpu-64", "cpu-96"], help="shapes of the ladder")
    parser.add_argument("--batch", type=int, default=8, help="sequences per step")
    parser.add_argument("--length", type=int, default=128, help="tokens per sequence")
    parser.add_argument("--vocabulary", type=int, default=2048, help="pieces")
    parser.add_argument("--rounds", type=int, default=31, help="turns of each")
    parser.add_argument("--seconds", type=float, default=0.2, help="about how long a turn takes")
    options = parser.parse_args()
    device = open_device("cpu")
    layout = open_groups(device)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 - untyped; as in a run
    seed_device(device, 0, tensor_rank=0, pipeline_rank=0)
    result = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "shapes": [compare(name, options, layout, device) for name in options.presets],
    }
    close_groups()
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
