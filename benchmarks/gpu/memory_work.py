"""The most that each part of a run holds on one device, with ``kis plan``'s figure for it.

Parts: ``static`` (weights, gradients, optimizer), then what comes on top of it: ``passes`` (forward and backward),
``update``, ``validation``, ``probe``, ``save``. ``peak`` is the most of all; ``reserved`` what PyTorch's allocator took
for it, and ``context`` what is taken on the device in addition.
"""

from __future__ import annotations

import gc
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.engines import build, opened, samples_of
from megatron_kis.config import ladder
from megatron_kis.config.training import resolve_precision
from megatron_kis.config.vocabulary import padded_vocabulary
from megatron_kis.distributed.device import Device
from megatron_kis.planning.memory import memory as planned_memory
from megatron_kis.planning.split import Split

USABLE = 0.94
"""Share of a GPU's memory up to which a case is tried, as in ``kis plan``."""

TOP_PARTS = ("passes", "update", "validation", "probe", "save")


class Meter:
    """Bytes held on a device: tensors on CUDA, pages of the process on the host (which only tries the script)."""

    def __init__(self, device: Device) -> None:
        """Begins: what the process has taken so far does not count."""
        self._device, self._base = device, 0
        self._base = self.held()

    def held(self) -> int:
        """Now."""
        gc.collect()
        if self._device.is_cpu:
            return self._status("VmRSS") - self._base
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    def most(self) -> int:
        """Since the last ``reset``."""
        return self._status("VmHWM") - self._base if self._device.is_cpu else torch.cuda.max_memory_allocated()

    def reset(self) -> None:
        """Counts the most from now on."""
        if self._device.is_cpu:
            Path("/proc/self/clear_refs").write_text("5")
        else:
            torch.cuda.reset_peak_memory_stats()

    def _status(self, name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None
        return 1024 * int(found[1])


def planned(case: dict[str, Any], *, replicas: int, on_host: bool) -> dict[str, float]:
    """What ``kis plan`` says of the fullest GPU, bytes by name, without the context."""
    split = Split(
        tensor=case["tensor"],
        pipeline=case["pipeline"],
        data=replicas,
        recompute=case["recompute"],
        sequence=case["sequence"],
        distributed_optimizer=replicas > 1,
    )
    layers: Any = case["implementation"] if case["implementation"] in ("sdpa", "transformer_engine") else "auto"
    memory = planned_memory(
        ladder.preset(case["preset"]),
        padded_vocabulary(case["vocabulary"]),
        split,
        length=case["length"],
        micro_batch=case["micro_batch"],
        micro_batches=case["micro_batches"],
        precision=resolve_precision(case["precision"], cpu=on_host),
        layers=layers,
        kernels="plain" if on_host else "fused",
    )
    parts = {name: size - memory.remains for name, size in memory.parts.items()}
    return {
        **parts,
        "static": memory.static + memory.remains,
        "peak": memory.total - memory.context,
        "total": memory.total,
        "context": memory.context,
    }


def measure(*, case: dict[str, Any], device: str, data: str) -> Iterator[dict[str, Any]]:
    """A step of two micro-batches (of more with stages), a validation pass, a probe and a staged checkpoint.

    Args:
        case: ``preset``, ``length``, ``micro_batch``, ``implementation``, ``precision``, ``vocabulary``,
            ``recompute``, ``tensor``, ``pipeline``, ``sequence``; what these leave of the ranks are replicas.
        device: ``cuda`` or ``cpu``.
        data: folder of prepared data, for questions.

    Yields:
        ``name``, ``bytes`` and, where ``kis plan`` has the part, ``planned`` and ``ratio`` (measured over planned).
    """
    case["micro_batches"] = max(2, 2 * case["pipeline"])
    with opened(device, tensor=case["tensor"], pipeline=case["pipeline"]) as (place, layout):
        plan = planned(case, replicas=layout.data_size, on_host=place.is_cpu)
        taken = 0
        if not place.is_cpu:
            free, total = torch.cuda.mem_get_info()
            taken = total - free - torch.cuda.memory_reserved()
            if plan["total"] > USABLE * total:
                yield {"too_large": f"kis plan: {plan['total'] / 1e9:.1f} GB, the device has {total / 1e9:.1f}"}
                return

        def row(name: str, found: int) -> dict[str, Any]:
            wanted = plan.get(name)
            said = {"planned": round(wanted), "ratio": round(found / wanted, 4)} if wanted else {}
            return {"name": name, "bytes": found, **said}

        meter = Meter(place)
        sequences = case["micro_batches"] * case["micro_batch"]
        engine = build(
            place,
            layout,
            batch=sequences * layout.data_size,
            **{name: case[name] for name in ("preset", "vocabulary", "length", "precision", "implementation")},
            parallel={name: case[name] for name in ("recompute", "tensor", "pipeline", "sequence")},
        )
        samples = samples_of(sequences, case["length"], case["vocabulary"])
        most: dict[str, int] = {}

        def between(loss: float, norm: float) -> bool:  # the engine asks after the passes, before the update
            most["passes"] = meter.most()
            meter.reset()
            return True

        def step() -> None:
            engine.train_step(samples, micro_batch_size=case["micro_batch"], learning_rate=1e-4, accept=between)

        step()  # makes what stays: the optimizer's moments
        static = meter.held()
        yield row("static", static)
        meter.reset()
        step()
        most["update"] = meter.most()
        for name in TOP_PARTS:
            if name not in most:
                gc.collect()
                meter.reset()
                {"validation": _validate, "probe": _probe, "save": _save}[name](engine, case, Path(data))
                most[name] = meter.most()
            yield row(name, most[name] - static)
        yield row("peak", max(most.values()))
        if not place.is_cpu:
            free, total = torch.cuda.mem_get_info()
            reserved = torch.cuda.memory_reserved()
            yield row("reserved", torch.cuda.max_memory_reserved())
            yield {
                "name": "context",
                "bytes": total - free - reserved,
                "at_start": taken,
                "planned": round(plan["context"]),
            }


def _validate(engine: Any, case: dict[str, Any], data: Path) -> None:
    """The validation of a run, on random rows."""
    from megatron_kis.config.run import EvalScheduleConfig, ValidationConfig
    from megatron_kis.training.callbacks.base import RunState
    from megatron_kis.training.callbacks.validation import ValidationCallback

    shape, random = (64, case["length"] + 1), torch.Generator().manual_seed(2)
    rows = torch.randint(0, case["vocabulary"], shape, generator=random).numpy()
    settings = ValidationConfig(moments=EvalScheduleConfig())
    text: Any = list(rows)
    callback = ValidationCallback(
        settings, engine, text, None, steps=1, step_tokens=1, rows_per_pass=case["micro_batch"]
    )
    callback.on_schedule(RunState(steps=1))


def _probe(engine: Any, case: dict[str, Any], data: Path) -> None:
    """A run's probe, on the questions of the small data."""
    from megatron_kis.config.run import ProbeConfig
    from megatron_kis.probes.forward import Scorer
    from megatron_kis.probes.probe import Probe
    from megatron_kis.probes.questions import read_questions

    settings = ProbeConfig()
    scorer = Scorer(engine)
    questions = read_questions(data / "exposures.questions.jsonl", settings.templates)
    Probe(questions, batch_size=settings.batch_size, branching=scorer.branching).evaluate(scorer.score)


def _save(engine: Any, case: dict[str, Any], data: Path) -> None:
    """A checkpoint up to its copy in the host's memory, from which it is written."""
    from megatron_kis.checkpoint import shards

    with tempfile.TemporaryDirectory() as folder:
        shards.stage(engine.sharded_state(), Path(folder) / "checkpoint")
