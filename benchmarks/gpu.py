"""Training on one GPU: tokens a second, share of the peak and memory, beside PyTorch's own model compiled.

    python -m benchmarks.gpu > gpu.json          at most ten minutes

Cells of a preset and a sequence length, in BF16: first ours (the engine of ``kis train``), then a plain GPT with
``scaled_dot_product_attention`` under ``torch.compile`` and autocast, on the same batches. Each measurement is a
process of its own, so that what one leaves in memory is not the next one's; what does not fit, or is not reached in the
time, is in the result by name. At the end several small cells train side by side: cells per GPU-hour for each number
of processes (they start together; the first and last seconds of each may have no neighbour). ``--device cpu`` with
small ``--presets`` tries the script where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.training_cpu import Plain
from megatron_kis.config import RunConfig
from megatron_kis.device import Device, open_device, seed_device
from megatron_kis.model.ladder import preset
from megatron_kis.model.vocabulary import padded_vocabulary
from megatron_kis.parallel import close_groups, open_groups
from megatron_kis.settings import parse_config
from megatron_kis.training.speed import Speed

ROOT = Path(__file__).parents[1]
WARM_UP = 3  # steps that compile, choose kernels and fill the allocator


def samples_of(batch: int, length: int, vocabulary: int) -> list[dict[str, torch.Tensor]]:
    """Random sequences: what they say does not change the speed."""
    window = torch.randint(0, vocabulary, (batch, length + 1), generator=torch.Generator().manual_seed(1))
    position, mask = torch.arange(length), torch.ones(length)
    return [{"tokens": row[:-1], "labels": row[1:], "loss_mask": mask, "position_ids": position} for row in window]


def our_step(options: argparse.Namespace, vocabulary: int, device: Device, layout: Any) -> Any:
    """A step of the engine."""
    from megatron_kis.training.engine import Engine

    batch, length = options.batch, options.length
    content = {
        "name": "speed", "output": "unused", "device": options.device,
        "data": dict.fromkeys(("corpus", "validation", "exposures", "tokenizer"), "unused"),
        "model": {"preset": options.preset}, "infusion": {"frequency": 0},
        "training": {"token_budget": batch * length, "sequence_length": length, "global_batch_size": batch,
                     "precision": "bf16"},
    }  # fmt: skip
    engine = Engine(
        parse_config(RunConfig, content, source="benchmark"), vocabulary=vocabulary, layout=layout, device=device
    )
    samples = samples_of(batch, length, options.vocabulary)

    def step() -> float:
        return engine.train_step(
            samples, micro_batch_size=options.micro_batch, learning_rate=1e-4, accept=lambda loss, norm: True
        )[0]

    return step


def peer_step(options: argparse.Namespace, vocabulary: int, device: Device) -> Any:
    """A step of the plain model, compiled, with fp32 weights under autocast."""
    place = device.torch_device
    model = Plain(preset(options.preset), vocabulary, options.length).to(place)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    compiled = model if device.is_host else torch.compile(model)
    samples = samples_of(options.batch, options.length, options.vocabulary)
    tokens, labels = (torch.stack([sample[name] for sample in samples]).to(place) for name in ("tokens", "labels"))
    parts = options.batch // options.micro_batch

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


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One model, in this process."""
    device = open_device(options.device)
    layout = open_groups(device)
    seed_device(device, 0, tensor_rank=0, pipeline_rank=0)
    vocabulary = padded_vocabulary(options.vocabulary)
    step = (
        our_step(options, vocabulary, device, layout)
        if options.measure == "ours"
        else peer_step(options, vocabulary, device)
    )
    losses = [step() for _ in range(WARM_UP)]
    count, started = 0, time.perf_counter()
    while count < 2 or time.perf_counter() - started < options.seconds:
        losses.append(step())
        count += 1
    rate = count * options.batch * options.length / (time.perf_counter() - started)
    close_groups()
    flops = preset(options.preset).flops_per_token(vocabulary, options.length)
    row = Speed(flops, device=device, devices=1, precision="bf16").measure(rate)
    return {"tokens_per_second": round(rate), **row, "steps": count, "loss": [losses[0], losses[-1]]}


