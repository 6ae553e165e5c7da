"""Tokens per second and MFU of training, next to PyTorch's own model compiled, and with other layers and precisions.

The peer is a plain GPT with ``scaled_dot_product_attention`` under ``torch.compile`` and autocast, on the same batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.checks import te_problem
from benchmarks.gpu.commands import Skipped

PART = "speed"
WARM_UP = 3  # steps that compile, choose kernels and fill the allocator
PEER = "compiled"
KINDS = {
    "ours": {"implementation": "auto", "precision": "bf16"},
    PEER: {},
    "sdpa": {"implementation": "sdpa", "precision": "bf16"},
    "fp8": {"implementation": "transformer_engine", "precision": "fp8"},
}
"""What is measured: as ``auto`` trains, the peer, and two that differ only on a machine with Transformer Engine."""


def speed(bench: Bench) -> None:
    """Every preset next to the peer at the first length, then at the others, then with the other layers."""
    options = bench.options
    cells = [(length, name) for length in options.lengths for name in options.presets]
    for kinds in (("ours", PEER), ("sdpa", "fp8")):
        for length, name in cells:
            batch = max(1, options.batch * options.lengths[0] // length)
            for kind in kinds:
                item = f"{name} L={length} {kind}"
                bench.rows.attempt(PART, item, lambda s=(kind, name, length, batch): _row(bench, *s))  # type: ignore[misc]


def _row(bench: Bench, kind: str, preset: str, length: int, batch: int) -> dict[str, Any]:
    if kind in ("sdpa", "fp8") and (problem := te_problem(bench)):
        raise Skipped(problem)
    bench.limit.need(1.5 * bench.options.seconds)
    cell = {
        "kind": kind,
        "preset": preset,
        "length": length,
        "batch": batch,
        "micro_batch": min(batch, bench.options.micro_batch),
    }
    found = bench.measure(f"speed-{preset}-{length}-{kind}", "speed", **settings(bench, **cell))
    return {**cell, **found}


def settings(bench: Bench, **cell: Any) -> dict[str, Any]:
    """Arguments of ``measure``."""
    options = bench.options
    return {**cell, "device": options.device, "vocabulary": options.vocabulary, "seconds": options.seconds}


def measure(
    *, kind: str, preset: str, length: int, batch: int, micro_batch: int, device: str, vocabulary: int, seconds: float
) -> dict[str, Any]:
    """One model, in this process.

    Args:
        kind: one of ``KINDS``.
        preset: of the model.
        length: tokens per sequence.
        batch: sequences per step.
        micro_batch: sequences per pass.
        device: ``cuda`` or ``cpu``.
        vocabulary: pieces, before padding.
        seconds: of the measurement, after the warm-up.
    """
    from benchmarks.gpu.engines import opened
    from megatron_kis.config import ladder
    from megatron_kis.config.vocabulary import padded_vocabulary
    from megatron_kis.training.callbacks.metrics import Throughput

    make: Callable[..., Callable[[], float]] = _peer_step if kind == PEER else _our_step
    sizes = {"preset": preset, "length": length, "batch": batch, "micro_batch": micro_batch, "vocabulary": vocabulary}
    with opened(device) as (place, layout):
        step = make(place, layout, **sizes, **KINDS[kind])
        losses = [step() for _ in range(WARM_UP)]
        count, started = 0, time.perf_counter()
        while count < 2 or time.perf_counter() - started < seconds:
            losses.append(step())
            count += 1
        rate = count * batch * length / (time.perf_counter() - started)
        flops = ladder.preset(preset).flops_per_token(padded_vocabulary(vocabulary), length)
        row = Throughput(flops, device=place, devices=1, precision="bf16").measure(rate)
    return {"tokens_per_second": round(rate), **row, "steps": count, "loss": [losses[0], losses[-1]]}


def _our_step(
    device: Any,
    layout: Any,
    *,
    preset: str,
    length: int,
    batch: int,
    micro_batch: int,
    vocabulary: int,
    implementation: str,
    precision: str,
) -> Callable[[], float]:
    """A step of the engine."""
    from benchmarks.gpu.engines import build, samples_of

    engine = build(
        device,
        layout,
        preset=preset,
        vocabulary=vocabulary,
        length=length,
        batch=batch,
        precision=precision,
        implementation=implementation,
    )
    samples = samples_of(batch, length, vocabulary)

    def step() -> float:
        loss: float = engine.train_step(
            samples, micro_batch_size=micro_batch, learning_rate=1e-4, accept=lambda loss, norm: True
        )[0]
        return loss

    return step


def _peer_step(
    device: Any, layout: Any, *, preset: str, length: int, batch: int, micro_batch: int, vocabulary: int
) -> Callable[[], float]:
    """A step of the plain model, compiled, with fp32 weights under autocast."""
    import torch

    from benchmarks.gpu.engines import samples_of
    from benchmarks.training_cpu import Plain
    from megatron_kis.config import ladder
    from megatron_kis.config.vocabulary import padded_vocabulary

    place = device.torch_device
    model = Plain(ladder.preset(preset), padded_vocabulary(vocabulary), length).to(place)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    compiled = model if device.is_cpu else torch.compile(model)
    samples = samples_of(batch, length, vocabulary)
    tokens, labels = (torch.stack([sample[name] for sample in samples]).to(place) for name in ("tokens", "labels"))
    parts = batch // micro_batch

    def step() -> float:
        adam.zero_grad()
        total = torch.zeros((), device=place)
        for some, next_ones in zip(tokens.chunk(parts), labels.chunk(parts), strict=True):
            with torch.autocast(device.kind, dtype=torch.bfloat16):
                loss = compiled(some, next_ones) / parts
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        return float(total)  # waits for the device, as ours does

    return step