def start(options: argparse.Namespace, kind: str, name: str, length: int, batch: int) -> subprocess.Popen[str]:
    """A process that measures one model."""
    arguments = {"preset": name, "length": length, "batch": batch, "micro-batch": min(batch, options.micro_batch),
                 "device": options.device, "vocabulary": options.vocabulary, "seconds": options.seconds}  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.gpu", "--measure", kind]
    command += [f"--{key}={value}" for key, value in arguments.items()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def outcome(process: subprocess.Popen[str], deadline: float) -> dict[str, Any]:
    """What a process found, or why it found nothing."""
    try:
        said, errors = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {"failed": "not done in the time"}
    if process.returncode:
        return {"failed": errors.strip().splitlines()[-1] if errors.strip() else f"status {process.returncode}"}
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


def side_by_side(options: argparse.Namespace, deadline: float) -> list[dict[str, Any]]:
    """Tokens a second of 1, 2, 4, ... processes of the smallest preset, and cells per GPU-hour."""
    rows = []
    for processes in options.together:
        if time.monotonic() > deadline:
            rows.append({"processes": processes, "failed": "not done in the time"})
            continue
        length = options.lengths[0]
        running = [start(options, "ours", options.presets[0], length, options.micro_batch) for _ in range(processes)]
        parts = [outcome(process, deadline) for process in running]
        failed = [part["failed"] for part in parts if "failed" in part]
        if failed:
            rows.append({"processes": processes, "failed": failed[0]})
            continue
        rate = sum(part["tokens_per_second"] for part in parts)
        cells = 3600 * rate / options.cell_tokens
        rows.append({"processes": processes, "tokens_per_second": rate, "cells_per_hour": cells})
    return rows


def everything(options: argparse.Namespace) -> dict[str, Any]:
    """All cells within the time."""
    started = time.monotonic()
    deadline = started + 60 * options.minutes
    device = open_device(options.device)
    cells = []
    for name in options.presets:
        for length in options.lengths:
            batch = max(1, options.batch * options.lengths[0] // length)
            row: dict[str, Any] = {"preset": name, "length": length, "batch": batch}
            for kind in ("ours", "compiled"):
                late = time.monotonic() > deadline
                found = outcome(start(options, kind, name, length, batch), deadline) if not late else None
                row[kind] = found or {"failed": "not done in the time"}
            rates = [row[kind].get("tokens_per_second") for kind in ("ours", "compiled")]
            row["ratio"] = round(rates[0] / rates[1], 3) if all(rates) else None
            cells.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    return {
        "device": device.name,
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "megatron-core": version("megatron-core")},
        "cells": cells,
        "side_by_side": {"preset": options.presets[0], "cell_tokens": options.cell_tokens,
                         "rows": side_by_side(options, deadline)},
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


def main() -> int:
    """Measures and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--presets", nargs="+", default=["137m", "1b", "3b"], help="the first one is the small cell")
    parser.add_argument("--lengths", nargs="+", type=int, default=[2048, 4096], help="tokens a sequence")
    parser.add_argument("--batch", type=int, default=16, help="sequences a step at the first length")
    parser.add_argument("--micro-batch", type=int, default=4, help="sequences a pass at most")
    parser.add_argument("--vocabulary", type=int, default=32_000, help="pieces")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement, after the warm-up")
    parser.add_argument("--together", nargs="+", type=int, default=[1, 2, 4], help="small cells on one GPU")
    parser.add_argument("--cell-tokens", type=float, default=1e9, help="tokens of a small cell")
    parser.add_argument("--minutes", type=float, default=9.5, help="limit of everything")
    parser.add_argument("--measure", choices=["ours", "compiled"], help=argparse.SUPPRESS)
    parser.add_argument("--preset", help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    print(json.dumps(measure(options)) if options.measure else json.dumps(everything(options), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
